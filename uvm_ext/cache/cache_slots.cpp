// SPDX-License-Identifier: Apache-2.0
// What is done with one slot between its admission and its end.
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/errors.hpp"
#include "cache/cache.hpp"

namespace pyvattn {

std::vector<LiveSlot> Cache::live_slots() {
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  std::vector<LiveSlot> live;
  live.reserve(slots_.slots_in(SlotState::live));
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    const SlotHead& head = slots_.head(slot);
    if (head.state != SlotState::live) continue;
    live.push_back({{slot, head.generation}, head.length, head.written, rows_.blocks(slot)});
  }
  return live;
}

void Cache::trim(const SlotRef& ref, std::int64_t tokens, FencePtr after) {
  const std::uint32_t length = check_length(tokens);
  check_usable();
  const Lock lock(mutex_);
  check_usable();
  std::uint32_t slot = check_live(ref);
  wait_not_in_flight(slot);
  slot = check_live(ref);
  SlotHead& head = slots_.head(slot);
  if (length > head.length) {
    throw LengthError("slot " + std::to_string(slot) + " has " + std::to_string(head.length) +
                      " tokens and cannot be shortened to " + std::to_string(length) +
                      ": step() is what makes it longer");
  }
  check_shared(slot, length);
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
}

// All ones is NaN in every floating-point dtype that a cache can have.
void Cache::poison(std::uint32_t slot) {
  constexpr int kPoison = 0xff;
  if (rows_.is_in_flight(slot)) return;
  const std::uint64_t begin = slots_.head(slot).length * geometry_.token_bytes;
  const std::uint64_t end = slots_.blocks(slot) * geometry_.page_size;
  if (begin >= end) return;
  for (std::uint32_t arena = 0; arena < geometry_.arenas; ++arena) {
    std::memset(reinterpret_cast<void*>(rows_.address(arena, slot, 0) + begin), kPoison,
                end - begin);
  }
  const auto first = static_cast<std::uint32_t>(begin / geometry_.page_size);
  for (std::uint32_t i = first; i < slots_.blocks(slot); ++i) {
    pool_->mark_dirty({rows_.block(slot, i), 1});
  }
}

}  // namespace pyvattn
