// SPDX-License-Identifier: Apache-2.0
// What lies behind reserved addresses while no page is mapped there: memory of ours that
// is zero, shared by all of them and mapped read-only.
//
// UVM cannot put a 64 KiB page-table entry where a 2 MiB one is (it answers
// NV_ERR_INVALID_ADDRESS), so each 2 MiB region is in one of two states: coarse, one
// 2 MiB entry, where nothing is mapped; or fine, 64 KiB entries, pages and zeros mixed.
//
// UVM replaces a mapping by taking it away and making the new one: in between, a kernel
// that reads there faults. So what is backed here must be out of reach of running
// kernels whenever it is replaced, and cannot serve as the tail guard.
#pragma once

#include <cstddef>

#include "drivers/driver.hpp"
#include "drivers/nvidia/fine_regions.hpp"
#include "drivers/nvidia/uvm_space.hpp"

namespace pyvattn {
namespace nvidia {

class ZeroBacking {
 public:
  // `fine`: kHugePage of zeroed memory in 64 KiB granules, or none where pages are 2 MiB
  // and no region ever becomes fine. `coarse`: `coarse_bytes` in 2 MiB granules.
  ZeroBacking(UvmSpace& uvm, const MemoryRef& fine, const MemoryRef& coarse,
              std::size_t coarse_bytes);

  // Zeros behind the whole of a new reservation. After a failure it must be forgotten.
  void cover(const Range& reservation);
  // Makes the regions that `range` covers only in part fine, so that pages can be mapped.
  void prepare(const Range& range);
  // Notes that pages with 64 KiB entries are mapped there now.
  void note_mapped(const Range& range);
  // Zeros again where pages were mapped. Where it fails, part of the range may be done.
  Answer restore(const Range& range) noexcept;
  // The reservation is given back.
  void forget(Address reservation) { fine_regions_.remove(reservation); }

 private:
  Answer make_fine(Address region) noexcept;
  Answer restore_part(const Range& range) noexcept;
  Answer restore_regions(Range range) noexcept;

  UvmSpace& uvm_;
  const MemoryRef fine_;
  const MemoryRef coarse_;
  const std::size_t coarse_bytes_;
  FineRegions fine_regions_;
};

}  // namespace nvidia
}  // namespace pyvattn
