// SPDX-License-Identifier: Apache-2.0
// What a request asks of a cache: acquire, step, prefetch, release.
#include "cache/cache.hpp"

#include <algorithm>
#include <chrono>
#include <exception>
#include <string>
#include <utility>

#include "base/errors.hpp"
#include "base/stopwatch.hpp"
#include "cache/exclusive.hpp"
#include "drivers/both_fences.hpp"

namespace pyvattn {
// A free slot whose blocks are no longer in use. The lock is released while waiting for
// one: other threads may release more meanwhile, or take what came free.
std::uint32_t Cache::ready_slot(std::uint32_t blocks) {
  while (true) {
    const std::optional<std::uint32_t> slot = choose_slot(blocks);
    if (slot && rows_.is_ready(*slot)) return *slot;
    if (slot) {
      const FencePtr fence = rows_.fence(*slot);
      {
        const Unlocked unlocked(mutex_);
        fence->wait();
      }
      check_usable();
    } else if (slots_.slots_in(SlotState::live) < slots_.size()) {
      // What is not live is being cleaned or moved.
      settle();
    } else {
      throw OutOfSlots("all " + std::to_string(slots_.size()) +
                       " slots are live: release() one, or open the cache with more max_slots");
    }
  }
}

// The slot that fits best. Where the device still uses it: one that is ready, unless
// the blocks which that one lacks would have to be waited for as well.
std::optional<std::uint32_t> Cache::choose_slot(std::uint32_t blocks) {
  const std::optional<std::uint32_t> best = slots_.best_fit(blocks);
  if (!best || rows_.is_ready(*best)) return best;
  const auto ready = slots_.best_fit(blocks, SlotTable::Among::ready);
  if (!ready) return best;
  const std::uint32_t own = slots_.blocks(*ready);
  const std::uint32_t lacking = blocks - std::min(blocks, own);
  const std::uint64_t in_pool = pool_->blocks_available();
  if (lacking <= in_pool) return ready;
  return lacking + own <= in_pool + spare_blocks() - slots_.blocks_fenced() ? ready : best;
}

SlotRef Cache::take_slot(std::uint32_t tokens) {
  const std::uint32_t expected =
      tokens > 0 ? std::min(geometry_.max_tokens, tokens + forecast_.growth()) : 0;
  return begin_request(ready_slot(math_.pages_for(expected)), tokens);
}

// The slot of that row, once nobody uses its blocks any more. It must not be live.
SlotRef Cache::take_row(std::uint32_t row, std::uint32_t tokens) {
  while (slots_.head(row).state != SlotState::free || !rows_.is_ready(row) ||
         rows_.is_in_flight(row)) {
    check_usable();
    const SlotState state = slots_.head(row).state;
    if (state == SlotState::live) {
      throw SlotError("slot " + std::to_string(row) + " is live: release() it first");
    }
    const FencePtr fence = rows_.fence(row);
    if (rows_.is_in_flight(row) || state == SlotState::cleaning) {
      settled_.wait(mutex_);
    } else if (state == SlotState::released) {
      clean(row);
    } else {
      const Unlocked unlocked(mutex_);
      fence->wait();
    }
  }
  check_usable();
  return begin_request(row, tokens);
}

SlotRef Cache::begin_request(std::uint32_t slot, std::uint32_t tokens) {
  slots_.asked(slot) = tokens;
  rows_.set_fence(slot, nullptr);
  slots_.set_state(slot, SlotState::live);
  SlotHead& head = slots_.head(slot);
  ++head.generation;
  head.length = 0;
  head.written = 0;
  head.claimed = 0;
  slots_.trimmed(slot) = 0;
  slots_.moved(slot) = 0;
  if (strict_) poison(slot);
  forecast_.acquired(tokens);
  admission_wanted_ = true;
  return {slot, head.generation};
}

SlotRef Cache::acquire(std::int64_t tokens, std::optional<std::uint32_t> row) {
  const std::uint32_t length = check_length(tokens);
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  const SlotRef slot = row ? take_row(*row, length) : take_slot(length);
  nudge_mapper();
  return slot;
}

// Takes the request's blocks out of use. What it wrote is dirty from here on: `written` says
// how far, and clean() looks at the blocks themselves, which are in no cache by now.
void Cache::end_request(std::uint32_t slot, FencePtr after) {
  SlotHead& head = slots_.head(slot);
  tokens_used_ += slots_.trimmed(slot);
  tokens_used_ -= head.length;
  head.length = 0;
  const auto behind = behind_.find(slot);
  if (behind != behind_.end()) {
    for (const Behind& each : behind->second) after = both(std::move(after), each.after);
    behind_.erase(behind);
  }
  rows_.set_fence(slot, std::move(after));
  std::uint32_t& wanted = slots_.wanted(slot);
  if (wanted != 0) wanted = 1;
  const bool is_dirty = blocks_written(slot) > 0 || (strict_ && !dirty_positions(slot).empty());
  // A ring fits whatever request comes next.
  if (!is_dirty || geometry_.is_ring()) head.lowest = 0;
  slots_.set_state(slot, is_dirty ? SlotState::released : SlotState::free);
}

void Cache::release(const SlotRef& ref, FencePtr after) {
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  std::uint32_t slot = check_live(ref);
  wait_not_in_flight(slot);
  slot = check_live(ref);
  forecast_.ended(slots_.asked(slot), slots_.head(slot).written);
  end_request(slot, std::move(after));
  clean_soon(slot);
}

// In the background, where there is one; at once otherwise, unless that waits for the device.
void Cache::clean_soon(std::uint32_t slot) {
  if (slots_.head(slot).state == SlotState::free) return;
  if (mapper_) return nudge_mapper();
  if (slots_.head(slot).lowest > 0 && !rows_.is_ready(slot)) return;
  try {
    clean(slot);
  } catch (const std::exception&) {
    // The slot stays released; acquire() or growth cleans it, or reports why not.
  }
}

// What a step waits for the lock is time that it waits for blocks.
void Cache::lock_for_step() {
  if (mutex_.try_lock()) return;
  const auto start = std::chrono::steady_clock::now();
  mutex_.lock();
  blocking_seconds_ += seconds_since(start);
}

void Cache::step(const SlotLength* requests, std::size_t count, const Passage& passage) {
  const Exclusive one(stepping_);
  check_usable();
  lock_for_step();
  const Lock lock(mutex_, std::adopt_lock);
  const bool growing = !check_step(requests, count).empty();
  if (geometry_.is_ring()) check_rings(requests, count, passage.rollback);
  if (window_ > 0) pass_on(requests, count, passage);
  if (growing) make_resident(requests, count);
  finish_step(requests, count);
  if (window_ > 0 && !mapper_) drop_passed(requests, count);
}

bool Cache::try_step(const SlotLength* requests, std::size_t count, const Passage& passage) {
  const Exclusive one(stepping_);
  check_usable();
  lock_for_step();
  const Lock lock(mutex_, std::adopt_lock);
  const bool growing = !check_step(requests, count).empty();
  if (geometry_.is_ring()) check_rings(requests, count, passage.rollback);
  if (window_ > 0) pass_on(requests, count, passage);
  if (growing && !grow_now(requests, count)) {
    wake_mapper();
    return false;
  }
  finish_step(requests, count);
  if (window_ > 0 && !mapper_) drop_passed(requests, count);
  return true;
}

// Ends a request that came to nothing. The lock may have been released since it began, and
// the cache closed.
void Cache::abandon(const SlotRef& slot) {
  const SlotHead& head = slots_.head(slot.index);
  const bool is_same = head.generation == slot.generation || slot.generation == SlotRef::kCurrent;
  if (head.state != SlotState::live || !is_same) return;
  end_request(slot.index, nullptr);
  clean_soon(slot.index);
}

void Cache::cancel(const SlotRef& slot) {
  const Lock lock(mutex_);
  abandon(slot);
}

std::vector<SlotMark> Cache::marks(const SlotLength* requests, std::size_t count) {
  const Lock lock(mutex_);
  std::vector<SlotMark> found;
  found.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t slot = check_live(requests[i].slot);
    const SlotHead& head = slots_.head(slot);
    found.push_back({slot, head.length, head.written, head.claimed, head.lowest});
  }
  return found;
}

