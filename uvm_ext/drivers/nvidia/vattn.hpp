// SPDX-License-Identifier: Apache-2.0
// The ioctls of the patched nvidia-uvm (driver_patch/uapi/uvm_vattn_ioctl.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "drivers/driver.hpp"
#include "drivers/nvidia/constants.hpp"
#include "drivers/nvidia/patch_query.hpp"
#include "drivers/nvidia/status.hpp"
#include "drivers/nvidia/system.hpp"
#include "uvm_vattn_ioctl.h"

namespace pyvattn {
namespace nvidia {

// The ioctls on the descriptor whose address space owns the addresses.
class VattnSpace {
 public:
  VattnSpace(System& system, int fd, const Uuid& uuid) : system_(system), fd_(fd), uuid_(uuid) {}

  // For this GPU: `usable` is false where the interface does not work on it.
  PatchQuery query() const;

  Answer allocate(std::size_t page, std::uint64_t pages, std::uint64_t* handle) const noexcept;
  Answer free(std::uint64_t handle) const noexcept;
  // All of at most max_batch entries or none. `failed` is the entry at fault, or
  // UVM_VATTN_NO_ENTRY.
  Answer map(const uvm_vattn_map_entry* entries, std::size_t count,
             std::uint32_t* failed) const noexcept;
  Answer unmap(const uvm_vattn_unmap_entry* entries, std::size_t count) const noexcept;

 private:
  System& system_;
  const int fd_;
  const Uuid uuid_;
};

}  // namespace nvidia
}  // namespace pyvattn
