// SPDX-License-Identifier: Apache-2.0
// The one interface through which memory is reserved, allocated and mapped.
//
// A driver holds no policy: it does what it is told, whole or not at all, and
// reports what went wrong. Nothing outside uvm_ext/drivers opens a device, makes
// an ioctl or calls libcuda.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace pyvattn {

using Address = std::uint64_t;

// Names one slab of one driver; never reused while the driver lives.
using SlabId = std::uint64_t;

struct Range {
  Address address = 0;
  std::size_t length = 0;
};

struct MapEntry {
  Address address = 0;
  std::size_t length = 0;
  SlabId slab = 0;
  std::size_t offset = 0;
};

// A point in the work of the device. Kernels that were submitted before it may
// still touch memory until it has passed.
class Fence {
 public:
  virtual ~Fence() = default;
  virtual bool passed() = 0;
  virtual void wait() = 0;
};
using FencePtr = std::shared_ptr<Fence>;

struct Capabilities {
  // One of the words users write: "host", "cumem", "stock-uvm", "patched".
  std::string name;
  // Ascending, each a power of two, in bytes.
  std::vector<std::size_t> page_sizes;
  // True where each page costs a call of its own, however long the run that is mapped (a
  // cuMem handle): neighbouring pages save nothing.
  bool call_per_page = false;
  // True where reserved addresses read as zeros while nothing is mapped there,
  // and map() replaces that backing, as unmap() puts it back, with no moment at
  // which a running kernel would fault. Only then can the tail guard be shared
  // instead of private.
  bool zero_backed = false;
  // True where a whole batch is one call to the operating system.
  bool batch_is_one_call = false;
  // DLPack's DLDeviceType and ordinal of the memory.
  std::int32_t dlpack_device_type = 1;
  std::int32_t dlpack_device_id = 0;
  // Ordinals of the other devices whose kernels and copies can reach what is mapped: of an
  // open driver those that were given access, else those that can be given it.
  std::vector<int> peers;
};

// Preconditions, for every implementation (CheckedDriver verifies them all):
//  - addresses, lengths and offsets are multiples of the page size that the
//    driver was created with, and lengths are not zero;
//  - map(): every range lies inside one reservation and is not mapped yet, also
//    not by an earlier entry of the batch; [offset, offset + length) lies inside
//    a slab that is allocated;
//  - unmap(): every entry says what is mapped there now (so that a failed batch
//    can be put back without a second set of books). An entry may be part of an
//    earlier one; entries whose addresses follow each other may be undone by one
//    call to the system;
//  - free_slab(): no part of the slab is mapped;
//  - release_reservation(): nothing in it is mapped;
//  - zero(): every byte of every range is mapped.
// Guarantees:
//  - the memory of a fresh slab reads as zeros;
//  - the device and each of capabilities().peers can reach what map() has mapped;
//  - a call that throws has changed nothing: a batch that fails in the middle is
//    rolled back first;
//  - every failure is a DriverError with operation, address, size and the status
//    by its own name; out of memory is a DriverOutOfMemory;
//  - calls may come from any thread, one at a time, except zero(), which may run
//    beside the others on ranges that are not being mapped or unmapped.
class Driver {
 public:
  virtual ~Driver() = default;

  virtual const Capabilities& capabilities() const = 0;
  virtual std::size_t page_size() const = 0;

  // Reserves `bytes` of addresses aligned to `alignment`, backed by nothing.
  virtual Address reserve(std::size_t bytes, std::size_t alignment) = 0;
  virtual void release_reservation(Address address) = 0;

  virtual SlabId allocate_slab(std::size_t bytes) = 0;
  virtual void free_slab(SlabId slab) = 0;

  virtual void map(const std::vector<MapEntry>& batch) = 0;
  virtual void unmap(const std::vector<MapEntry>& batch) = 0;

  // Writes zeros over mapped memory once `after` has passed (null: at once).
  // Returns the point at which the zeros are there (null: they already are).
  virtual FencePtr zero(const std::vector<Range>& batch, const FencePtr& after) = 0;
};
using DriverPtr = std::shared_ptr<Driver>;

}  // namespace pyvattn
