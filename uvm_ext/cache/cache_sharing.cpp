// SPDX-License-Identifier: Apache-2.0
// Slots that begin with the same blocks.
//
// Only whole blocks below both lengths are shared, and no length may fall below them again:
// nobody writes there. Nor are they zeroed while anybody else holds them. What depends on the
// number of holders is decided and done with the lock held.
#include <algorithm>
#include <string>
#include <unordered_set>
#include <utility>

#include "base/errors.hpp"
#include "cache/cache.hpp"

namespace pyvattn {
namespace {

// A slot that shares so many tokens. Without keep() it shares what it did before.
class Sharing {
 public:
  Sharing(SlotTable& slots, std::uint32_t& sharing, std::uint32_t slot, std::uint32_t tokens)
      : slots_(slots),
        sharing_(sharing),
        slot_(slot),
        generation_(slots.head(slot).generation),
        before_(slots.head(slot).shared) {
    set(std::max(before_, tokens));
  }
  Sharing(const Sharing&) = delete;
  Sharing& operator=(const Sharing&) = delete;
  ~Sharing() {
    // The lock may have been released, and another request may have the slot now.
    const SlotHead& head = slots_.head(slot_);
    const bool is_same = head.generation == generation_ && head.state == SlotState::live;
    if (!kept_ && is_same) set(before_);
  }
  void keep() { kept_ = true; }

 private:
  void set(std::uint32_t tokens) {
    std::uint32_t& shared = slots_.head(slot_).shared;
    sharing_ += (tokens > 0) - (shared > 0);
    shared = tokens;
  }

