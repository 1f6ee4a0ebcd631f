// SPDX-License-Identifier: Apache-2.0
// How the slots of a step come by their blocks.
#include "cache/cache.hpp"

#include <algorithm>
#include <numeric>
#include <string>

#include "base/errors.hpp"
#include "base/stopwatch.hpp"
#include "base/text.hpp"

namespace pyvattn {

void Cache::throw_out_of_memory(std::uint64_t blocks, const std::string& cause) {
  const std::uint64_t block = geometry_.block_bytes();
  const std::uint64_t free = pool_->blocks_available() * block;
  const std::uint64_t reclaimable = spare_blocks() * block;
  const std::uint64_t own = pool_->blocks_free() + spare_blocks();
  budget_->missed((blocks - std::min(blocks, own)) * block);
  // A driver that gives details, in parentheses, says there what helps.
  const bool explained = !cause.empty() && cause.back() == ')';
  std::string remedy = ": release a slot, admit fewer requests or raise the limit with resize()";
  if (!cause.empty()) remedy += " [" + cause + "]";
  if (explained) remedy = ", but " + cause;
  throw OutOfMemory("out of pages: " + bytes_text(blocks * block) + " asked for, " +
                        bytes_text(free) + " free, " + bytes_text(reclaimable) +
                        " reclaimable, limit " + bytes_text(budget_->limit()) + remedy,
                    blocks * block, free, reclaimable);
}

std::uint64_t Cache::blocks_needed(const std::vector<Target>& targets) const {
  std::uint64_t blocks = 0;
  for (const Target& target : targets) blocks += target.blocks - slots_.blocks(target.slot);
  return blocks;
}

// Takes what slots have behind them, at most `from_pool` blocks from the pool, with some more to
// read ahead where it has room, and the rest from tails that other slots can spare. False where
// those hold too little. By parts all is new to the slots, so nothing they have behind is taken.
bool Cache::try_grow(const std::vector<Target>& wanted, std::uint64_t from_pool, From from,
                     const Parts* parts) {
  RowBatch batch(*driver_, *pool_, rows_);
  for (const Target& target : wanted) batch.claim(target.slot);
  std::vector<Target> targets = wanted;
  std::vector<Tail> tails;
  const std::vector<std::uint32_t> own =
      parts != nullptr ? std::vector<std::uint32_t>(wanted.size(), 0) : own_fronts(wanted);
  const std::uint64_t moved = std::accumulate(own.begin(), own.end(), std::uint64_t{0});
  const std::uint64_t needed = blocks_needed(wanted) - moved;
  if (needed > from_pool) {
    tails = spare_tails(needed - from_pool);
    if (blocks_of(tails) < needed - from_pool) return false;
    for (const auto& [slot, kept] : tails) {
      batch.cut_and_lend({slot, kept, slots_.blocks(slot) - kept});
    }
  } else {
    std::vector<Target> ahead = with_read_ahead(wanted);
    if (blocks_needed(ahead) - moved <= from_pool) targets = std::move(ahead);
  }
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const std::uint32_t slot = targets[i].slot;
    const std::uint32_t end = slots_.blocks(slot) + own[i];
    if (own[i] > 0) plan_move(batch, slot, own[i]);
    if (targets[i].blocks > end) batch.fill(slot, end, targets[i].blocks - end);
  }
  batch.seal();
  // While the lock is released, no step must count on blocks that are about to go.
  for (const auto& [slot, kept] : tails) slots_.head(slot).capacity = math_.capacity(kept);
  const bool is_free = slots_.head(wanted.front().slot).state == SlotState::free;
  std::vector<std::uint32_t> ends;
  for (const Target& target : wanted) ends.push_back(slots_.blocks(target.slot));
  run(batch, from, is_free ? free_in_flight_ : live_in_flight_, parts);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (own[i] > 0) moved_front(wanted[i].slot, ends[i], own[i]);
  }
  reclaimed_blocks_ += batch.blocks_lent();
  return true;
}

// Makes the driver calls of a plan: with the lock held in the foreground, where the caller
// waits anyway; without it in the background, so that a step that needs nothing is not
// held up, and by parts, whose users are called in between. `in_flight` counts the blocks
// meanwhile.
void Cache::run(RowBatch& batch, From from, std::uint64_t& in_flight, const Parts* parts) {
  const std::uint64_t blocks = batch.blocks_in_flight();
  in_flight += blocks;
  try {
    if (parts != nullptr) {
      const Unlocked unlocked(mutex_);
      batch.execute(*parts);
    } else if (from == From::background) {
      const Unlocked unlocked(mutex_);
      batch.execute();
    } else {
      batch.execute();
    }
  } catch (...) {
    in_flight -= blocks;
    batch.roll_back();
    follow(batch);
    throw;
  }
  in_flight -= blocks;
  batch.commit();
  follow(batch);
}

// Brings the slots up to what a batch has made of their rows.
void Cache::follow(const RowBatch& batch) {
  for (std::uint32_t slot : batch.rows()) {
    const std::uint32_t front = slots_.front(slot);
    const std::uint32_t blocks = std::max(front, rows_.size(slot));
    slots_.set_extent(slot, front, blocks);
    slots_.head(slot).capacity = math_.capacity(blocks);
  }
  settled_.notify_all();
}

