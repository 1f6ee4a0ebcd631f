// SPDX-License-Identifier: Apache-2.0
// UVM's own ioctls on the emulated machine. Their numbers carry no size: parameters are
// read by the layout of the machine's release, whatever the caller thought.
#include <cerrno>
#include <cstring>

#include "emulation/cuda_state.hpp"
#include "emulation/nvidia_machine.hpp"

namespace pyvattn::emulation {
namespace {

using nvidia::Answer;
using nvidia::Status;

template <typename Field>
Field get(const char* block, std::size_t offset) {
  Field value;
  std::memcpy(&value, block + offset, sizeof value);
  return value;
}

constexpr std::size_t kSmallestPage = 4096;

bool is_range(const Range& range) {
  return range.length > 0 && range.address % kSmallestPage == 0 &&
         range.length % kSmallestPage == 0 && range.address + range.length > range.address;
}

}  // namespace

int NvidiaMachine::uvm_ioctl(const OpenFilePtr& file, unsigned long request, void* argument) {
  drop_dead_ranges();
  const bool is_map = request == layout_.map_number;
  if (!is_map && request != layout_.unmap_number) return vattn_ioctl(file, request, argument);
  const Answer planned = begin(is_map ? "UVM_MAP_EXTERNAL_ALLOCATION" : "UVM_UNMAP_EXTERNAL");
  if (planned.error != 0) return planned.error;
  char* call = static_cast<char*>(argument);
  Status status = nvidia::kIllegalAction;
  if (file->kind == Kind::uvm_space) {
    if (is_map) {
      status = uvm_map(call, planned.status);
    } else {
      status = planned.status != nvidia::kOk ? planned.status : uvm_unmap(call);
    }
  }
  std::memcpy(call + (is_map ? layout_.map_status : layout_.unmap_status), &status, sizeof status);
  return 0;
}

Status NvidiaMachine::uvm_map(const char* call, Status injected) {
  const Range range{get<std::uint64_t>(call, 0), get<std::uint64_t>(call, 8)};
  const auto offset = get<std::uint64_t>(call, 16);
  const auto type = get<std::uint32_t>(call, layout_.map_per_gpu + sizeof(nvidia::Uuid));
  const auto count = get<std::uint64_t>(call, layout_.map_gpu_count);
  if (!is_range(range)) return nvidia::kInvalidAddress;
  if (count == 0 || count > layout_.max_gpus) return nvidia::kInvalidArgument;
  if (type == 0 || type > nvidia::kReadOnly) return nvidia::kInvalidArgument;
  const int ordinal = ordinal_of(reinterpret_cast<const std::uint8_t*>(call) + layout_.map_per_gpu);
  if (count != 1 || ordinal < 0) return nvidia::kInvalidDevice;
  Status found = nvidia::kOk;
  const PhysicalMemoryPtr memory =
      find_memory(get<std::int32_t>(call, layout_.map_rm_control_fd),
                  get<nvidia::Handle>(call, layout_.map_client),
                  get<nvidia::Handle>(call, layout_.map_memory), &found);
  // Memory of another GPU needs peer access, which was not asked for.
  if (memory && &memory->device != &State::instance().memory.device(ordinal)) {
    found = nvidia::kInvalidDevice;
  }
  return va_space_.map(range, memory, offset, type != nvidia::kReadOnly,
                       injected != nvidia::kOk ? injected : found);
}

Status NvidiaMachine::uvm_unmap(const char* call) {
  const Range range{get<std::uint64_t>(call, 0), get<std::uint64_t>(call, 8)};
  if (!is_range(range)) return nvidia::kInvalidAddress;
  if (ordinal_of(reinterpret_cast<const std::uint8_t*>(call) + layout_.unmap_uuid) < 0) {
    return nvidia::kInvalidDevice;
  }
  return va_space_.unmap(range);
}

// The address space loses a context's ranges when the context goes.
void NvidiaMachine::drop_dead_ranges() {
  va_space_.drop_ranges([](unsigned long long id) {
    for (const PrimaryContext& context : State::instance().contexts) {
      if (context.active && context.id == id) return true;
    }
    return false;
  });
}

}  // namespace pyvattn::emulation
