// SPDX-License-Identifier: Apache-2.0
// Slots that begin with the same blocks.
//
// Only whole blocks below both lengths are shared, and no length may fall below them again:
// nobody writes there. Nor are they zeroed while anybody else holds them. What depends on the
// number of holders is decided and done with the lock held.
#include <algorithm>
#include <string>
#include <unordered_set>

#include "base/errors.hpp"
#include "cache/cache.hpp"

namespace pyvattn {
namespace {

// A slot whose length may not fall below so many tokens. Without keep() that is as before.
class Sharing {
 public:
  Sharing(SlotTable& slots, std::uint32_t slot, std::uint32_t tokens)
      : slots_(slots),
        slot_(slot),
        generation_(slots.head(slot).generation),
        before_(slots.head(slot).lowest) {
    slots.head(slot).lowest = std::max(before_, tokens);
  }
  Sharing(const Sharing&) = delete;
  Sharing& operator=(const Sharing&) = delete;
  ~Sharing() {
    // The lock may have been released, and another request may have the slot now.
    SlotHead& head = slots_.head(slot_);
    const bool is_same = head.generation == generation_ && head.state == SlotState::live;
    if (!kept_ && is_same) head.lowest = before_;
  }
  void keep() { kept_ = true; }

 private:
  SlotTable& slots_;
  const std::uint32_t slot_;
  const std::uint32_t generation_;
  const std::uint32_t before_;
  bool kept_ = false;
};

}  // namespace

Fork Cache::fork(const SlotRef& ref, std::int64_t tokens, std::optional<std::uint32_t> row,
                 std::optional<std::uint64_t> written) {
  const std::uint32_t length = check_length(tokens);
  check_usable();
  const Lock one(forking_);
  const Lock lock(mutex_);
  check_usable();
  check_live(ref);
  // A fork says nothing about what requests are acquired for.
  const Forecast before = forecast_;
  const SlotLength request = {row ? take_row(*row, 0) : take_slot(0), length};
  forecast_ = before;
  const std::uint32_t slot = request.slot.index;
  std::uint32_t blocks = 0;
  try {
    blocks = share(ref, slot, length, written);
    raise_lowest(slot, std::min(gone_below(slot), length));
    const auto shared = static_cast<std::uint32_t>(
        Geometry::divide_up(blocks * geometry_.page_size, geometry_.token_bytes));
    Sharing fork(slots_, slot, shared);
    fork.keep();
    Sharing origin(slots_, ref.index, shared);
    if (!check_step(&request, 1).empty()) make_resident(&request, 1);
    origin.keep();
  } catch (...) {
    abandon(request.slot);
    throw;
  }
  finish_step(&request, 1);
  nudge_mapper();
  const std::uint64_t held =
      geometry_.is_ring() ? std::min(length, geometry_.ring_tokens) : std::uint64_t{length};
  return {request.slot, blocks * geometry_.page_size, held * geometry_.token_bytes};
}

// Maps the whole blocks of the first `length` tokens of a live slot in the row of another, in
// place of what that has, but none that lie before the window of the next token; returns where
// they end. The blocks of a ring are written again and again: nobody shares them.
std::uint32_t Cache::share(const SlotRef& from, std::uint32_t to, std::uint32_t length,
                           std::optional<std::uint64_t> written) {
  std::uint32_t slot = check_live(from);
  while (rows_.is_in_flight(slot) || rows_.is_in_flight(to)) settled_.wait(mutex_);
  check_usable();
  slot = check_live(from);
  if (length > slots_.head(slot).length) {
    throw LengthError("slot " + std::to_string(slot) + " has " +
                      std::to_string(slots_.head(slot).length) +
                      " tokens and cannot be forked at " + std::to_string(length));
  }
  const bool is_ring = geometry_.is_ring();
  std::uint32_t lowest = slots_.head(slot).lowest;
  if (is_ring && written) {
    lowest = lowest_after(std::min<std::uint64_t>(*written, slots_.head(slot).length));
  }
  if (length < gone_below(slot) || (is_ring && length < lowest)) check_lowest(slot, length);
  const std::uint32_t gone = std::max(slots_.trimmed(slot), before_window(length));
  if (is_ring) {
    slots_.trimmed(to) = gone;
    tokens_used_ -= gone;
    raise_lowest(to, lowest);
    return 0;
  }
  if (rewritten_) return 0;
  unmap_tail({to, 0}, From::foreground);
  const std::uint32_t front = std::max(behind_end(slot), whole_blocks(gone));
  const std::uint32_t blocks = whole_blocks(length);
  slots_.trimmed(to) = gone;
  tokens_used_ -= gone;
  if (blocks == 0) return 0;
  // From here on these blocks are needed.
  slots_.head(to).written = length;
  slots_.set_extent(to, front, front);
  slots_.head(to).capacity = math_.capacity(front);
  if (blocks == front) return blocks;
  RowBatch batch(*driver_, *pool_, rows_);
  batch.put(to, front, rows_.blocks(slot).data() + front, blocks - front);
  batch.seal();
  run(batch, From::foreground, live_in_flight_);
  return blocks;
}

void Cache::raise_lowest(std::uint32_t slot, std::uint32_t tokens) {
  std::uint32_t& lowest = slots_.head(slot).lowest;
  lowest = std::max(lowest, tokens);
}

// A released slot that can be cleaned without waiting for the device, or kNone; of those that
// are cleaned out only a few are asked.
std::uint32_t Cache::cleanable_slot() {
  constexpr int kMostLooks = 64;
  std::uint32_t slot = slots_.first(SlotState::released);
  for (int looks = 0; slot != SlotTable::kNone; ++looks) {
    if (slots_.head(slot).lowest == 0) return slot;
    if (looks < kMostLooks && rows_.is_ready(slot)) return slot;
    slot = slots_.next(SlotState::released, slot);
  }
  return SlotTable::kNone;
}

// Dirty blocks that nobody else holds.
std::vector<Positions> Cache::own_dirty_positions(const Positions& among) const {
  std::vector<Positions> own;
  for (std::uint32_t i = among.first; i < among.first + among.count; ++i) {
    const BlockId block = rows_.block(among.row, i);
    if (pool_->holders(block) == 1 && pool_->is_dirty(block)) own.push_back({among.row, i, 1});
  }
  return own;
}

// What a request wrote at positions [first, end) of its row is dirty.
void Cache::mark_written(std::uint32_t slot, std::uint32_t first, std::uint32_t end) {
  const std::uint32_t written = std::min(end, blocks_written(slot));
  for (std::uint32_t i = first; i < written; ++i) {
    if (rows_.block(slot, i) != RowTable::kHole) pool_->mark_dirty({rows_.block(slot, i), 1});
  }
}

// Empties the row of a released slot that shares blocks or lacks its front, so that it does not
// fit another request: what it alone holds is zeroed first, and the rest is for the last who
// lets go of it.
void Cache::clean_out(std::uint32_t slot) {
  const FencePtr after = rows_.fence(slot);
  mark_written(slot, 0, slots_.blocks(slot));
  slots_.set_state(slot, SlotState::cleaning);
  try {
    if (after) {
      const Unlocked unlocked(mutex_);
      after->wait();
    }
    zero_own_blocks({slot, 0, slots_.blocks(slot)});
    unmap_tail({slot, 0}, From::foreground);
  } catch (...) {
    slots_.set_state(slot, SlotState::released);
    settled_.notify_all();
    throw;
  }
  rows_.set_fence(slot, nullptr);
  slots_.set_extent(slot, 0, 0);
  SlotHead& head = slots_.head(slot);
  head.capacity = 0;
  head.written = 0;
  head.lowest = 0;
  slots_.set_state(slot, SlotState::free);
  settled_.notify_all();
}

// Others may let go of a block while the lock is released for the others: until none is left.
void Cache::zero_own_blocks(const Positions& positions) {
  while (true) {
    const std::vector<Positions> own = own_dirty_positions(positions);
    if (own.empty()) return;
    std::vector<Range> ranges;
    for (const Positions& each : own) {
      const std::vector<Range> some = rows_.ranges(each);
      ranges.insert(ranges.end(), some.begin(), some.end());
    }
    {
      const Unlocked unlocked(mutex_);
      const FencePtr done = driver_->zero(ranges, nullptr);
      if (done) done->wait();
    }
    for (const Positions& each : own) {
      pool_->mark_clean({rows_.block(each.row, each.first), 1});
    }
  }
}

// How much too often blocks are counted that several slots have: once is right, with the live
// slots where one of them has it.
Cache::Doubles Cache::doubles() const {
  Doubles doubles;
  if (pool_->further_holders() == 0) return doubles;
  std::unordered_set<BlockId> seen;
  for (const SlotState state : {SlotState::live, SlotState::released, SlotState::cleaning}) {
    std::uint64_t& count = state == SlotState::live ? doubles.live : doubles.released;
    for (std::uint32_t slot = slots_.first(state); slot != SlotTable::kNone;
         slot = slots_.next(state, slot)) {
      if (slots_.head(slot).lowest == 0) continue;
      for (const BlockId block : rows_.blocks(slot)) {
        if (pool_->holders(block) > 1) count += !seen.insert(block).second;
      }
    }
  }
  return doubles;
}

}  // namespace pyvattn