// Unmaps blocks that are not in use and gives them to the pool.
void Cache::unmap_tail(const Tail& tail, From from) {
  const std::uint32_t blocks = rows_.size(tail.slot);
  if (tail.kept >= blocks) return;
  RowBatch batch(*driver_, *pool_, rows_);
  batch.cut({tail.slot, tail.kept, blocks - tail.kept});
  batch.seal();
  run(batch, from, free_in_flight_);
}

// Remembers what the slots of a step were claimed for. Without keep() the claims become
// that again.
class Cache::Claims {
 public:
  Claims(SlotTable& slots, const SlotLength* requests, std::size_t count) : slots_(slots) {
    before_.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      const SlotHead& head = slots.head(requests[i].slot.index);
      before_.push_back({requests[i].slot.index, head.generation, head.claimed});
    }
  }
  Claims(const Claims&) = delete;
  Claims& operator=(const Claims&) = delete;
  ~Claims() {
    for (const Claim& each : before_) {
      SlotHead& head = slots_.head(each.slot);
      // The lock may have been released, and another request may have the slot now.
      if (head.generation == each.generation) head.claimed = each.claimed;
    }
  }
  void keep() { before_.clear(); }

 private:
  struct Claim {
    std::uint32_t slot;
    std::uint32_t generation;
    std::uint32_t claimed;
  };

  SlotTable& slots_;
  std::vector<Claim> before_;
};

// Returns whether anything had to be mapped.
bool Cache::make_resident(const SlotLength* requests, std::size_t count, const Parts* parts) {
  const Stopwatch blocking(blocking_seconds_);
  Claims claims(slots_, requests, count);
  const bool grew = grow_for(requests, count, parts);
  claims.keep();
  return grew;
}

// Each attempt starts from the requests again: the lock may have been open. The
// first takes things as they are, the second has what the background held, the
// third does not count on slabs that the device may not have. False where none needs blocks.
bool Cache::grow_for(const SlotLength* requests, std::size_t count, const Parts* parts) {
  std::vector<Target> growing;
  std::string cause;
  for (int attempt = 0; attempt < 3; ++attempt) {
    if (attempt == 1) settle();
    growing = growing_slots(requests, count);
    if (growing.empty()) return false;
    const std::uint64_t from_pool = attempt < 2 ? pool_->blocks_available() : pool_->blocks_free();
    try {
      if (try_grow(growing, from_pool, From::foreground, parts)) return true;
    } catch (const DriverOutOfMemory& error) {
      cause = error.what();
    }
  }
  throw_out_of_memory(blocks_needed(growing), cause);
}

// Grows the slots where that waits for nobody. False where it would, with nothing changed.
bool Cache::grow_now(const SlotLength* requests, std::size_t count) {
  Claims claims(slots_, requests, count);
  const std::vector<Target> growing = check_step(requests, count);
  claim(requests, count);
  for (const Target& target : growing) {
    if (rows_.is_in_flight(target.slot)) return false;
  }
  const std::vector<std::uint32_t> own = own_fronts(growing);
  const std::uint64_t needed =
      blocks_needed(growing) - std::accumulate(own.begin(), own.end(), std::uint64_t{0});
  const std::uint64_t in_pool = pool_->blocks_available();
  const std::uint64_t lacking = needed - std::min(needed, in_pool);
  const std::vector<Tail> tails = spare_tails(lacking);
  const bool enough = blocks_of(tails) >= lacking;
  const auto is_ready = [this](const Tail& tail)
                            REQUIRES(mutex_) { return rows_.is_ready(tail.slot); };
  if (!enough || !std::all_of(tails.begin(), tails.end(), is_ready)) {
    const std::uint64_t to_come = slots_.blocks_in(SlotState::released) +
                                  slots_.blocks_in(SlotState::cleaning) + blocks_behind();
    const bool in_flight = rows_.in_flight() > 0;
    if (!in_flight && needed > in_pool + spare_blocks() + to_come) throw_out_of_memory(needed, "");
    return false;
  }
  try {
    const Stopwatch blocking(blocking_seconds_);
    if (!try_grow(growing, in_pool, From::foreground)) return false;
  } catch (const DriverOutOfMemory& error) {
    throw_out_of_memory(needed, error.what());
  }
  claims.keep();
  return true;
}

// From here on no block that the step needs is spare.
void Cache::claim(const SlotLength* requests, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    SlotHead& head = slots_.head(requests[i].slot.index);
    head.claimed = std::max(head.claimed, static_cast<std::uint32_t>(requests[i].length));
  }
}

// The slots of a step that need blocks, once the background has its hands on none of
// them. The lock is released while waiting for one, and the background may take up
// another in the meantime, so all are checked again after each wait.
std::vector<Cache::Target> Cache::growing_slots(const SlotLength* requests, std::size_t count) {
  while (true) {
    std::vector<Target> growing = check_step(requests, count);
    claim(requests, count);
    std::uint32_t busy = SlotTable::kNone;
    for (const Target& target : growing) {
      if (rows_.is_in_flight(target.slot)) busy = target.slot;
    }
    if (busy == SlotTable::kNone) return growing;
    wait_not_in_flight(busy);
  }
}

void Cache::wait_not_in_flight(std::uint32_t slot) {
  while (rows_.is_in_flight(slot)) settled_.wait(mutex_);
  check_usable();
}

}  // namespace pyvattn