  SlotTable& slots_;
  std::uint32_t& sharing_;
  const std::uint32_t slot_;
  const std::uint32_t generation_;
  const std::uint32_t before_;
  bool kept_ = false;
};

}  // namespace

Fork Cache::fork(const SlotRef& ref, std::int64_t tokens) {
  const std::uint32_t length = check_length(tokens);
  check_usable();
  const Lock one(forking_);
  const Lock lock(mutex_);
  check_usable();
  check_live(ref);
  // A fork says nothing about what requests are acquired for.
  const Forecast before = forecast_;
  const SlotLength request = {take_slot(0), length};
  forecast_ = before;
  const std::uint32_t slot = request.slot.index;
  std::uint32_t blocks = 0;
  try {
    blocks = share(ref, slot, length);
    const auto shared = static_cast<std::uint32_t>(
        Geometry::divide_up(blocks * geometry_.page_size, geometry_.token_bytes));
    Sharing fork(slots_, sharing_, slot, shared);
    fork.keep();
    Sharing origin(slots_, sharing_, ref.index, shared);
    if (!check_step(&request, 1).empty()) make_resident(&request, 1);
    origin.keep();
  } catch (...) {
    abandon(request.slot);
    throw;
  }
  finish_step(&request, 1);
  nudge_mapper();
  return {request.slot, blocks * geometry_.page_size, length * geometry_.token_bytes};
}

// Maps the whole blocks of the first `length` tokens of a live slot in the row of another, in
// place of what that has; returns how many.
std::uint32_t Cache::share(const SlotRef& from, std::uint32_t to, std::uint32_t length) {
  std::uint32_t slot = check_live(from);
  while (rows_.is_in_flight(slot) || rows_.is_in_flight(to)) settled_.wait(mutex_);
  check_usable();
  slot = check_live(from);
  if (length > slots_.head(slot).length) {
    throw LengthError("slot " + std::to_string(slot) + " has " +
                      std::to_string(slots_.head(slot).length) +
                      " tokens and cannot be forked at " + std::to_string(length));
  }
  unmap_tail({to, 0}, From::foreground);
  const auto blocks =
      static_cast<std::uint32_t>(length * geometry_.token_bytes / geometry_.page_size);
  if (blocks == 0) return 0;
  RowBatch batch(*driver_, *pool_, rows_);
  batch.put(to, 0, rows_.blocks(slot).data(), blocks);
  batch.seal();
  run(batch, From::foreground, live_in_flight_);
  // From here on these blocks are needed.
  slots_.head(to).written = length;
  return blocks;
}

// A released slot that can be cleaned without waiting for the device, or kNone; of those that
// share blocks only a few are asked.
std::uint32_t Cache::cleanable_slot() {
  constexpr int kMostLooks = 64;
  std::uint32_t slot = slots_.first(SlotState::released);
  for (int looks = 0; slot != SlotTable::kNone; ++looks) {
    if (slots_.head(slot).shared == 0) return slot;
    if (looks < kMostLooks && rows_.is_ready(slot)) return slot;
    slot = slots_.next(SlotState::released, slot);
  }
  return SlotTable::kNone;
}

// Dirty blocks of a slot that nobody else holds.
std::vector<Positions> Cache::own_dirty_positions(std::uint32_t slot) const {
  std::vector<Positions> own;
  const std::vector<BlockId>& blocks = rows_.blocks(slot);
  for (std::uint32_t i = 0; i < blocks.size(); ++i) {
    if (pool_->is_dirty(blocks[i]) && pool_->holders(blocks[i]) == 1) own.push_back({slot, i, 1});
  }
  return own;
}

// Empties the row of a released slot that shares blocks: what it alone holds is zeroed first,
// and the rest is for the last who lets go of it.
void Cache::clean_shared(std::uint32_t slot) {
  const FencePtr after = rows_.fence(slot);
  const std::uint32_t written = blocks_written(slot);
  for (std::uint32_t i = 0; i < written; ++i) pool_->mark_dirty({rows_.block(slot, i), 1});
  slots_.set_state(slot, SlotState::cleaning);
  try {
    zero_own_blocks(slot, after);
    unmap_tail({slot, 0}, From::foreground);
  } catch (...) {
    slots_.set_state(slot, SlotState::released);
    settled_.notify_all();
    throw;
  }
  rows_.set_fence(slot, nullptr);
  SlotHead& head = slots_.head(slot);
  head.written = 0;
  head.shared = 0;
  --sharing_;
  slots_.set_state(slot, SlotState::free);
  settled_.notify_all();
}

// Others may let go of a block while the lock is released for the others: until none is left.
void Cache::zero_own_blocks(std::uint32_t slot, const FencePtr& after) {
  if (after) {
    const Unlocked unlocked(mutex_);
    after->wait();
  }
  while (true) {
    const std::vector<Positions> own = own_dirty_positions(slot);
    if (own.empty()) return;
    std::vector<Range> ranges;
    for (const Positions& positions : own) {
      const std::vector<Range> some = rows_.ranges(positions);
      ranges.insert(ranges.end(), some.begin(), some.end());
    }
    {
      const Unlocked unlocked(mutex_);
      const FencePtr done = driver_->zero(ranges, nullptr);
      if (done) done->wait();
    }
    for (const Positions& each : own) pool_->mark_clean({rows_.block(slot, each.first), 1});
  }
}

// How much too often blocks are counted that several slots have: once is right, with the live
// slots where one of them has it.
Cache::Doubles Cache::doubles() const {
  Doubles doubles;
  if (sharing_ == 0) return doubles;
  std::unordered_set<BlockId> seen;
  for (const SlotState state : {SlotState::live, SlotState::released, SlotState::cleaning}) {
    std::uint64_t& count = state == SlotState::live ? doubles.live : doubles.released;
    for (std::uint32_t slot = slots_.first(state); slot != SlotTable::kNone;
         slot = slots_.next(state, slot)) {
      if (slots_.head(slot).shared == 0) continue;
      for (const BlockId block : rows_.blocks(slot)) {
        if (pool_->holders(block) > 1) count += !seen.insert(block).second;
      }
    }
  }
  return doubles;
}

}  // namespace pyvattn