void Cache::restore(const std::vector<SlotMark>& marks) {
  const Lock lock(mutex_);
  for (const SlotMark& mark : marks) {
    SlotHead& head = slots_.head(mark.slot);
    if (head.state != SlotState::live) continue;
    tokens_used_ += mark.length;
    tokens_used_ -= head.length;
    head.length = mark.length;
    head.written = mark.written;
    head.claimed = mark.claimed;
    // What a ring would have written over is still there.
    if (geometry_.is_ring()) head.lowest = std::max(mark.lowest, gone_below(mark.slot));
    if (strict_) poison(mark.slot);
  }
}

SlotRef Cache::admit(std::int64_t tokens) {
  const std::uint32_t length = check_length(tokens);
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  const Forecast before = forecast_;
  const SlotLength request = {take_slot(length), length};
  try {
    if (!check_step(&request, 1).empty()) make_resident(&request, 1);
  } catch (...) {
    forecast_ = before;
    abandon(request.slot);
    throw;
  }
  finish_step(&request, 1);
  nudge_mapper();
  return request.slot;
}

void Cache::extend(const SlotRef& slot, std::int64_t tokens, const Parts& parts) {
  const SlotLength request = {slot, tokens};
  check_usable();
  bool grew = false;
  {
    const Lock lock(mutex_);
    check_usable();
    const bool growing = !check_step(&request, 1).empty();
    // Also where this fails: parts that came before may have been written.
    std::uint32_t& written = slots_.head(slot.index).written;
    written = std::max(written, static_cast<std::uint32_t>(tokens));
    if (growing) grew = make_resident(&request, 1, &parts);
    finish_step(&request, 1);
    nudge_mapper();
  }
  if (!grew) parts.mapped(0, geometry_.arenas);
}

