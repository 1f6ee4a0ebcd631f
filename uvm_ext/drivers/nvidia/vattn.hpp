// The ioctls of the patched nvidia-uvm (driver_patch/uapi/uvm_vattn_ioctl.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "drivers/driver.hpp"
#include "drivers/nvidia/constants.hpp"
#include "drivers/nvidia/status.hpp"
#include "drivers/nvidia/system.hpp"
#include "uvm_vattn_ioctl.h"

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
