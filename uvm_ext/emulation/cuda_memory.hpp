// SPDX-License-Identifier: Apache-2.0
// Memory of the emulated CUDA devices: real pages behind real addresses.
//
// As strict as CUDA's documentation, and in one thing stricter: cuMemRelease of a
// handle that is still mapped is legal in CUDA (the memory lives until the last unmap)
// and refused here, since a driver of ours that did it would have lost count.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "drivers/libcuda.hpp"

namespace pyvattn::emulation {

constexpr std::size_t kGranularity = 2u << 20;

// One device's memory: a sparse memfd that never hands out the same offset twice.
class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t total);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // Fills what it allocates with 0xff, a NaN in every float type, so that a driver that
  // forgets to write zeros is caught. False where there is not enough memory left.
  bool allocate(std::size_t size, std::size_t* offset);
  void release(std::size_t offset, std::size_t size);
  // Bytes that another process is supposed to hold.
  void set_occupied(std::size_t bytes) { occupied_ = bytes; }

  int fd() const { return fd_; }
  std::size_t total() const { return total_; }
  std::size_t free() const;

 private:
  const std::size_t total_;
  const int fd_;
  std::size_t used_ = 0;
  std::size_t occupied_ = 0;
  std::size_t next_offset_ = 0;
};

class AddressSpace {
 public:
  AddressSpace(int devices, std::size_t bytes_per_device);
  ~AddressSpace();

  cuda::Result reserve(cuda::Pointer* address, std::size_t size, std::size_t alignment);
  cuda::Result free_reservation(cuda::Pointer address, std::size_t size);
  cuda::Result create(cuda::Handle* handle, std::size_t size,
                      const cuda::AllocationProperties& properties);
  cuda::Result release(cuda::Handle handle);
  cuda::Result map(cuda::Pointer address, std::size_t size, std::size_t offset,
                   cuda::Handle handle);
  cuda::Result unmap(cuda::Pointer address, std::size_t size);
  // Replaces the access of the devices that are named; others keep theirs.
  cuda::Result set_access(cuda::Pointer address, std::size_t size,
                          const std::vector<cuda::AccessDescriptor>& access);

  bool inside_reservation(cuda::Pointer address, std::size_t size) const;
  // Whether every byte is mapped and the device has access to it.
  bool is_accessible(cuda::Pointer address, std::size_t size, int device) const;
  // Whether kernels of `device` can be given access to memory of `owner`.
  bool can_reach(int device, int owner) const;
  // Devices are connected until this says otherwise.
  void connect(bool connected) { connected_ = connected; }
  // Takes everything that belongs to the device, mapped or not.
  void destroy(int device);

  DeviceMemory& device(int ordinal) { return *devices_.at(ordinal); }
  std::size_t reservations() const { return reservations_.size(); }
  std::size_t allocations() const { return allocations_.size(); }
  std::size_t mappings() const { return mappings_.size(); }

 private:
  struct Allocation {
    int device = 0;
    std::size_t size = 0;
    std::size_t offset = 0;
    int mappings = 0;
  };
  struct Mapping {
    std::size_t size = 0;
    cuda::Handle handle = 0;
    std::set<int> accessible_to;
  };
  using Mappings = std::map<cuda::Pointer, Mapping>;

  bool is_device(int ordinal) const;
  cuda::Result check_access(const Mapping& mapping, const cuda::AccessDescriptor& access) const;
  bool overlaps_mapping(cuda::Pointer address, std::size_t size) const;
  // The mappings that make up exactly this range, or nothing where it has holes, cuts
  // through one or leaves its reservation.
  std::vector<Mappings::iterator> whole_mappings(cuda::Pointer address, std::size_t size);

  std::vector<std::unique_ptr<DeviceMemory>> devices_;
  std::map<cuda::Pointer, std::size_t> reservations_;
  // Reservations come from one window and follow each other, which CUDA may do too: a
  // call that strays from one into the next is then caught. No address comes twice.
  cuda::Pointer window_ = 0;
  cuda::Pointer next_address_ = 0;
  std::map<cuda::Handle, Allocation> allocations_;
  Mappings mappings_;
  cuda::Handle next_handle_ = 0xE0000001;
  bool connected_ = true;
};

}  // namespace pyvattn::emulation
