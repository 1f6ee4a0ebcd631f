// SPDX-License-Identifier: Apache-2.0
// Live slots that give blocks back: from their end, and from their front.
//
// Blocks at the front that nobody reads any more are behind: still mapped, until the fence has
// passed that they were trimmed with. Then the slot's own growth takes them as they are, or the
// background zeroes them and lets go of them. No length falls below what was trimmed.
#include <algorithm>
#include <cstring>
#include <exception>
#include <string>

#include "base/errors.hpp"
#include "cache/cache.hpp"

namespace pyvattn {

// --- the end ---

void Cache::check_trim(const SlotRef& ref, std::int64_t tokens) {
  const std::uint32_t length = check_length(tokens);
  check_usable();
  const Lock lock(mutex_);
  check_trim_locked(ref, length);
}

std::uint32_t Cache::check_trim_locked(const SlotRef& ref, std::uint32_t length) {
  const std::uint32_t slot = check_live(ref);
  const SlotHead& head = slots_.head(slot);
  if (length > head.length) {
    throw LengthError("slot " + std::to_string(slot) + " has " + std::to_string(head.length) +
                      " tokens and cannot be shortened to " + std::to_string(length) +
                      ": step() is what makes it longer");
  }
  check_lowest(slot, length);
  return slot;
}

void Cache::trim(const SlotRef& ref, std::int64_t tokens, FencePtr after) {
  const std::uint32_t length = check_length(tokens);
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  wait_not_in_flight(check_live(ref));
  const std::uint32_t slot = check_trim_locked(ref, length);
  SlotHead& head = slots_.head(slot);
  tokens_used_ -= head.length - length;
  head.length = length;
  head.claimed = length;
  const std::uint32_t kept = math_.pages_for(length);
  if (kept < slots_.blocks(slot)) cut_tail(slot, kept, after);
}

// Gives a live slot's blocks from `kept` on to the pool, zeroed.
void Cache::cut_tail(std::uint32_t slot, std::uint32_t kept, const FencePtr& after) {
  SlotHead& head = slots_.head(slot);
  const std::uint32_t blocks = slots_.blocks(slot);
  const std::uint32_t dirty = std::max(kept, strict_ ? blocks : blocks_written(slot));
  const Positions tail = {slot, kept, blocks - kept};
  const std::vector<Range> ranges = rows_.ranges({slot, kept, dirty - kept});
  RowBatch batch(*driver_, *pool_, rows_);
  batch.cut(tail);
  batch.seal();
  // While the lock is released, no step must count on blocks that are about to go.
  head.capacity = math_.capacity(kept);
  try {
    const Unlocked unlocked(mutex_);
    if (after) after->wait();
    if (dirty > kept) {
      const FencePtr done = driver_->zero(ranges, nullptr);
      if (done) done->wait();
    }
    batch.execute();
  } catch (...) {
    batch.roll_back();
    follow(batch);
    throw;
  }
  for (std::uint32_t i = kept; i < dirty; ++i) pool_->mark_clean({rows_.block(slot, i), 1});
  batch.commit();
  follow(batch);
  // What was written is now no longer than what is kept.
  const std::uint64_t most = Geometry::divide_up(kept * geometry_.page_size, geometry_.token_bytes);
  head.written = static_cast<std::uint32_t>(std::min<std::uint64_t>(head.written, most));
  slots_.moved(slot) = std::min(slots_.moved(slot), kept);
}

// --- the front ---

void Cache::trim_front(const SlotRef& ref, std::int64_t tokens, FencePtr after) {
  const std::uint32_t front = check_length(tokens);
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  const std::uint32_t slot = check_live(ref);
  const SlotHead& head = slots_.head(slot);
  if (front > head.length) {
    throw LengthError("slot " + std::to_string(slot) + " has " + std::to_string(head.length) +
                      " tokens and cannot lose the first " + std::to_string(front));
  }
  if (front <= slots_.trimmed(slot)) return;
  leave_behind(slot, front, after);
  raise_lowest(slot, std::max(front, std::min(gone_below(slot), head.length)));
  if (mapper_) return nudge_mapper();
  const SlotLength request = {ref, 0};
  drop_passed(&request, 1);
}

// Without a background: what growth has not taken of the fronts of these slots goes back.
void Cache::drop_passed(const SlotLength* requests, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    try {
      drop_front(requests[i].slot.index);
    } catch (const std::exception&) {
      // The blocks stay behind: growth takes them, or reports why not.
    }
  }
}

