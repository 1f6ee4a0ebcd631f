// SPDX-License-Identifier: Apache-2.0
// Slots: which are live, how many blocks each has, and which free one fits best.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/index_lists.hpp"
#include "rows/row_table.hpp"

namespace pyvattn {

enum class SlotState : std::uint8_t {
  free,      // its blocks, if any, are clean and wait for the next request
  live,      // belongs to a request
  released,  // its blocks still hold the last request's data
  cleaning,  // its blocks are being zeroed without holding the lock
};

// What step() reads of every slot, kept small and side by side, two in a cache line.
struct alignas(32) SlotHead {
  std::uint32_t generation = 0;  // from 1 on, once it was live
  std::uint32_t length = 0;
  std::uint32_t capacity = 0;
  std::uint32_t written = 0;  // the longest length of this request
  std::uint32_t claimed = 0;  // a length that a call asks for: its blocks are not spare
  std::uint32_t lowest = 0;   // no length below: tokens that others have too, or that are gone
  std::uint32_t stamp = 0;    // the last call to name it, to notice a slot named twice
  SlotState state = SlotState::free;
};

class SlotTable {
 public:
  static constexpr std::uint32_t kNone = IndexLists::kEnd;

  // One slot for each of the table's rows.
  explicit SlotTable(RowTable& rows);

  SlotHead& head(std::uint32_t slot) { return heads_[slot]; }
  const SlotHead& head(std::uint32_t slot) const { return heads_[slot]; }
  // Side by side, for loops over many.
  SlotHead* heads() { return heads_.data(); }
  std::uint32_t size() const { return static_cast<std::uint32_t>(heads_.size()); }

  // The length that its request was acquired for.
  std::uint32_t& asked(std::uint32_t slot) { return books_[slot].asked; }
  std::uint32_t asked(std::uint32_t slot) const { return books_[slot].asked; }
  // The length asked for in the background; zero: none.
  std::uint32_t& wanted(std::uint32_t slot) { return books_[slot].wanted; }

  // Where the blocks of a slot end, counted from its row's start, and where they begin: of live
  // slots alone the front may be gone. As of the last call of set_extent(), which follows every
  // change of the row.
  std::uint32_t blocks(std::uint32_t slot) const { return books_[slot].blocks; }
  std::uint32_t front(std::uint32_t slot) const { return books_[slot].front; }
  void set_extent(std::uint32_t slot, std::uint32_t front, std::uint32_t blocks);
  // Tokens at the front that nobody reads any more.
  std::uint32_t& trimmed(std::uint32_t slot) { return books_[slot].trimmed; }
  std::uint32_t trimmed(std::uint32_t slot) const { return books_[slot].trimmed; }
  // Where the last block ends that the slot had at its front before, and was not zeroed.
  std::uint32_t& moved(std::uint32_t slot) { return books_[slot].moved; }
  std::uint32_t moved(std::uint32_t slot) const { return books_[slot].moved; }
  void set_state(std::uint32_t slot, SlotState state);

  enum class Among { all, ready };
  // The free slot with the fewest blocks that suffice, unless they are far too many: a long
  // row is kept for a long request, and a short one is extended, or an empty slot begun,
  // so that rows grow as long as requests are. Slots in flight are passed over, and
  // among the ready so are those with a fence to wait for, of which only a few are asked.
  std::optional<std::uint32_t> best_fit(std::uint32_t blocks, Among among = Among::all) const;

  // The slots of a state in the order in which they entered it, free ones only where they
  // have blocks: first(), then next() of each until kNone.
  std::uint32_t first(SlotState state) const { return by_state_.front(list_of(state)); }
  std::uint32_t next(SlotState state, std::uint32_t slot) const {
    return by_state_.next(list_of(state), slot);
  }
  // The first becomes the last.
  void rotate(SlotState state) { by_state_.rotate(list_of(state)); }

  // Slots of a state, and the blocks they have.
  std::uint32_t slots_in(SlotState state) const { return slot_counts_[list_of(state)]; }
  std::uint64_t blocks_in(SlotState state) const { return block_counts_[list_of(state)]; }
  // Blocks of free slots whose fence has not passed.
  std::uint64_t blocks_fenced() const;

  std::size_t bookkeeping_bytes() const;

 private:
  struct Books {
    std::uint32_t blocks = 0;
    std::uint32_t front = 0;
    std::uint32_t trimmed = 0;
    std::uint32_t moved = 0;
    std::uint32_t asked = 0;
    std::uint32_t wanted = 0;
  };

  std::uint32_t held(std::uint32_t slot) const { return books_[slot].blocks - books_[slot].front; }
  static std::uint32_t list_of(SlotState state) { return static_cast<std::uint32_t>(state); }
  void enter(std::uint32_t slot);
  void leave(std::uint32_t slot);
  std::uint32_t length_from(std::uint32_t blocks) const;
  std::uint32_t length_below(std::uint32_t blocks) const;
  template <typename Fits>
  std::uint32_t fitting(std::uint32_t blocks, const Fits& fits) const;

  RowTable& rows_;
  std::vector<SlotHead> heads_;
  std::vector<Books> books_;
  IndexLists by_state_;
  // The free slots, by how many blocks they have; a bit for each list that is not empty.
  IndexLists by_blocks_;
  std::vector<std::uint64_t> lengths_;
  std::uint32_t slot_counts_[4] = {0, 0, 0, 0};
  std::uint64_t block_counts_[4] = {0, 0, 0, 0};
};

}  // namespace pyvattn
