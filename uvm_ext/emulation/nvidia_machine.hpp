// SPDX-License-Identifier: Apache-2.0
// An emulated machine with NVIDIA's kernel modules, for tests on machines without one:
// /dev/nvidiactl, /dev/nvidiaN, /dev/nvidia-uvm and what /proc says of them, behind the
// seam of drivers/nvidia/system.hpp, sharing its memory and contexts with the emulated
// libcuda. It is reached through the driver names "stock-uvm-emulated" and
// "patched-emulated" only.
//
// It knows the layout of one driver release and reads its callers' parameters by it.
// What the driver would refuse it refuses with the same status; an unknown ioctl, a wrong
// size or a descriptor of the wrong kind is an errno.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "drivers/nvidia/platform.hpp"
#include "emulation/libcuda.hpp"
#include "emulation/nvidia_va_space.hpp"

namespace pyvattn::emulation {

// The three seams of the emulated machine, and the second of them alone.
nvidia::Platform nvidia_platform();
const LibCuda& nvidia_libcuda();

struct NvidiaSettings {
  // What /proc/driver/nvidia/version says, and whose layout the ioctls have.
  std::string release = "580.159.04";
  std::string layout_of = "580.159.04";
  // Whether nvidia-uvm has the ioctls of driver_patch/, and their version.
  bool patched = true;
  std::uint32_t patch_version = 1;
  // Whether the modules' parameters can be seen under /sys.
  bool sysfs = true;
  bool mig = false;
  bool vgpu = false;
  bool confidential = false;
  bool wsl = false;
  bool nvml = true;
  // The first frees whose memory does not come back, as where others take as much meanwhile.
  std::size_t frees_lost = 0;
  // Nodes under /dev that are not there, or may not be opened.
  std::vector<std::string> missing_nodes;
  std::vector<std::string> forbidden_nodes;
};

struct NvidiaHoldings {
  std::size_t clients = 0;
  std::size_t objects = 0;
  std::size_t descriptors = 0;
  std::size_t vattn_handles = 0;
};

// Controls for tests.
namespace nvidia_control {

// Starts the machine, and CUDA with it, from new.
void reset(const NvidiaSettings& settings);

// The nth call from now on (1: the next) of the ioctl with NVIDIA's name, such as
// NV_ESC_RM_ALLOC or UVM_MAP_EXTERNAL_ALLOCATION, answers `status`. Throws ConfigError for
// an unknown name.
void fail(const std::string& ioctl, std::size_t nth, nvidia::Status status);
// The same with an errno in place of a status.
void fail_call(const std::string& ioctl, std::size_t nth, int error);
std::size_t calls(const std::string& ioctl);

NvidiaHoldings holdings();
// A line for each mapping: address, length, size of its entries, access, owner.
std::vector<std::string> mappings();

}  // namespace nvidia_control

class NvidiaMachine {
 public:
  explicit NvidiaMachine(const NvidiaSettings& settings);

  const NvidiaSettings& settings() const { return settings_; }
  const nvidia::Layout& layout() const { return layout_; }
  VaSpace& va_space() { return va_space_; }

  int open(const std::string& path);
  int duplicate(int fd);
  void close(int fd);
  int ioctl(int fd, unsigned long request, void* argument);
  std::vector<int> descriptors_of(const std::string& path) const;

  void plan_failure(const std::string& ioctl, std::size_t nth, nvidia::Answer answer);
  std::size_t calls(const std::string& ioctl) const;
  NvidiaHoldings holdings() const;

 private:
  enum class Kind { control, gpu, uvm_space, uvm_watcher, uvm_uninitialized };
  struct OpenFile {
    Kind kind = Kind::control;
    // The control file that was registered on a GPU's file.
    bool registered = false;
  };
  using OpenFilePtr = std::shared_ptr<OpenFile>;
  struct Object {
    std::uint32_t object_class = 0;
    nvidia::Handle parent = 0;
    // Device instance of a device; memory of a memory object.
    std::uint32_t instance = 0;
    PhysicalMemoryPtr memory;
  };
  struct Client {
    OpenFilePtr control;
    std::map<nvidia::Handle, Object> objects;
  };
  struct VattnHandle {
    PhysicalMemoryPtr memory;
    std::size_t page = 0;
    int device = 0;
  };

  // Counts the call; an answer that was planned for it, or success.
  nvidia::Answer begin(const char* ioctl);
  OpenFilePtr find_file(int fd) const;
  int add_file(const OpenFilePtr& file);

  int rm_ioctl(const OpenFilePtr& file, unsigned long request, void* argument);
  int register_file(const OpenFilePtr& file, const void* argument);
  nvidia::Status rm_alloc(const OpenFilePtr& file, char* call);
  nvidia::Status create_object(Client& client, nvidia::Handle parent, std::uint32_t object_class,
                               const char* parameters, Object* object);
  nvidia::Status create_memory(const Object& device, const char* parameters, Object* object);
  nvidia::Status rm_free(const OpenFilePtr& file, const std::uint32_t* call);
  nvidia::Status rm_control(const char* call);
  PhysicalMemoryPtr find_memory(int control_fd, nvidia::Handle client, nvidia::Handle memory,
                                nvidia::Status* status) const;

  int uvm_ioctl(const OpenFilePtr& file, unsigned long request, void* argument);
  nvidia::Status uvm_map(const char* call, nvidia::Status injected);
  nvidia::Status uvm_unmap(const char* call);
  void drop_dead_ranges();

  int vattn_ioctl(const OpenFilePtr& file, unsigned long request, void* argument);
  nvidia::Status vattn_query(const OpenFilePtr& file, void* argument);
  nvidia::Status vattn_alloc(void* argument);
  nvidia::Status vattn_free(const void* argument);
  nvidia::Status vattn_map(void* argument);
  nvidia::Status vattn_unmap(void* argument);

  const NvidiaSettings settings_;
  const nvidia::Layout layout_;
  std::map<int, OpenFilePtr> files_;
  std::map<nvidia::Handle, Client> clients_;
  std::vector<PhysicalMemoryPtr> lost_;
  nvidia::Handle next_object_ = 0xcaf00001;
  VaSpace va_space_;
  std::map<std::uint64_t, VattnHandle> vattn_handles_;
  std::uint64_t next_vattn_handle_ = 1;
  std::map<std::string, std::size_t> calls_;
  std::map<std::string, std::map<std::size_t, nvidia::Answer>> planned_;
};

// The machine of now. The caller holds the lock of the CUDA state.
NvidiaMachine& nvidia_machine();

// One emulated GPU: nothing about it has the same number twice.
struct GpuNumbers {
  nvidia::Uuid uuid;
  int minor;
  std::uint32_t gpu_id;
  std::uint32_t instance;
};
GpuNumbers gpu_numbers(int ordinal);
// Minus one where no GPU has it.
int ordinal_of(const std::uint8_t* uuid);
int ordinal_of_instance(std::uint32_t instance);

}  // namespace pyvattn::emulation