// Nobody reads the tokens before `front` any more, which is further than before, once the fence
// has passed.
void Cache::leave_behind(std::uint32_t slot, std::uint32_t front, const FencePtr& after) {
  std::uint32_t& trimmed = slots_.trimmed(slot);
  // The pages of a ring are for the tokens that follow.
  const std::uint32_t end = geometry_.is_ring() ? 0 : whole_blocks(front);
  if (end > behind_end(slot)) behind_[slot].push_back({end, after});
  tokens_used_ -= front - trimmed;
  trimmed = front;
  if (geometry_.is_ring() || !strict_) return;
  if (!after || after->passed()) poison_front(slot);
}

// Leaves behind what lies before the windows of the step's queries, which begin where a slot that
// grows ends now. Growth takes those blocks first.
void Cache::pass_on(const SlotLength* requests, std::size_t count, const Passage& passage) {
  const std::uint64_t reach = std::uint64_t{window_} - 1 + passage.rollback;
  bool any = false;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t slot = requests[i].slot.index;
    const std::uint64_t first = slots_.head(slot).length;
    if (static_cast<std::uint64_t>(requests[i].length) <= first || first <= reach) continue;
    if (first - reach <= slots_.trimmed(slot)) continue;
    leave_behind(slot, static_cast<std::uint32_t>(first - reach), passage.after);
    raise_lowest(slot, gone_below(slot));
    any = true;
  }
  if (any) nudge_mapper();
}

// The least length whose next query finds its window.
std::uint32_t Cache::gone_below(std::uint32_t slot) const {
  const std::uint32_t trimmed = slots_.trimmed(slot);
  return trimmed > 0 && window_ > 0 ? trimmed + window_ - 1 : trimmed;
}

// Tokens that the query behind `length` tokens does not see.
std::uint32_t Cache::before_window(std::uint32_t length) const {
  return window_ > 0 && length >= window_ ? length - (window_ - 1) : 0;
}

// Blocks that the first `tokens` tokens fill.
std::uint32_t Cache::whole_blocks(std::uint32_t tokens) const {
  return static_cast<std::uint32_t>(tokens * geometry_.token_bytes / geometry_.page_size);
}

// Where the blocks of a live slot begin that may still be read.
std::uint32_t Cache::behind_end(std::uint32_t slot) const {
  const auto found = behind_.find(slot);
  return found == behind_.end() ? slots_.front(slot) : found->second.back().end;
}

// Where those behind end whose fences have passed.
std::uint32_t Cache::passed_end(std::uint32_t slot) const {
  std::uint32_t end = slots_.front(slot);
  const auto found = behind_.find(slot);
  if (found == behind_.end()) return end;
  for (const Behind& each : found->second) {
    if (each.after && !each.after->passed()) break;
    end = each.end;
  }
  return end;
}

// A slot's blocks before `end` are in its row no more.
void Cache::front_is_gone(std::uint32_t slot, std::uint32_t end) {
  slots_.set_extent(slot, end, std::max(end, slots_.blocks(slot)));
  const auto found = behind_.find(slot);
  if (found == behind_.end()) return;
  std::vector<Behind>& left = found->second;
  left.erase(std::remove_if(left.begin(), left.end(),
                            [end](const Behind& each) { return each.end <= end; }),
             left.end());
  if (left.empty()) behind_.erase(found);
}

