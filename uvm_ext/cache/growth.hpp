// Growth: one transaction that puts private pages under slots, taking them from
// the page pool and, where that is short, from the tails that other slots can spare.
//
// plan() and commit() or roll_back() want the cache's lock; execute(), which makes
// the driver calls, does not: the slots concerned are marked in flight instead.
#pragma once

#include <cstdint>
#include <vector>

#include "blocks/page_pool.hpp"
#include "cache/slot_table.hpp"
#include "rows/arena.hpp"
#include "rows/geometry.hpp"

namespace pyvattn {

struct GrowthTarget {
  std::uint32_t slot = 0;
  // Private pages wanted in every arena's row; more than the slot has.
  std::uint32_t row_pages = 0;
};

// Row pages of a slot that are not needed now: all but the first `row_pages_kept`.
struct SpareTail {
  std::uint32_t slot = 0;
  std::uint32_t row_pages_kept = 0;
};

class Growth {
 public:
  Growth(Driver& driver, LimitAdaptor& limit, PagePool& pool, SlotTable& slots,
         const std::vector<ArenaPtr>& arenas, const Geometry& geometry)
      : driver_(driver),
        limit_(limit),
        pool_(pool),
        slots_(slots),
        arenas_(arenas),
        geometry_(geometry) {}

  // Takes at most `from_pool` pages from the pool and the rest from spare tails: whole
  // ones, the first of them first. A slot that gives has less capacity from here on: while the
  // lock is released, a step must not count on pages that are about to go. Throws
  // DriverOutOfMemory with nothing changed.
  void plan(const std::vector<GrowthTarget>& targets, std::uint64_t from_pool,
            const std::vector<SpareTail>& spare, const PageMath& math);
  // Unmaps the tails that were taken, then maps every new page. Throws DriverError
  // with the mappings as they were before; roll_back() must follow.
  void execute();
  void commit(const PageMath& math);
  void roll_back(const PageMath& math) noexcept;

  std::uint64_t pages_needed(const std::vector<GrowthTarget>& targets) const;
  // Pages that have left the pool and belong to no slot yet.
  std::uint64_t pages_in_flight() const;
  std::uint64_t pages_reclaimed() const;

 private:
  void take_tail(const SpareTail& spare);
  void take_tails(std::uint64_t pages, const std::vector<SpareTail>& spare);
  void fill_targets();
  void append_from_pool(std::uint32_t count, PageNumber after, std::vector<PageNumber>& run);
  void mark_in_flight(bool in_flight);
  void cut_tails();
  void take_back() noexcept;

  Driver& driver_;
  LimitAdaptor& limit_;
  PagePool& pool_;
  SlotTable& slots_;
  const std::vector<ArenaPtr>& arenas_;
  const Geometry& geometry_;

  std::vector<GrowthTarget> targets_;
  // New pages of each target, in the order of SlotPages::pages.
  std::vector<std::vector<PageNumber>> new_pages_;
  std::vector<Extent> extents_;
  // What is cut from which slot.
  std::vector<SpareTail> tails_;
  // The pages of the tails, and those of them that no target has taken.
  std::vector<Extent> donated_;
  std::vector<Extent> withheld_;
  std::vector<MapEntry> unmap_batch_;
  std::vector<MapEntry> map_batch_;
  std::vector<FencePtr> fences_;
  bool tails_unmapped_ = false;
  std::uint64_t allocated_before_ = 0;
};

// The mappings of row pages [first, first + pages.size() / arenas) of a slot, with
// neighbouring pages joined to one entry.
std::vector<MapEntry> map_entries(const PagePool& pool, const std::vector<ArenaPtr>& arenas,
                                  const Geometry& geometry, std::uint32_t slot,
                                  std::uint32_t first_row_page,
                                  const std::vector<PageNumber>& pages);

}  // namespace pyvattn
