// SPDX-License-Identifier: Apache-2.0
// The address space of this process in nvidia-uvm: the one that CUDA opened.
#pragma once

#include <cstddef>
#include <cstdint>

#include "drivers/driver.hpp"
#include "drivers/nvidia/abi.hpp"
#include "drivers/nvidia/constants.hpp"
#include "drivers/nvidia/parameters.hpp"
#include "drivers/nvidia/status.hpp"
#include "drivers/nvidia/system.hpp"

namespace pyvattn {
namespace nvidia {

// Physical memory as UVM takes it: an object of a resource-manager client.
struct MemoryRef {
  int control_fd = -1;
  Handle client = 0;
  Handle memory = 0;
};

class UvmSpace {
 public:
  // Finds the descriptor whose address space owns `probe`, addresses that CUDA reserved
  // in chunks of `chunk` bytes. Nothing is mapped there afterwards. Throws
  // DriverUnavailable where there is none.
  UvmSpace(System& system, const Layout& layout, const Uuid& uuid, const Range& probe,
           std::size_t chunk);

  // One call for each chunk that the range touches. UVM takes the largest page-table
  // entries that address, length, offset and memory allow. What is mapped there already
  // is taken away first, also where the call then fails; after a failure the rest of the
  // range is as it was.
  Answer map(const Range& range, const MemoryRef& memory, std::size_t offset,
             std::uint32_t mapping_type) noexcept;
  // Stops at the first chunk that fails; `done`, where given, becomes the bytes before it.
  Answer unmap(const Range& range, std::size_t* done = nullptr) noexcept;

  int fd() const { return file_.get(); }

 private:
  static File find(System& system, const Layout& layout, const Uuid& uuid, const Range& probe);

  Answer map_part(const Range& range, std::size_t offset) noexcept;

  System& system_;
  const Layout& layout_;
  const std::size_t chunk_;
  // A copy, so that the number cannot come to mean another file once CUDA closes its own.
  const File file_;
  // Zeroed once: a call sets the few fields that change.
  Parameters map_call_;
  Parameters unmap_call_;
};

}  // namespace nvidia
}  // namespace pyvattn