// Takes what is behind and no longer read out of a live slot's row: zeroed where nobody else
// holds it, and otherwise left to those who do.
void Cache::drop_front(std::uint32_t slot) {
  const std::uint32_t front = slots_.front(slot);
  const std::uint32_t end = passed_end(slot);
  if (end == front || rows_.is_in_flight(slot)) return;
  RowBatch batch(*driver_, *pool_, rows_);
  batch.claim(slot);
  try {
    mark_written(slot, front, end);
    zero_own_blocks({slot, front, end - front});
    batch.cut({slot, front, end - front});
    batch.seal();
    batch.execute();
  } catch (...) {
    batch.roll_back();
    follow(batch);
    throw;
  }
  batch.commit();
  front_is_gone(slot, end);
  follow(batch);
}

// For the background: one slot's front, where that waits for nobody.
bool Cache::drop_some_front() {
  for (const auto& each : behind_) {
    const std::uint32_t slot = each.first;
    if (rows_.is_in_flight(slot) || passed_end(slot) == slots_.front(slot)) continue;
    drop_front(slot);
    return true;
  }
  return false;
}

// Waits for the fences. The lock is released meanwhile.
void Cache::drop_fronts() {
  while (!behind_.empty()) {
    const std::uint32_t slot = behind_.begin()->first;
    const FencePtr after = behind_.begin()->second.front().after;
    if (rows_.is_in_flight(slot)) {
      wait_not_in_flight(slot);
    } else if (after && !after->passed()) {
      const Unlocked unlocked(mutex_);
      after->wait();
    } else {
      drop_front(slot);
    }
  }
}

// What is behind and held by nobody else.
std::uint64_t Cache::blocks_behind() const {
  std::uint64_t blocks = 0;
  for (const auto& [slot, waiting] : behind_) {
    for (std::uint32_t i = slots_.front(slot); i < waiting.back().end; ++i) {
      blocks += pool_->holders(rows_.block(slot, i)) == 1;
    }
  }
  return blocks;
}

// How many blocks each target can take from its own front, as they are: they held the same
// request's tokens.
std::vector<std::uint32_t> Cache::own_fronts(const std::vector<Target>& targets) const {
  std::vector<std::uint32_t> counts(targets.size(), 0);
  for (std::size_t i = 0; !behind_.empty() && i < targets.size(); ++i) {
    const std::uint32_t slot = targets[i].slot;
    const std::uint32_t front = slots_.front(slot);
    const std::uint32_t most = std::min(passed_end(slot) - front,  //
                                        targets[i].blocks - slots_.blocks(slot));
    const auto is_own = [&](std::uint32_t p)
                            REQUIRES(mutex_) { return pool_->holders(rows_.block(slot, p)) == 1; };
    while (counts[i] < most && is_own(front + counts[i])) ++counts[i];
  }
  return counts;
}

// Plans to map the first `count` blocks of a row behind its last instead.
void Cache::plan_move(RowBatch& batch, std::uint32_t slot, std::uint32_t count) {
  const std::uint32_t front = slots_.front(slot);
  batch.cut({slot, front, count});
  batch.put(slot, slots_.blocks(slot), rows_.blocks(slot).data() + front, count);
}

// That was done, and the slot is as long as it is now. Up to `moved` its blocks count as written.
void Cache::moved_front(std::uint32_t slot, std::uint32_t end, std::uint32_t count) {
  slots_.moved(slot) = end + count;
  front_is_gone(slot, slots_.front(slot) + count);
}

// What lies below a trimmed front is NaN where nobody else has it.
void Cache::poison_front(std::uint32_t slot) {
  constexpr int kPoison = 0xff;
  if (rows_.is_in_flight(slot)) return;
  const std::uint64_t gone = slots_.trimmed(slot) * geometry_.token_bytes;
  for (std::uint32_t i = slots_.front(slot); i * geometry_.page_size < gone; ++i) {
    if (pool_->holders(rows_.block(slot, i)) > 1) continue;
    const std::size_t bytes =
        std::min<std::uint64_t>(geometry_.page_size, gone - i * geometry_.page_size);
    for (std::uint32_t arena = 0; arena < geometry_.arenas; ++arena) {
      std::memset(reinterpret_cast<void*>(rows_.address(arena, slot, i)), kPoison, bytes);
    }
  }
}

}  // namespace pyvattn
