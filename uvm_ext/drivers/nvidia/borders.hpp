// SPDX-License-Identifier: Apache-2.0
// CUDA makes one external range of UVM for each piece of memory that it maps, and no
// ioctl may reach from one range into the next. Ours are chunks of one size, at multiples
// of it (CudaReservations).
#pragma once

#include <algorithm>
#include <cstddef>

#include "drivers/driver.hpp"

namespace pyvattn {
namespace nvidia {

// How many of the range's bytes lie before the next border.
inline std::size_t bytes_to_border(const Range& range, std::size_t chunk) {
  return std::min(range.length, chunk - static_cast<std::size_t>(range.address % chunk));
}

// Calls `act` with each part of the range between two borders, lowest first.
template <typename Act>
void for_each_chunk(Range range, std::size_t chunk, Act act) {
  while (range.length > 0) {
    const std::size_t bytes = bytes_to_border(range, chunk);
    act(Range{range.address, bytes});
    range.address += bytes;
    range.length -= bytes;
  }
}

}  // namespace nvidia
}  // namespace pyvattn
