// SPDX-License-Identifier: Apache-2.0
#include "emulation/nvidia_va_space.hpp"

#include <sys/mman.h>

#include <iterator>

namespace pyvattn::emulation {
namespace {

using nvidia::Status;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

std::size_t entry_size(std::uint64_t alignments) {
  const std::uint64_t smallest = alignments & ~(alignments - 1);
  if (smallest >= kLargeEntry) return kLargeEntry;
  return smallest >= kSmallEntry ? kSmallEntry : 0;
}

bool map_nothing(const Range& range) {
  return ::mmap(pointer(range.address), range.length, PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
}

}  // namespace

void VaSpace::add_range(const Range& range, unsigned long long context) {
  ranges_[range.address] = {range.length, context};
}

void VaSpace::remove_ranges(const Range& within) {
  forget_mappings(within);
  ranges_.erase(ranges_.lower_bound(within.address),
                ranges_.lower_bound(within.address + within.length));
}

void VaSpace::drop_ranges(const std::function<bool(unsigned long long)>& alive) {
  for (auto range = ranges_.begin(); range != ranges_.end();) {
    if (alive(range->second.context)) {
      ++range;
      continue;
    }
    forget_mappings({range->first, range->second.length});
    range = ranges_.erase(range);
  }
}

bool VaSpace::is_inside_range(const Range& range) const {
  const auto next = ranges_.upper_bound(range.address);
  if (next == ranges_.begin() || range.length == 0) return false;
  const auto& [start, found] = *std::prev(next);
  const Address into = range.address - start;
  return into < found.length && range.length <= found.length - into;
}

bool VaSpace::touches_range(const Range& range) const {
  const auto next = ranges_.lower_bound(range.address + range.length);
  if (next == ranges_.begin()) return false;
  const auto& [start, found] = *std::prev(next);
  return start + found.length > range.address;
}

void VaSpace::note_cuda_mapping(const Range& range) {
  Mapping mapping;
  mapping.length = range.length;
  mapping.entry = kLargeEntry;
  mapping.writable = true;
  mappings_[range.address] = mapping;
}

void VaSpace::forget_mappings(const Range& range) {
  split(range);
  erase(range);
}

Status VaSpace::map(const Range& range, const PhysicalMemoryPtr& memory, std::size_t offset,
                    bool writable, Status injected) {
  if (!is_inside_range(range)) return nvidia::kInvalidAddress;
  for (const auto& [start, mapping] : overlapping(range)) {
    if (writable && mapping.memory && mapping.writable) return nvidia::kUvmAddressInUse;
  }
  const Status status = split(range);
  if (status != nvidia::kOk) return status;
  erase(range);
  map_nothing(range);
  if (injected != nvidia::kOk) return injected;
  if (memory == nullptr) return nvidia::kInvalidObjectHandle;
  if (offset > memory->bytes || range.length > memory->bytes - offset) {
    return nvidia::kInvalidOffset;
  }
  Mapping mapping;
  mapping.length = range.length;
  mapping.entry = entry_size(memory->granule | range.address | range.length | offset);
  mapping.memory = memory;
  mapping.offset = offset;
  mapping.writable = writable;
  return mapping.entry == 0 ? nvidia::kInvalidAddress : replace(range, mapping);
}

Status VaSpace::unmap(const Range& range) {
  if (!is_inside_range(range) || overlapping(range).empty()) return nvidia::kInvalidAddress;
  const Status status = split(range);
  if (status != nvidia::kOk) return status;
  erase(range);
  return map_nothing(range) ? nvidia::kOk : nvidia::kNoMemory;
}

Status VaSpace::replace(const Range& range, const Mapping& mapping) {
  erase(range);
  void* mapped = ::mmap(pointer(range.address), range.length,
                        mapping.writable ? PROT_READ | PROT_WRITE : PROT_READ,
                        MAP_SHARED | MAP_FIXED, mapping.memory->device.fd(),
                        static_cast<off_t>(mapping.memory->offset + mapping.offset));
  if (mapped == MAP_FAILED) return nvidia::kNoMemory;
  mappings_[range.address] = mapping;
  return nvidia::kOk;
}

Status VaSpace::split(const Range& range) {
  const Status status = split_at(range.address);
  return status == nvidia::kOk ? split_at(range.address + range.length) : status;
}

Status VaSpace::split_at(Address address) {
  auto next = mappings_.upper_bound(address);
  if (next == mappings_.begin()) return nvidia::kOk;
  auto& [start, lower] = *std::prev(next);
  const std::size_t into = address - start;
  if (into == 0 || into >= lower.length) return nvidia::kOk;
  if (address % lower.entry != 0) return nvidia::kInvalidAddress;
  Mapping upper = lower;
  upper.length -= into;
  upper.offset += into;
  lower.length = into;
  mappings_.emplace(address, upper);
  return nvidia::kOk;
}

void VaSpace::erase(const Range& range) {
  mappings_.erase(mappings_.lower_bound(range.address),
                  mappings_.lower_bound(range.address + range.length));
}

std::map<Address, Mapping> VaSpace::overlapping(const Range& range) const {
  auto first = mappings_.upper_bound(range.address);
  if (first != mappings_.begin()) --first;
  std::map<Address, Mapping> found;
  for (; first != mappings_.end() && first->first < range.address + range.length; ++first) {
    if (first->first + first->second.length > range.address) found.insert(*first);
  }
  return found;
}

bool VaSpace::is_mapped(const Range& range) const {
  Address next = range.address;
  for (const auto& [start, mapping] : overlapping(range)) {
    if (start > next) return false;
    next = start + mapping.length;
  }
  return next >= range.address + range.length;
}

std::size_t VaSpace::mappings_of(const PhysicalMemory* memory) const {
  std::size_t count = 0;
  for (const auto& [start, mapping] : mappings_) count += mapping.memory.get() == memory ? 1 : 0;
  return count;
}

}  // namespace pyvattn::emulation