// The tokens are backed: lengths become what they are to be.
void Cache::finish_step(const SlotLength* requests, std::size_t count) {
  if (store_lengths(requests, count) && eager_) ask_for_next(requests, count);
  if (geometry_.is_ring()) keep_above_overwritten(requests, count);
  for (std::size_t i = 0; strict_ && i < count; ++i) poison(requests[i].slot.index);
}

// Returns whether any slot is as long as its blocks allow.
bool Cache::store_lengths(const SlotLength* requests, std::size_t count) {
  SlotHead* const heads = slots_.heads();
  std::uint64_t used = tokens_used_;
  bool any_full = false;
  for (std::size_t i = 0; i < count; ++i) {
    SlotHead& head = heads[requests[i].slot.index];
    const auto length = static_cast<std::uint32_t>(requests[i].length);
    used += length;
    used -= head.length;
    head.length = length;
    head.claimed = length;
    head.written = std::max(head.written, length);
    any_full |= length >= head.capacity;
  }
  tokens_used_ = used;
  return any_full;
}

void Cache::ask_for_next(const SlotLength* requests, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t slot = requests[i].slot.index;
    const SlotHead& head = slots_.head(slot);
    if (head.length >= head.capacity && head.length < geometry_.max_tokens) {
      ask(slot, head.length + 1);
    }
  }
  wake_mapper();
}

void Cache::prefetch(const SlotLength* requests, std::size_t count) {
  check_usable();
  const Lock lock(mutex_);
  if (check_step(requests, count).empty() || !mapper_) return;
  claim(requests, count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto length = static_cast<std::uint32_t>(requests[i].length);
    if (length > slots_.head(requests[i].slot.index).capacity) ask(requests[i].slot.index, length);
  }
  wake_mapper();
}

bool Cache::has_free_slot() {
  const Lock lock(mutex_);
  return slots_.slots_in(SlotState::live) < slots_.size();
}

std::uint64_t Cache::bytes_lacking(std::int64_t tokens) {
  const std::uint32_t length = check_length(tokens);
  check_usable();
  const Lock lock(mutex_);
  const std::uint64_t own = pool_->blocks_free() + slots_.blocks_in(SlotState::released) +
                            slots_.blocks_in(SlotState::cleaning) - doubles().released +
                            blocks_behind() + spare_blocks();
  const std::uint64_t needed = math_.pages_for(length);
  return (needed - std::min(needed, own)) * geometry_.block_bytes();
}

bool Cache::can_admit(std::int64_t tokens) {
  const std::uint32_t length = check_length(tokens);
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  const std::uint64_t blocks = math_.pages_for(length);
  while (slots_.slots_in(SlotState::live) < slots_.size()) {
    if (can_have(blocks)) return true;
    // What is in flight counts as taken; it may turn out to be spare.
    if (rows_.in_flight() == 0) {
      const std::uint64_t own = pool_->blocks_free() + slots_.blocks_in(SlotState::released) +
                                slots_.blocks_in(SlotState::free);
      budget_->missed((blocks - std::min(blocks, own)) * geometry_.block_bytes());
      return false;
    }
    settled_.wait(mutex_);
    check_usable();
  }
  return false;
}

// Whether a request can have so many: from the pool, from slots that are not live, spare.
bool Cache::can_have(std::uint64_t blocks) const {
  if (blocks <= pool_->blocks_available()) return true;
  const std::uint64_t in_pool_or_released =
      pool_->blocks_available() + slots_.blocks_in(SlotState::released) +
      slots_.blocks_in(SlotState::cleaning) - doubles().released + blocks_behind();
  // Live slots are many: they are looked at only where the others have too little.
  if (blocks <= in_pool_or_released + slots_.blocks_in(SlotState::free)) return true;
  return blocks <= in_pool_or_released + spare_blocks();
}

void Cache::drain() {
  check_usable();
  if (!mapper_) return;
  // What it left may have come free since it looked: kernels may have ended.
  mapper_->wake();
  mapper_->drain();
}

std::int64_t Cache::length(const SlotRef& slot) {
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  return slots_.head(check_live(slot)).length;
}

std::int64_t Cache::front(const SlotRef& slot) {
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  return slots_.trimmed(check_live(slot));
}

std::int64_t Cache::least_length(const SlotRef& ref) {
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  const std::uint32_t slot = check_live(ref);
  return geometry_.is_ring() ? std::max(gone_below(slot), slots_.head(slot).lowest)
                             : gone_below(slot);
}

ArenaPtr Cache::arena(std::uint32_t index) {
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  if (index >= geometry_.arenas) {
    throw ConfigError("arena " + std::to_string(index) + " is outside 0.." +
                      std::to_string(geometry_.arenas - 1));
  }
  return rows_.arenas()[index];
}

}  // namespace pyvattn
