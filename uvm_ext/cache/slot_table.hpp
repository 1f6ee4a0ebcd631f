// Slots: which are live, what each has mapped, and which free one fits best.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "blocks/page_pool.hpp"

namespace pyvattn {

enum class SlotState : std::uint8_t {
  free,      // its pages, if any, are clean and wait for the next request
  live,      // belongs to a request
  released,  // its pages still hold the last request's data
  cleaning,  // its pages are being zeroed without holding the lock
};

// What step() reads of every slot, kept small and side by side, two in a cache line.
struct alignas(32) SlotHead {
  std::uint32_t generation = 0;  // from 1 on, once it was live
  std::uint32_t length = 0;
  std::uint32_t capacity = 0;
  std::uint32_t written = 0;  // the longest length of this request
  std::uint32_t claimed = 0;  // a length that a call asks for: its pages are not spare
  std::uint32_t stamp = 0;    // the last call to name it, to notice a slot named twice
  SlotState state = SlotState::free;
  // Its pages are being mapped or unmapped without holding the lock.
  bool in_flight = false;
};

struct SlotPages {
  // The private pages, row page by row page and within it arena by arena: the page
  // of arena `a` at row page `p` is pages[p * arenas + a].
  std::vector<PageNumber> pages;
  std::uint32_t dirty_row_pages = 0;
  std::uint64_t released_at = 0;
  // The length that its request was acquired for.
  std::uint32_t asked = 0;
  // What must have passed before its pages may be unmapped or handed on.
  FencePtr fence;
};

class SlotTable {
 public:
  SlotTable(std::uint32_t slots, std::uint32_t arenas)
      : arenas_(arenas), heads_(slots), pages_(slots) {
    by_pages_.reserve(slots);
  }

  SlotHead& head(std::uint32_t slot) { return heads_[slot]; }
  const SlotHead& head(std::uint32_t slot) const { return heads_[slot]; }
  SlotPages& pages(std::uint32_t slot) { return pages_[slot]; }
  const SlotPages& pages(std::uint32_t slot) const { return pages_[slot]; }

  // Side by side, for loops over many.
  SlotHead* heads() { return heads_.data(); }

  std::uint32_t size() const { return static_cast<std::uint32_t>(heads_.size()); }
  std::uint32_t row_pages(std::uint32_t slot) const {
    return static_cast<std::uint32_t>(pages_[slot].pages.size() / arenas_);
  }

  // Changes the state and keeps the books that depend on it.
  void set_state(std::uint32_t slot, SlotState state);
  // To be called around every change of a slot's pages.
  void forget_pages(std::uint32_t slot);
  void count_pages(std::uint32_t slot);

  enum class Among { all, ready };
  // The free slot with the fewest pages that suffice, unless they are far too many: a long
  // row is kept for a long request, and a short one is extended, or an empty slot begun,
  // so that rows grow as long as requests are. Slots in flight are passed over, and
  // among the ready so are those with a fence to wait for.
  std::optional<std::uint32_t> best_fit(std::uint32_t row_pages, Among among = Among::all) const;
  // Whether its fence has passed, or it has none.
  bool is_ready(std::uint32_t slot) const;
  // Free slots that have pages: the ready ones first, then as they were released.
  std::vector<std::uint32_t> free_with_pages() const;
  std::optional<std::uint32_t> find(SlotState state) const;

  // Pages of the slots in a state.
  std::uint64_t pages_in(SlotState state) const {
    return page_counts_[static_cast<std::size_t>(state)];
  }
  std::uint32_t slots_in(SlotState state) const;
  // Pages of free slots whose fence has not passed.
  std::uint64_t pages_fenced() const;

  std::size_t bookkeeping_bytes() const;

 private:
  using PagesAndSlot = std::pair<std::uint32_t, std::uint32_t>;

  // Where the free slots with at least so many row pages begin.
  std::vector<PagesAndSlot>::const_iterator first_with(std::uint32_t row_pages) const;

  const std::uint32_t arenas_;
  std::vector<SlotHead> heads_;
  std::vector<SlotPages> pages_;
  // Free slots by number of row pages, in order. Never more than there are slots, so
  // that what commits or rolls back needs no memory.
  std::vector<PagesAndSlot> by_pages_;
  std::uint64_t page_counts_[4] = {0, 0, 0, 0};
};

}  // namespace pyvattn
