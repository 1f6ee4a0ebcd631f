// SPDX-License-Identifier: Apache-2.0
// Reserved addresses, one range for each arena.
#pragma once

#include <memory>
#include <vector>

#include "drivers/driver.hpp"
#include "rows/geometry.hpp"

namespace pyvattn {

// One reserved range. Tensors share it with the cache: the addresses stay reserved
// until the last of them is gone, also after the cache was closed.
class Arena {
 public:
  Arena(DriverPtr driver, std::size_t bytes, std::size_t alignment);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  Address address() const { return address_; }
  std::size_t bytes() const { return bytes_; }
  const Driver& driver() const { return *driver_; }

 private:
  const DriverPtr driver_;
  const std::size_t bytes_;
  const Address address_;
  const int fork_generation_;
};
using ArenaPtr = std::shared_ptr<const Arena>;

std::vector<ArenaPtr> make_arenas(const DriverPtr& driver, const Geometry& geometry);

}  // namespace pyvattn
