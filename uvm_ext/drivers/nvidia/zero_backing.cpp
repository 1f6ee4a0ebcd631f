// SPDX-License-Identifier: Apache-2.0
#include "drivers/nvidia/zero_backing.hpp"

#include <algorithm>

namespace pyvattn {
namespace nvidia {
namespace {

// The regions that lie wholly inside the range; empty where there is none.
Range whole_regions(const Range& range) {
  const Address first = region_of(range.address + kHugePage - 1);
  const Address end = region_of(range.address + range.length);
  return {first, end > first ? static_cast<std::size_t>(end - first) : 0};
}

}  // namespace

ZeroBacking::ZeroBacking(UvmSpace& uvm, const MemoryRef& fine, const MemoryRef& coarse,
                         std::size_t coarse_bytes)
    : uvm_(uvm), fine_(fine), coarse_(coarse), coarse_bytes_(coarse_bytes) {}

void ZeroBacking::cover(const Range& reservation) {
  fine_regions_.add(reservation);
  check(restore_regions(reservation), "reserve (UVM_MAP_EXTERNAL_ALLOCATION of zeros)",
        reservation.address, reservation.length);
}

void ZeroBacking::prepare(const Range& range) {
  const Address end = range.address + range.length;
  const Address head = region_of(range.address);
  const Address tail = region_of(end - 1);
  const bool head_in_part = range.address != head || end < head + kHugePage;
  const bool tail_in_part = end != tail + kHugePage;
  if (head_in_part) {
    check(make_fine(head), "map (UVM_MAP_EXTERNAL_ALLOCATION of zeros)", head, kHugePage);
  }
  if (tail_in_part && tail != head) {
    check(make_fine(tail), "map (UVM_MAP_EXTERNAL_ALLOCATION of zeros)", tail, kHugePage);
  }
}

void ZeroBacking::note_mapped(const Range& range) { fine_regions_.set(whole_regions(range), true); }

Answer ZeroBacking::restore(const Range& range) noexcept {
  const Address end = range.address + range.length;
  const Range whole = whole_regions(range);
  if (whole.length == 0) {
    const Address border = region_of(end - 1);
    if (border <= range.address) return restore_part(range);
    const Answer answer = restore_part({range.address, border - range.address});
    return answer.ok() ? restore_part({border, end - border}) : answer;
  }
  Answer answer = restore_part({range.address, whole.address - range.address});
  if (answer.ok()) answer = restore_regions(whole);
  const Address tail = whole.address + whole.length;
  if (answer.ok()) answer = restore_part({tail, end - tail});
  return answer;
}

Answer ZeroBacking::make_fine(Address region) noexcept {
  if (fine_regions_.contains(region)) return {};
  const Answer answer = uvm_.map({region, kHugePage}, fine_, 0, kReadOnly);
  if (answer.ok()) {
    fine_regions_.set({region, kHugePage}, true);
  } else {
    // UVM took the coarse zeros away before it failed.
    uvm_.map({region, kHugePage}, coarse_, 0, kReadOnly);
  }
  return answer;
}

Answer ZeroBacking::restore_part(const Range& range) noexcept {
  if (range.length == 0) return {};
  return uvm_.map(range, fine_, range.address % kHugePage, kReadOnly);
}

Answer ZeroBacking::restore_regions(Range range) noexcept {
  while (range.length > 0) {
    const std::size_t bytes = std::min(range.length, coarse_bytes_);
    const Answer answer = uvm_.map({range.address, bytes}, coarse_, 0, kReadOnly);
    if (!answer.ok()) return answer;
    fine_regions_.set({range.address, bytes}, false);
    range.address += bytes;
    range.length -= bytes;
  }
  return {};
}

}  // namespace nvidia
}  // namespace pyvattn
