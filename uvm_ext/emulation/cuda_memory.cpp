// SPDX-License-Identifier: Apache-2.0
#include "emulation/cuda_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <system_error>

namespace pyvattn::emulation {
namespace {

constexpr off_t kFileSize = off_t{1} << 46;
#ifdef __SANITIZE_THREAD__
// ThreadSanitizer leaves a program little room beside its shadow.
constexpr std::size_t kWindow = std::size_t{1} << 38;
#else
constexpr std::size_t kWindow = std::size_t{1} << 44;
#endif

void* pointer(cuda::Pointer address) { return reinterpret_cast<void*>(address); }

bool is_granular(std::size_t value) { return value % kGranularity == 0; }

void* map_nothing(void* where, std::size_t size, int flags) {
  return ::mmap(where, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
}

int make_file() {
  const int fd = ::memfd_create("pyvattn-emulated-cuda", MFD_CLOEXEC);
  if (fd < 0 || ::ftruncate(fd, kFileSize) != 0) {
    throw std::system_error(errno, std::generic_category(), "memfd of the emulated device");
  }
  return fd;
}

}  // namespace

DeviceMemory::DeviceMemory(std::size_t total) : total_(total), fd_(make_file()) {}

DeviceMemory::~DeviceMemory() { ::close(fd_); }

std::size_t DeviceMemory::free() const {
  const std::size_t taken = used_ + occupied_;
  return taken < total_ ? total_ - taken : 0;
}

bool DeviceMemory::allocate(std::size_t size, std::size_t* offset) {
  if (size > free()) return false;
  const auto start = static_cast<off_t>(next_offset_);
  void* memory = ::mmap(nullptr, size, PROT_WRITE, MAP_SHARED, fd_, start);
  if (memory == MAP_FAILED) return false;
  std::memset(memory, 0xff, size);
  ::munmap(memory, size);
  *offset = next_offset_;
  next_offset_ += size;
  used_ += size;
  return true;
}

void DeviceMemory::release(std::size_t offset, std::size_t size) {
  ::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
              static_cast<off_t>(size));
  used_ -= size;
}

AddressSpace::AddressSpace(int devices, std::size_t bytes_per_device) {
  void* window = map_nothing(nullptr, kWindow, 0);
  if (window == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(), "addresses of the emulated devices");
  }
  window_ = reinterpret_cast<cuda::Pointer>(window);
  next_address_ = window_;
  for (int i = 0; i < devices; ++i) {
    devices_.push_back(std::make_unique<DeviceMemory>(bytes_per_device));
  }
}

AddressSpace::~AddressSpace() { ::munmap(pointer(window_), kWindow); }

bool AddressSpace::is_device(int ordinal) const {
  return ordinal >= 0 && static_cast<std::size_t>(ordinal) < devices_.size();
}

cuda::Result AddressSpace::reserve(cuda::Pointer* address, std::size_t size,
                                   std::size_t alignment) {
  if (size == 0 || !is_granular(size) || (alignment & (alignment - 1)) != 0) {
    return cuda::kInvalidValue;
  }
  alignment = std::max(alignment, kGranularity);
  const cuda::Pointer start = (next_address_ + alignment - 1) / alignment * alignment;
  const cuda::Pointer end = window_ + kWindow;
  if (start < next_address_ || start > end || size > end - start) return cuda::kOutOfMemory;
  next_address_ = start + size;
  reservations_.emplace(start, size);
  *address = start;
  return cuda::kSuccess;
}

cuda::Result AddressSpace::free_reservation(cuda::Pointer address, std::size_t size) {
  const auto found = reservations_.find(address);
  if (found == reservations_.end() || found->second != size || overlaps_mapping(address, size)) {
    return cuda::kInvalidValue;
  }
  reservations_.erase(found);
  return cuda::kSuccess;
}

cuda::Result AddressSpace::create(cuda::Handle* handle, std::size_t size,
                                  const cuda::AllocationProperties& properties) {
  if (size == 0 || !is_granular(size) || properties.type != cuda::kAllocationPinned ||
      properties.location.type != cuda::kLocationDevice) {
    return cuda::kInvalidValue;
  }
  if (!is_device(properties.location.id)) return cuda::kInvalidDevice;
  Allocation allocation{properties.location.id, size, 0, 0};
  if (!device(allocation.device).allocate(size, &allocation.offset)) return cuda::kOutOfMemory;
  *handle = next_handle_++;
  allocations_.emplace(*handle, allocation);
  return cuda::kSuccess;
}

cuda::Result AddressSpace::release(cuda::Handle handle) {
  const auto found = allocations_.find(handle);
  if (found == allocations_.end() || found->second.mappings > 0) return cuda::kInvalidValue;
  device(found->second.device).release(found->second.offset, found->second.size);
  allocations_.erase(found);
  return cuda::kSuccess;
}

bool AddressSpace::inside_reservation(cuda::Pointer address, std::size_t size) const {
  auto next = reservations_.upper_bound(address);
  if (next == reservations_.begin()) return false;
  const auto& [start, length] = *std::prev(next);
  return address - start <= length && size <= length - (address - start);
}

