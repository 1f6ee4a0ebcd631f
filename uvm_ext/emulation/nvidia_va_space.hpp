// SPDX-License-Identifier: Apache-2.0
// The address space of the emulated nvidia-uvm: what is mapped where, with page-table
// entries of which size.
//
// As NVIDIA's module does it (uvm_map_external.c), and in two things stricter: mapping
// one writable page over another, and unmapping where nothing is mapped, are refused. A
// driver of ours that did either would have lost count.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "drivers/driver.hpp"
#include "drivers/nvidia/status.hpp"
#include "emulation/cuda_memory.hpp"

namespace pyvattn::emulation {

constexpr std::size_t kSmallEntry = 64u << 10;
constexpr std::size_t kLargeEntry = 2u << 20;

// Physical memory of one device; it lives as long as anything refers to it.
struct PhysicalMemory {
  PhysicalMemory(DeviceMemory& device, std::size_t offset, std::size_t bytes, std::size_t granule)
      : device(device), offset(offset), bytes(bytes), granule(granule) {}
  ~PhysicalMemory() { device.release(offset, bytes); }
  PhysicalMemory(const PhysicalMemory&) = delete;
  PhysicalMemory& operator=(const PhysicalMemory&) = delete;

  DeviceMemory& device;
  const std::size_t offset;
  const std::size_t bytes;
  // What it is made of: no page-table entry that maps it is larger.
  const std::size_t granule;
};
using PhysicalMemoryPtr = std::shared_ptr<PhysicalMemory>;

struct Mapping {
  std::size_t length = 0;
  std::size_t entry = 0;
  // Null where CUDA mapped memory of its own.
  PhysicalMemoryPtr memory;
  std::size_t offset = 0;
  bool writable = false;
  // Made by the patched module's ioctls.
  bool vattn = false;
};

class VaSpace {
 public:
  using Status = nvidia::Status;
  using Mappings = std::map<Address, Mapping>;

  void add_range(const Range& range, unsigned long long context);
  // Removes those that begin in `within`.
  void remove_ranges(const Range& within);
  // Drops the ranges whose context is not `alive` any more.
  void drop_ranges(const std::function<bool(unsigned long long context)>& alive);
  // Wholly inside one: what ioctls ask for.
  bool is_inside_range(const Range& range) const;
  bool touches_range(const Range& range) const;

  // CUDA's own mappings: 2 MiB entries, writable.
  void note_cuda_mapping(const Range& range);
  void forget_mappings(const Range& range);

  // UVM_MAP_EXTERNAL_ALLOCATION. What was mapped is gone also where it fails late: with
  // `injected`, in place of the mapping itself.
  Status map(const Range& range, const PhysicalMemoryPtr& memory, std::size_t offset, bool writable,
             Status injected);
  // UVM_UNMAP_EXTERNAL.
  Status unmap(const Range& range);

  // Puts a mapping in place of whatever was there; the caller has checked everything.
  Status replace(const Range& range, const Mapping& mapping);
  // NV_ERR_INVALID_ADDRESS where a border of the range lies inside a page-table entry.
  Status split(const Range& range);
  // Every mapping that overlaps the range.
  std::map<Address, Mapping> overlapping(const Range& range) const;

  bool is_mapped(const Range& range) const;
  std::size_t mappings_of(const PhysicalMemory* memory) const;
  const Mappings& mappings() const { return mappings_; }

 private:
  struct ExternalRange {
    std::size_t length = 0;
    unsigned long long context = 0;
  };

  Status split_at(Address address);
  void erase(const Range& range);

  std::map<Address, ExternalRange> ranges_;
  Mappings mappings_;
};

}  // namespace pyvattn::emulation
