// SPDX-License-Identifier: Apache-2.0
#include "drivers/nvidia/rm_client.hpp"

#include <unistd.h>

#include <cstring>

#include "base/errors.hpp"

namespace pyvattn {
namespace nvidia {
namespace {

constexpr std::size_t k64KiB = 64u << 10;

File open_node(System& system, const std::string& path) {
  const int fd = system.open(path);
  if (fd < 0) {
    throw DriverUnavailable(path + " cannot be opened: " + Answer{-fd, kOk}.name() + " (" +
                            std::strerror(-fd) + ")");
  }
  return File(system, fd);
}

}  // namespace

RmClient::RmClient(System& system, const Layout& layout, const Uuid& uuid, int minor)
    : system_(system),
      layout_(layout),
      process_(::getpid()),
      control_(open_node(system, kControlNode)),
      device_file_(open_node(system, kGpuNodePrefix + std::to_string(minor))) {
  register_device_file();
  root_ = allocate(0, kRootClient, nullptr, 0, "make resource-manager client", 0);
  try {
    Parameters device;
    device.set<std::uint32_t>(kDeviceId, device_instance(uuid));
    device.set<Handle>(kDeviceClientShare, root_);
    device_ = allocate(root_, kDevice, &device, layout_.device_bytes, "open device", 0);
    Parameters subdevice;
    allocate(device_, kSubdevice, &subdevice, layout_.subdevice_bytes, "open subdevice", 0);
  } catch (...) {
    free(0, root_);
    throw;
  }
}

RmClient::~RmClient() {
  if (process_ == ::getpid()) free(0, root_);
}

Handle RmClient::allocate_memory(std::size_t bytes, Granule granule) {
  const bool huge = granule == Granule::k2M;
  Parameters memory;
  memory.set<std::uint32_t>(kMemoryOwner, root_);
  memory.set<std::uint32_t>(kMemoryFlags, kMemoryAllocFlags);
  memory.set<std::uint32_t>(kMemoryFormat, kMemoryAllocFormat);
  memory.set<std::uint32_t>(layout_.memory_attr,
                            kAllowNoncontiguous | (huge ? kPageSizeHuge : kPageSizeBig));
  memory.set<std::uint32_t>(layout_.memory_attr2, huge ? kHuge2M : 0);
  memory.set<std::uint64_t>(layout_.memory_size, bytes);
  memory.set<std::uint64_t>(layout_.memory_alignment, huge ? kHugePage : k64KiB);
  memory.set<std::uint64_t>(layout_.memory_limit, bytes - 1);
  return allocate(device_, kMemoryLocalUser, &memory, layout_.memory_bytes, "allocate memory",
                  bytes);
}

void RmClient::free_memory(Handle memory) {
  check(free(device_, memory), "free memory", memory, 0);
}

Handle RmClient::allocate(Handle parent, std::uint32_t object_class, Parameters* parameters,
                          std::size_t parameter_bytes, const std::string& what, std::size_t size) {
  Parameters call;
  call.set<Handle>(0, root_);
  call.set<Handle>(4, parent);
  call.set<std::uint32_t>(12, object_class);
  call.set<std::uint64_t>(16, parameters != nullptr ? parameters->address() : 0);
  // From release 535 on the status has moved up and left room for the size.
  if (layout_.rm_alloc_status == 28) {
    call.set<std::uint32_t>(24, static_cast<std::uint32_t>(parameter_bytes));
  }
  call.set<Status>(layout_.rm_alloc_status, kUnwritten);
  Answer answer;
  answer.error =
      system_.ioctl(control_.get(), rm_request(kEscRmAlloc, layout_.rm_alloc_bytes), call.data());
  answer.status = call.get<Status>(layout_.rm_alloc_status);
  check(answer, what + " (NV_ESC_RM_ALLOC)", 0, size);
  return call.get<Handle>(8);
}

Answer RmClient::free(Handle parent, Handle object) noexcept {
  // NVOS00_PARAMETERS never changed.
  std::uint32_t call[4] = {root_, parent, object, kUnwritten};
  Answer answer;
  answer.error = system_.ioctl(control_.get(), rm_request(kEscRmFree, layout_.rm_free_bytes), call);
  answer.status = call[3];
  return answer;
}

void RmClient::control(std::uint32_t command, void* parameters, std::size_t bytes,
                       const char* what) {
  Parameters call;
  call.set<Handle>(0, root_);
  call.set<Handle>(4, root_);
  call.set<std::uint32_t>(8, command);
  call.set<std::uint64_t>(16, reinterpret_cast<std::uint64_t>(parameters));
  call.set<std::uint32_t>(24, static_cast<std::uint32_t>(bytes));
  call.set<Status>(28, kUnwritten);
  Answer answer;
  answer.error = system_.ioctl(control_.get(), rm_request(kEscRmControl, layout_.rm_control_bytes),
                               call.data());
  answer.status = call.get<Status>(28);
  check(answer, std::string(what) + " (NV_ESC_RM_CONTROL)", 0, 0);
}

void RmClient::register_device_file() {
  std::int32_t control_fd = control_.get();
  Answer answer;
  answer.error =
      system_.ioctl(device_file_.get(), rm_request(kEscRegisterFd, sizeof control_fd), &control_fd);
  check(answer, "register descriptor (NV_ESC_REGISTER_FD)", 0, 0);
}

// The resource manager numbers GPUs in an order of its own: neither CUDA's ordinal nor
// the minor of the device node.
std::uint32_t RmClient::device_instance(const Uuid& uuid) {
  AttachedIds attached{};
  control(kGetAttachedIds, &attached, sizeof attached, "list GPUs");
  for (std::uint32_t id : attached.gpu_ids) {
    if (id == kInvalidGpuId) break;
    GpuUuid candidate{};
    candidate.gpu_id = id;
    candidate.flags = kUuidBinarySha1;
    control(kGetUuidFromGpuId, &candidate, sizeof candidate, "read GPU UUID");
    if (std::memcmp(candidate.uuid, uuid.data(), uuid.size()) != 0) continue;
    GpuIdInfo info{};
    info.gpu_id = id;
    control(kGetIdInfo, &info, sizeof info, "read GPU instance");
    return info.device_instance;
  }
  throw DriverUnavailable("the resource manager does not know the GPU that CUDA named");
}

}  // namespace nvidia
}  // namespace pyvattn