bool AddressSpace::overlaps_mapping(cuda::Pointer address, std::size_t size) const {
  const auto next = mappings_.lower_bound(address);
  if (next != mappings_.end() && next->first < address + size) return true;
  if (next == mappings_.begin()) return false;
  const auto& [start, mapping] = *std::prev(next);
  return start + mapping.size > address;
}

cuda::Result AddressSpace::map(cuda::Pointer address, std::size_t size, std::size_t offset,
                               cuda::Handle handle) {
  const auto found = allocations_.find(handle);
  // CUDA maps a handle from its first byte only.
  if (found == allocations_.end() || offset != 0 || size == 0 || size > found->second.size ||
      !is_granular(address) || !is_granular(size) || !inside_reservation(address, size) ||
      overlaps_mapping(address, size)) {
    return cuda::kInvalidValue;
  }
  Allocation& allocation = found->second;
  void* mapped = ::mmap(pointer(address), size, PROT_NONE, MAP_SHARED | MAP_FIXED,
                        device(allocation.device).fd(), static_cast<off_t>(allocation.offset));
  if (mapped == MAP_FAILED) return cuda::kOutOfMemory;
  ++allocation.mappings;
  mappings_.emplace(address, Mapping{size, handle, {}});
  return cuda::kSuccess;
}

std::vector<AddressSpace::Mappings::iterator> AddressSpace::whole_mappings(cuda::Pointer address,
                                                                           std::size_t size) {
  if (!inside_reservation(address, size)) return {};
  std::vector<Mappings::iterator> found;
  cuda::Pointer next = address;
  while (next < address + size) {
    const auto mapping = mappings_.find(next);
    if (mapping == mappings_.end()) return {};
    found.push_back(mapping);
    next += mapping->second.size;
  }
  return next == address + size ? found : std::vector<Mappings::iterator>{};
}

cuda::Result AddressSpace::unmap(cuda::Pointer address, std::size_t size) {
  const auto whole = whole_mappings(address, size);
  if (whole.empty()) return cuda::kInvalidValue;
  if (map_nothing(pointer(address), size, MAP_FIXED) == MAP_FAILED) return cuda::kOutOfMemory;
  for (const auto& mapping : whole) {
    --allocations_.at(mapping->second.handle).mappings;
    mappings_.erase(mapping);
  }
  return cuda::kSuccess;
}

bool AddressSpace::can_reach(int device, int owner) const {
  return is_device(device) && is_device(owner) && (device == owner || connected_);
}

cuda::Result AddressSpace::check_access(const Mapping& mapping,
                                        const cuda::AccessDescriptor& access) const {
  if (access.flags != cuda::kAccessReadWrite || access.location.type != cuda::kLocationDevice) {
    return cuda::kInvalidValue;
  }
  const int owner = allocations_.at(mapping.handle).device;
  return can_reach(access.location.id, owner) ? cuda::kSuccess : cuda::kInvalidDevice;
}

cuda::Result AddressSpace::set_access(cuda::Pointer address, std::size_t size,
                                      const std::vector<cuda::AccessDescriptor>& access) {
  const auto whole = whole_mappings(address, size);
  if (whole.empty() || access.empty()) return cuda::kInvalidValue;
  for (const auto& mapping : whole) {
    for (const cuda::AccessDescriptor& each : access) {
      const cuda::Result result = check_access(mapping->second, each);
      if (result != cuda::kSuccess) return result;
    }
  }
  if (::mprotect(pointer(address), size, PROT_READ | PROT_WRITE) != 0) return cuda::kOutOfMemory;
  for (const auto& mapping : whole) {
    for (const cuda::AccessDescriptor& each : access) {
      mapping->second.accessible_to.insert(each.location.id);
    }
  }
  return cuda::kSuccess;
}

bool AddressSpace::is_accessible(cuda::Pointer address, std::size_t size, int device) const {
  auto mapping = mappings_.upper_bound(address);
  if (mapping == mappings_.begin()) return false;
  --mapping;
  cuda::Pointer next = address;
  while (mapping != mappings_.end() && mapping->first <= next &&
         mapping->second.accessible_to.count(device) > 0) {
    next = mapping->first + mapping->second.size;
    if (next >= address + size) return true;
    ++mapping;
  }
  return false;
}

void AddressSpace::destroy(int ordinal) {
  for (auto mapping = mappings_.begin(); mapping != mappings_.end();) {
    Allocation& allocation = allocations_.at(mapping->second.handle);
    if (allocation.device != ordinal) {
      ++mapping;
      continue;
    }
    map_nothing(pointer(mapping->first), mapping->second.size, MAP_FIXED);
    --allocation.mappings;
    mapping = mappings_.erase(mapping);
  }
  for (auto allocation = allocations_.begin(); allocation != allocations_.end();) {
    const Allocation& found = allocation->second;
    if (found.device != ordinal) {
      ++allocation;
      continue;
    }
    device(ordinal).release(found.offset, found.size);
    allocation = allocations_.erase(allocation);
  }
}

}  // namespace pyvattn::emulation
