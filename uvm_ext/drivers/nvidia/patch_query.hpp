// SPDX-License-Identifier: Apache-2.0
// Whether the loaded nvidia-uvm is the patched one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "drivers/nvidia/system.hpp"

namespace pyvattn {
namespace nvidia {

// What the loaded nvidia-uvm says of itself.
struct PatchQuery {
  // Whether its interface is there and of a version that we speak.
  bool usable = false;
  // Why it is not.
  std::string reason;
  std::uint32_t version = 0;
  std::uint32_t features = 0;
  std::uint32_t max_batch = 0;
  std::uint32_t max_batch_ptes = 0;
  std::uint64_t max_alloc_bytes = 0;
  std::uint64_t limit_bytes = 0;
  // Bytes, ascending.
  std::vector<std::size_t> page_sizes;
};

// Asks the module, without CUDA, a GPU or any right but to open the node. Safe on a stock
// module, which does not know the ioctl and changes nothing; throws nothing.
PatchQuery query_patch(System& system);

}  // namespace nvidia
}  // namespace pyvattn
