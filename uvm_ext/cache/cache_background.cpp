// SPDX-License-Identifier: Apache-2.0
// Cleaning, and what the mapper thread does.
#include "cache/cache.hpp"

#include <algorithm>
#include <exception>
#include <utility>

#include "base/errors.hpp"
#include "base/stopwatch.hpp"

namespace pyvattn {

// Blocks that hold any token which the slot's request, or its last one, may have written.
std::uint32_t Cache::blocks_written(std::uint32_t slot) const {
  const std::uint32_t written = math_.pages_touched(slots_.head(slot).written);
  return std::min(std::max(written, slots_.moved(slot)), slots_.blocks(slot));
}

std::vector<Positions> Cache::dirty_positions(std::uint32_t slot) const {
  std::vector<Positions> dirty;
  const std::vector<BlockId>& blocks = rows_.blocks(slot);
  const std::uint32_t written = blocks_written(slot);
  for (std::uint32_t i = 0; i < blocks.size(); ++i) {
    if (blocks[i] == RowTable::kHole) continue;
    if (i >= written && !pool_->is_dirty(blocks[i])) continue;
    if (dirty.empty() || dirty.back().first + dirty.back().count < i) dirty.push_back({slot, i, 0});
    ++dirty.back().count;
  }
  return dirty;
}

// Zeroes a released slot's blocks, without the lock meanwhile.
void Cache::clean(std::uint32_t slot) {
  if (slots_.head(slot).lowest > 0) return clean_out(slot);
  std::vector<Range> ranges;
  for (const Positions& positions : dirty_positions(slot)) {
    const std::vector<Range> some = rows_.ranges(positions);
    ranges.insert(ranges.end(), some.begin(), some.end());
  }
  const FencePtr after = rows_.fence(slot);
  slots_.set_state(slot, SlotState::cleaning);
  FencePtr done;
  try {
    const Unlocked unlocked(mutex_);
    done = driver_->zero(ranges, after);
  } catch (...) {
    slots_.set_state(slot, SlotState::released);
    settled_.notify_all();
    throw;
  }
  rows_.set_fence(slot, std::move(done));
  for (BlockId block : rows_.blocks(slot)) pool_->mark_clean({block, 1});
  slots_.head(slot).written = 0;
  slots_.set_state(slot, SlotState::free);
  settled_.notify_all();
}

// Waits for what the background is at, cleans released slots at once and takes trimmed fronts
// away. The lock is released meanwhile: throws ClosedError where the cache was closed.
void Cache::settle() {
  drop_fronts();
  while (slots_.slots_in(SlotState::released) > 0) clean(slots_.first(SlotState::released));
  while (slots_.slots_in(SlotState::cleaning) > 0 || rows_.in_flight() > 0) settled_.wait(mutex_);
  check_usable();
}

// --- the background ---

void Cache::ask(std::uint32_t slot, std::uint32_t tokens) {
  std::uint32_t& wanted = slots_.wanted(slot);
  if (wanted == 0) wanted_slots_.push_back(slot);
  wanted = std::max(wanted, tokens);
}

void Cache::wake_mapper() {
  if (mapper_) mapper_->wake();
}

// For what the next step does not wait for.
void Cache::nudge_mapper() {
  if (mapper_) mapper_->nudge();
}

bool Cache::do_background_work() {
  const Lock lock(mutex_);
  if (closed_) return false;
  try {
    if (prefetch_some()) return true;
    const std::uint32_t released = cleanable_slot();
    if (released != SlotTable::kNone) {
      clean(released);
      return true;
    }
    if (drop_some_front() || give_back_some()) return true;
    return prepare_admission();
  } catch (const std::exception&) {
    // What the background cannot do, for want of the process's own memory as well, is
    // left to the call that needs it, which reports the failure.
    ++prefetch_failures_;
    return !wanted_slots_.empty();
  }
}

// Grows a few of the slots that were asked for: few enough that a step which needs
// blocks itself does not wait long for the driver.
bool Cache::prefetch_some() {
  constexpr std::size_t kEntriesAtOnce = 128;
  const std::size_t most = driver_->capabilities().batch_is_one_call
                               ? slots_.size()
                               : std::max<std::size_t>(1, kEntriesAtOnce / geometry_.arenas);
  std::vector<Target> targets;
  bool looked = false;
  while (!wanted_slots_.empty() && targets.size() < most) {
    const std::uint32_t slot = wanted_slots_.back();
    wanted_slots_.pop_back();
    const std::uint32_t tokens = std::exchange(slots_.wanted(slot), 0);
    const SlotHead& head = slots_.head(slot);
    looked = true;
    if (head.state == SlotState::live && !rows_.is_in_flight(slot) && tokens > head.capacity) {
      targets.push_back({slot, math_.pages_for(tokens)});
    }
  }
  if (!targets.empty()) {
    Stopwatch hidden(hidden_seconds_);
    if (!try_grow(targets, pool_->blocks_available(), From::background)) ++prefetch_failures_;
  }
  return looked;
}

// Where the budget's limit has fallen: gives back slabs that hold nothing, or unmaps one
// spare tail. False where that is not needed, or nothing is left.
bool Cache::give_back_some() {
  const std::uint64_t limit = budget_->limit();
  if (budget_->held() <= limit) return false;
  if (pool_->trim_to_limit(limit) > 0) return true;
  const std::vector<Tail> tails = spare_tails(1);
  if (tails.empty() || !rows_.is_ready(tails.front().slot)) return false;
  const Tail tail = tails.front();
  // While the lock is released, no step must count on blocks that are about to go.
  slots_.head(tail.slot).capacity = math_.capacity(tail.kept);
  unmap_tail(tail, From::background);
  return true;
}

// Gives one free slot the blocks of a typical request, if that takes none from other slots.
bool Cache::prepare_admission() {
  if (!std::exchange(admission_wanted_, false)) return false;
  const std::uint32_t blocks =
      math_.pages_for(std::min(geometry_.max_tokens, forecast_.tokens() + forecast_.growth()));
  const auto slot = slots_.best_fit(blocks);
  if (!slot || blocks <= slots_.blocks(*slot)) return false;
  const std::vector<Target> targets = {{*slot, blocks}};
  if (blocks_needed(targets) > pool_->blocks_available()) return false;
  Stopwatch hidden(hidden_seconds_);
  return try_grow(targets, pool_->blocks_available(), From::background);
}

}  // namespace pyvattn
