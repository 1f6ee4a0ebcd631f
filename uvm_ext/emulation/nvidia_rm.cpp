// SPDX-License-Identifier: Apache-2.0
// The resource manager of the emulated machine: clients, devices, memory objects.
#include <cerrno>
#include <cstring>

#include "emulation/cuda_state.hpp"
#include "emulation/nvidia_machine.hpp"

namespace pyvattn::emulation {
namespace {

using nvidia::Answer;
using nvidia::Handle;
using nvidia::Status;

template <typename Field>
Field get(const void* block, std::size_t offset) {
  Field value;
  std::memcpy(&value, static_cast<const char*>(block) + offset, sizeof value);
  return value;
}

template <typename Field>
void set(void* block, std::size_t offset, Field value) {
  std::memcpy(static_cast<char*>(block) + offset, &value, sizeof value);
}

void* user_pointer(const void* block, std::size_t offset) {
  return reinterpret_cast<void*>(get<std::uint64_t>(block, offset));
}

// The parameter block of the control command where its size is right.
template <typename Block>
Block* control_block(const char* call) {
  if (get<std::uint32_t>(call, 24) != sizeof(Block)) return nullptr;
  return static_cast<Block*>(user_pointer(call, 16));
}

Status list_gpus(nvidia::AttachedIds* ids) {
  for (int i = 0; i < 32; ++i) {
    ids->gpu_ids[i] = i < kDevices ? gpu_numbers(i).gpu_id : nvidia::kInvalidGpuId;
  }
  return nvidia::kOk;
}

int ordinal_of_id(std::uint32_t gpu_id) {
  for (int i = 0; i < kDevices; ++i) {
    if (gpu_numbers(i).gpu_id == gpu_id) return i;
  }
  return -1;
}

Status read_uuid(nvidia::GpuUuid* block) {
  const int ordinal = ordinal_of_id(block->gpu_id);
  if (ordinal < 0 || block->flags != nvidia::kUuidBinarySha1) return nvidia::kInvalidArgument;
  const nvidia::Uuid uuid = gpu_numbers(ordinal).uuid;
  std::memcpy(block->uuid, uuid.data(), uuid.size());
  block->uuid_bytes = static_cast<std::uint32_t>(uuid.size());
  return nvidia::kOk;
}

Status read_instance(nvidia::GpuIdInfo* block) {
  const int ordinal = ordinal_of_id(block->gpu_id);
  if (ordinal < 0) return nvidia::kInvalidArgument;
  block->device_instance = gpu_numbers(ordinal).instance;
  return nvidia::kOk;
}

}  // namespace

int ordinal_of(const std::uint8_t* uuid) {
  for (int i = 0; i < kDevices; ++i) {
    if (std::memcmp(gpu_numbers(i).uuid.data(), uuid, sizeof(nvidia::Uuid)) == 0) return i;
  }
  return -1;
}

int ordinal_of_instance(std::uint32_t instance) {
  for (int i = 0; i < kDevices; ++i) {
    if (gpu_numbers(i).instance == instance) return i;
  }
  return -1;
}

// Wrong sizes and unknown numbers never reach the resource manager: EINVAL.
int NvidiaMachine::rm_ioctl(const OpenFilePtr& file, unsigned long request, void* argument) {
  if (_IOC_TYPE(request) != 'F') return EINVAL;
  const std::size_t bytes = _IOC_SIZE(request);
  const unsigned number = _IOC_NR(request);
  if (number == nvidia::kEscRegisterFd && bytes == sizeof(std::int32_t)) {
    return register_file(file, argument);
  }
  // All others are for the control node alone.
  if (file->kind != Kind::control) return EINVAL;
  if (number == nvidia::kEscRmAlloc && bytes == layout_.rm_alloc_bytes) {
    const Answer planned = begin("NV_ESC_RM_ALLOC");
    char* call = static_cast<char*>(argument);
    set<Status>(call, layout_.rm_alloc_status,
                planned.status != nvidia::kOk ? planned.status
                : planned.error != 0          ? nvidia::kOk
                                              : rm_alloc(file, call));
    return planned.error;
  }
  if (number == nvidia::kEscRmFree && bytes == layout_.rm_free_bytes) {
    const Answer planned = begin("NV_ESC_RM_FREE");
    auto* call = static_cast<std::uint32_t*>(argument);
    if (planned.error != 0) return planned.error;
    call[3] = planned.status != nvidia::kOk ? planned.status : rm_free(file, call);
    return 0;
  }
  if (number == nvidia::kEscRmControl && bytes == layout_.rm_control_bytes) {
    const Answer planned = begin("NV_ESC_RM_CONTROL");
    if (planned.error != 0) return planned.error;
    char* call = static_cast<char*>(argument);
    set<Status>(call, 28, planned.status != nvidia::kOk ? planned.status : rm_control(call));
    return 0;
  }
  return EINVAL;
}

int NvidiaMachine::register_file(const OpenFilePtr& file, const void* argument) {
  const Answer planned = begin("NV_ESC_REGISTER_FD");
  if (planned.error != 0) return planned.error;
  const OpenFilePtr control = find_file(get<std::int32_t>(argument, 0));
  if (!control || control->kind != Kind::control || control == file || file->registered) {
    return EINVAL;
  }
  file->registered = true;
  return 0;
}

Status NvidiaMachine::rm_alloc(const OpenFilePtr& file, char* call) {
  const auto root = get<Handle>(call, 0);
  const auto parent = get<Handle>(call, 4);
  const auto object_class = get<std::uint32_t>(call, 12);
  if (get<Handle>(call, 8) != 0) return nvidia::kInvalidArgument;
  if (object_class == nvidia::kRootClient) {
    if (root != 0 || parent != 0) return nvidia::kInvalidClient;
    static Handle next_client = 0xc1d00001;
    clients_[next_client].control = file;
    set<Handle>(call, 8, next_client++);
    return nvidia::kOk;
  }
  const auto client = clients_.find(root);
  if (client == clients_.end() || client->second.control != file) return nvidia::kInvalidClient;
  const auto* parameters = static_cast<const char*>(user_pointer(call, 16));
  if (parameters == nullptr) return nvidia::kInvalidArgument;
  Object object;
  object.object_class = object_class;
  object.parent = parent;
  const Status status = create_object(client->second, parent, object_class, parameters, &object);
  if (status != nvidia::kOk) return status;
  client->second.objects.emplace(next_object_, object);
  set<Handle>(call, 8, next_object_++);
  return nvidia::kOk;
}

Status NvidiaMachine::create_object(Client& client, Handle parent, std::uint32_t object_class,
                                    const char* parameters, Object* object) {
  if (object_class == nvidia::kDevice) {
    if (clients_.count(parent) == 0) return nvidia::kInvalidObjectParent;
    if (clients_.count(get<Handle>(parameters, nvidia::kDeviceClientShare)) == 0) {
      return nvidia::kInvalidClient;
    }
    object->instance = get<std::uint32_t>(parameters, nvidia::kDeviceId);
    return ordinal_of_instance(object->instance) < 0 ? nvidia::kInvalidArgument : nvidia::kOk;
  }
  const auto device = client.objects.find(parent);
  if (device == client.objects.end() || device->second.object_class != nvidia::kDevice) {
    return nvidia::kInvalidObjectParent;
  }
  if (object_class == nvidia::kSubdevice) {
    return get<std::uint32_t>(parameters, 0) == 0 ? nvidia::kOk : nvidia::kInvalidArgument;
  }
  if (object_class != nvidia::kMemoryLocalUser) return nvidia::kInvalidClass;
  return create_memory(device->second, parameters, object);
}

Status NvidiaMachine::create_memory(const Object& device, const char* parameters, Object* object) {
  const auto attributes = get<std::uint32_t>(parameters, layout_.memory_attr);
  const auto bytes = get<std::uint64_t>(parameters, layout_.memory_size);
  const std::uint32_t page = attributes & nvidia::kPageSizeMask;
  const std::size_t granule = page == nvidia::kPageSizeHuge  ? kLargeEntry
                              : page == nvidia::kPageSizeBig ? kSmallEntry
                                                             : 0;
  if (granule == 0 || (attributes & ~nvidia::kPageSizeMask) != nvidia::kAllowNoncontiguous ||
      get<std::uint32_t>(parameters, layout_.memory_attr2) !=
          (granule == kLargeEntry ? nvidia::kHuge2M : 0) ||
      get<std::uint32_t>(parameters, nvidia::kMemoryFlags) != nvidia::kMemoryAllocFlags ||
      get<std::uint32_t>(parameters, nvidia::kMemoryFormat) != nvidia::kMemoryAllocFormat ||
      clients_.count(get<Handle>(parameters, nvidia::kMemoryOwner)) == 0 ||
      get<std::uint64_t>(parameters, layout_.memory_alignment) != granule || bytes == 0 ||
      bytes % granule != 0 || get<std::uint64_t>(parameters, layout_.memory_limit) != bytes - 1) {
    return nvidia::kInvalidArgument;
  }
  DeviceMemory& memory = State::instance().memory.device(ordinal_of_instance(device.instance));
  std::size_t offset = 0;
  if (!memory.allocate(bytes, &offset)) return nvidia::kNoMemory;
  object->memory = std::make_shared<PhysicalMemory>(memory, offset, bytes, granule);
  return nvidia::kOk;
}

// Stricter than the driver, which keeps mapped memory alive until the last unmap.
Status NvidiaMachine::rm_free(const OpenFilePtr& file, const std::uint32_t* call) {
  const auto client = clients_.find(call[0]);
  if (client == clients_.end() || client->second.control != file) return nvidia::kInvalidClient;
  if (call[2] == call[0]) {
    clients_.erase(client);
    return nvidia::kOk;
  }
  const auto object = client->second.objects.find(call[2]);
  if (object == client->second.objects.end()) return nvidia::kInvalidObjectHandle;
  if (object->second.parent != call[1]) return nvidia::kInvalidObjectParent;
  const PhysicalMemory* memory = object->second.memory.get();
  if (memory != nullptr && va_space_.mappings_of(memory) > 0) return nvidia::kInUse;
  if (memory != nullptr && lost_.size() < settings_.frees_lost)
    lost_.push_back(object->second.memory);
  client->second.objects.erase(object);
  return nvidia::kOk;
}

Status NvidiaMachine::rm_control(const char* call) {
  if (clients_.count(get<Handle>(call, 0)) == 0) return nvidia::kInvalidClient;
  if (get<Handle>(call, 4) != get<Handle>(call, 0)) return nvidia::kInvalidObjectHandle;
  switch (get<std::uint32_t>(call, 8)) {
    case nvidia::kGetAttachedIds: {
      auto* block = control_block<nvidia::AttachedIds>(call);
      return block == nullptr ? nvidia::kInvalidParamStruct : list_gpus(block);
    }
    case nvidia::kGetUuidFromGpuId: {
      auto* block = control_block<nvidia::GpuUuid>(call);
      return block == nullptr ? nvidia::kInvalidParamStruct : read_uuid(block);
    }
    case nvidia::kGetIdInfo: {
      auto* block = control_block<nvidia::GpuIdInfo>(call);
      return block == nullptr ? nvidia::kInvalidParamStruct : read_instance(block);
    }
    default:
      return nvidia::kNotSupported;
  }
}

PhysicalMemoryPtr NvidiaMachine::find_memory(int control_fd, Handle client, Handle memory,
                                             Status* status) const {
  const OpenFilePtr file = find_file(control_fd);
  const auto found = clients_.find(client);
  if (!file || found == clients_.end() || found->second.control != file) {
    *status = nvidia::kInvalidClient;
    return nullptr;
  }
  const auto object = found->second.objects.find(memory);
  if (object == found->second.objects.end() || !object->second.memory) {
    *status = nvidia::kInvalidObjectHandle;
    return nullptr;
  }
  *status = nvidia::kOk;
  return object->second.memory;
}

}  // namespace pyvattn::emulation
