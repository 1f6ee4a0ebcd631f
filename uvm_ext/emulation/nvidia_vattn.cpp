// SPDX-License-Identifier: Apache-2.0
// The ioctls of driver_patch/ on the emulated machine, as uapi/uvm_vattn_ioctl.h says.
#include <fcntl.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "emulation/cuda_state.hpp"
#include "emulation/nvidia_machine.hpp"
#include "uvm_vattn_ioctl.h"

namespace pyvattn::emulation {
namespace {

using nvidia::Answer;
using nvidia::Status;

constexpr std::uint32_t kMaxBatch = 4096;
constexpr std::uint32_t kMaxBatchPtes = 1u << 20;
constexpr std::uint64_t kLimit = std::uint64_t{3} << 30;
constexpr std::uint64_t kPageSizes = 2 * UVM_VATTN_MAX_PAGE - UVM_VATTN_MIN_PAGE;

bool is_zero(const std::uint8_t* uuid) {
  for (int i = 0; i < UVM_VATTN_UUID_BYTES; ++i) {
    if (uuid[i] != 0) return false;
  }
  return true;
}

bool is_page_size(std::uint64_t size) {
  return size != 0 && (size & (size - 1)) == 0 && (size & kPageSizes) != 0;
}

template <typename Parameters>
int answer(void* argument, Status status) {
  static_cast<Parameters*>(argument)->rm_status = status;
  return 0;
}

std::size_t entry_of(std::size_t page) { return page >= kLargeEntry ? kLargeEntry : kSmallEntry; }

void fill_zeros(const PhysicalMemory& memory) {
  // A hole in the file reads as zeros.
  ::fallocate(memory.device.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
              static_cast<off_t>(memory.offset), static_cast<off_t>(memory.bytes));
}

bool overlap(const Range& a, const Range& b) {
  return a.address < b.address + b.length && b.address < a.address + a.length;
}

}  // namespace

int NvidiaMachine::vattn_ioctl(const OpenFilePtr& file, unsigned long request, void* argument) {
  if (!settings_.patched) {
    if (request == UVM_VATTN_QUERY) begin("UVM_VATTN_QUERY");
    return EINVAL;
  }
  const auto run = [&](const char* name, auto act) {
    const Answer planned = begin(name);
    if (planned.error != 0) return std::make_pair(planned.error, Status{0});
    const bool usable = file->kind == Kind::uvm_space || request == UVM_VATTN_QUERY;
    const Status status = planned.status != nvidia::kOk ? planned.status
                          : usable                      ? act()
                                                        : nvidia::kIllegalAction;
    return std::make_pair(0, status);
  };
  std::pair<int, Status> result{EINVAL, 0};
  switch (request) {
    case UVM_VATTN_QUERY:
      result = run("UVM_VATTN_QUERY", [&] { return vattn_query(file, argument); });
      return result.first != 0 ? result.first : answer<uvm_vattn_query>(argument, result.second);
    case UVM_VATTN_ALLOC:
      result = run("UVM_VATTN_ALLOC", [&] { return vattn_alloc(argument); });
      return result.first != 0 ? result.first : answer<uvm_vattn_alloc>(argument, result.second);
    case UVM_VATTN_FREE:
      result = run("UVM_VATTN_FREE", [&] { return vattn_free(argument); });
      return result.first != 0 ? result.first : answer<uvm_vattn_free>(argument, result.second);
    case UVM_VATTN_MAP:
      result = run("UVM_VATTN_MAP", [&] { return vattn_map(argument); });
      return result.first != 0 ? result.first : answer<uvm_vattn_map>(argument, result.second);
    case UVM_VATTN_UNMAP:
      result = run("UVM_VATTN_UNMAP", [&] { return vattn_unmap(argument); });
      return result.first != 0 ? result.first : answer<uvm_vattn_unmap>(argument, result.second);
    default:
      return EINVAL;
  }
}

Status NvidiaMachine::vattn_query(const OpenFilePtr& file, void* argument) {
  auto* query = static_cast<uvm_vattn_query*>(argument);
  if (query->reserved != 0) return nvidia::kInvalidArgument;
  // Without a GPU the answer is what the module can do on any.
  const bool of_gpu = !is_zero(query->gpu_uuid);
  if (of_gpu && (file->kind != Kind::uvm_space || ordinal_of(query->gpu_uuid) < 0)) {
    return nvidia::kInvalidDevice;
  }
  query->page_sizes = of_gpu && settings_.confidential ? 0 : kPageSizes;
  query->max_alloc_bytes = std::uint64_t{1} << 30;
  query->limit_bytes = kLimit;
  query->version = settings_.patch_version;
  query->features = UVM_VATTN_FEATURE_READ_ONLY | UVM_VATTN_FEATURE_REPLACE;
  query->max_batch = kMaxBatch;
  query->max_batch_ptes = kMaxBatchPtes;
  return nvidia::kOk;
}

Status NvidiaMachine::vattn_alloc(void* argument) {
  auto* call = static_cast<uvm_vattn_alloc*>(argument);
  const int ordinal = ordinal_of(call->gpu_uuid);
  if (ordinal < 0) return nvidia::kInvalidDevice;
  if (!is_page_size(call->page_size)) return nvidia::kNotSupported;
  if (call->page_count == 0 || call->flags != 0) return nvidia::kInvalidArgument;
  if (call->page_count > kLimit / call->page_size) return nvidia::kInsufficientResources;
  const std::size_t bytes = call->page_count * call->page_size;
  DeviceMemory& device = State::instance().memory.device(ordinal);
  std::size_t offset = 0;
  if (!device.allocate(bytes, &offset)) return nvidia::kNoMemory;
  VattnHandle handle;
  handle.memory =
      std::make_shared<PhysicalMemory>(device, offset, bytes, entry_of(call->page_size));
  handle.page = call->page_size;
  handle.device = ordinal;
  fill_zeros(*handle.memory);
  vattn_handles_.emplace(next_vattn_handle_, handle);
  call->handle = next_vattn_handle_++;
  return nvidia::kOk;
}

Status NvidiaMachine::vattn_free(const void* argument) {
  const auto* call = static_cast<const uvm_vattn_free*>(argument);
  const auto found = vattn_handles_.find(call->handle);
  if (found == vattn_handles_.end()) return nvidia::kInvalidObjectHandle;
  if (call->flags != 0) return nvidia::kInvalidArgument;
  if (va_space_.mappings_of(found->second.memory.get()) > 0) return nvidia::kInUse;
  vattn_handles_.erase(found);
  return nvidia::kOk;
}

// Every entry is checked before the first is carried out.
Status NvidiaMachine::vattn_map(void* argument) {
  auto* call = static_cast<uvm_vattn_map*>(argument);
  call->failed_entry = UVM_VATTN_NO_ENTRY;
  const int ordinal = ordinal_of(call->gpu_uuid);
  if (ordinal < 0) return nvidia::kInvalidDevice;
  if (call->flags != 0 || call->entry_count == 0) return nvidia::kInvalidArgument;
  if (call->entry_count > kMaxBatch) return nvidia::kInvalidLimit;
  const auto* entries = reinterpret_cast<const uvm_vattn_map_entry*>(call->entries);
  std::vector<std::pair<Range, Mapping>> plan;
  std::size_t ptes = 0;
  for (std::uint32_t i = 0; i < call->entry_count; ++i) {
    const uvm_vattn_map_entry& entry = entries[i];
    call->failed_entry = i;
    const auto found = vattn_handles_.find(entry.handle);
    if (found == vattn_handles_.end()) return nvidia::kInvalidObjectHandle;
    const VattnHandle& handle = found->second;
    const std::size_t pages = handle.memory->bytes / handle.page;
    constexpr std::uint32_t kFlags = UVM_VATTN_MAP_READ_ONLY | UVM_VATTN_MAP_REPLACE;
    if (entry.page_count == 0 || entry.first_page > pages ||
        entry.page_count > pages - entry.first_page || (entry.flags & ~kFlags) != 0 ||
        entry.reserved != 0 || handle.device != ordinal) {
      return nvidia::kInvalidArgument;
    }
    const Range range{entry.address, entry.page_count * handle.page};
    if (entry.address % handle.page != 0 || !va_space_.is_inside_range(range)) {
      return nvidia::kInvalidAddress;
    }
    for (const auto& [earlier, mapping] : plan) {
      if (overlap(earlier, range)) return nvidia::kUvmAddressInUse;
    }
    Mapping mapping;
    mapping.length = range.length;
    mapping.entry = entry_of(handle.page);
    mapping.memory = handle.memory;
    mapping.offset = entry.first_page * handle.page;
    mapping.writable = (entry.flags & UVM_VATTN_MAP_READ_ONLY) == 0;
    mapping.vattn = true;
    for (const auto& [start, there] : va_space_.overlapping(range)) {
      if ((entry.flags & UVM_VATTN_MAP_REPLACE) == 0) return nvidia::kUvmAddressInUse;
      if (there.entry != mapping.entry) return nvidia::kInvalidAddress;
    }
    ptes += range.length / mapping.entry;
    plan.emplace_back(range, mapping);
  }
  call->failed_entry = UVM_VATTN_NO_ENTRY;
  if (ptes > kMaxBatchPtes) return nvidia::kInvalidLimit;
  for (const auto& [range, mapping] : plan) {
    va_space_.split(range);
    const Status status = va_space_.replace(range, mapping);
    if (status != nvidia::kOk) return status;
  }
  return nvidia::kOk;
}

Status NvidiaMachine::vattn_unmap(void* argument) {
  auto* call = static_cast<uvm_vattn_unmap*>(argument);
  call->failed_entry = UVM_VATTN_NO_ENTRY;
  if (ordinal_of(call->gpu_uuid) < 0) return nvidia::kInvalidDevice;
  if (call->flags != 0 || call->entry_count == 0) return nvidia::kInvalidArgument;
  if (call->entry_count > kMaxBatch) return nvidia::kInvalidLimit;
  const auto* entries = reinterpret_cast<const uvm_vattn_unmap_entry*>(call->entries);
  std::vector<Range> plan;
  for (std::uint32_t i = 0; i < call->entry_count; ++i) {
    const Range range{entries[i].address, entries[i].length};
    call->failed_entry = i;
    if (range.address % kSmallEntry != 0 || range.length % kSmallEntry != 0 ||
        !va_space_.is_inside_range(range) || !va_space_.is_mapped(range)) {
      return nvidia::kInvalidAddress;
    }
    for (const auto& [start, there] : va_space_.overlapping(range)) {
      const bool cut = range.address % there.entry != 0 || range.length % there.entry != 0;
      if (!there.vattn || cut) return nvidia::kInvalidAddress;
    }
    for (const Range& earlier : plan) {
      if (overlap(earlier, range)) return nvidia::kInvalidAddress;
    }
    plan.push_back(range);
  }
  call->failed_entry = UVM_VATTN_NO_ENTRY;
  for (const Range& range : plan) va_space_.unmap(range);
  return nvidia::kOk;
}

}  // namespace pyvattn::emulation
