// SPDX-License-Identifier: Apache-2.0
// A client of NVIDIA's resource manager: it allocates physical memory of one GPU.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string>

#include "drivers/nvidia/abi.hpp"
#include "drivers/nvidia/constants.hpp"
#include "drivers/nvidia/parameters.hpp"
#include "drivers/nvidia/status.hpp"
#include "drivers/nvidia/system.hpp"

namespace pyvattn {
namespace nvidia {

// What memory is made of; it bounds the page-table entries that UVM maps it with.
enum class Granule { k64K, k2M };

class RmClient {
 public:
  // `minor` is the N of /dev/nvidiaN. Throws DriverUnavailable where a node cannot be
  // opened, DriverError where the resource manager refuses.
  RmClient(System& system, const Layout& layout, const Uuid& uuid, int minor);
  // Frees whatever was allocated. In a child made by fork() it only closes the child's
  // descriptors: the objects are the parent's.
  ~RmClient();
  RmClient(const RmClient&) = delete;
  RmClient& operator=(const RmClient&) = delete;

  // Throws DriverOutOfMemory, DriverError.
  Handle allocate_memory(std::size_t bytes, Granule granule);
  void free_memory(Handle memory);

  int control_fd() const { return control_.get(); }
  Handle root() const { return root_; }

 private:
  Handle allocate(Handle parent, std::uint32_t object_class, Parameters* parameters,
                  std::size_t parameter_bytes, const std::string& what, std::size_t size);
  Answer free(Handle parent, Handle object) noexcept;
  void control(std::uint32_t command, void* parameters, std::size_t bytes, const char* what);
  void register_device_file();
  std::uint32_t device_instance(const Uuid& uuid);

  System& system_;
  const Layout& layout_;
  const pid_t process_;
  File control_;
  File device_file_;
  Handle root_ = 0;
  Handle device_ = 0;
};

}  // namespace nvidia
}  // namespace pyvattn
