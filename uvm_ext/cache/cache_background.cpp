// Cleaning, and what the mapper thread does.
#include "cache/cache.hpp"

#include <algorithm>
#include <exception>
#include <utility>

#include "base/errors.hpp"
#include "base/stopwatch.hpp"

namespace pyvattn {

std::vector<Range> Cache::dirty_ranges(std::uint32_t slot) const {
  std::vector<Range> ranges;
  ranges.reserve(arenas_.size());
  const std::size_t bytes = slots_.pages(slot).dirty_row_pages * geometry_.page_size;
  for (const ArenaPtr& arena : arenas_) {
    ranges.push_back({arena->address() + slot * geometry_.row_bytes(), bytes});
  }
  return ranges;
}

// Zeroes a released slot's pages, without the lock meanwhile.
void Cache::clean(Lock& lock, std::uint32_t slot) {
  SlotPages& pages = slots_.pages(slot);
  const std::vector<Range> ranges = dirty_ranges(slot);
  const FencePtr after = pages.fence;
  slots_.set_state(slot, SlotState::cleaning);
  lock.unlock();
  FencePtr done;
  try {
    done = driver_->zero(ranges, after);
  } catch (...) {
    lock.lock();
    slots_.set_state(slot, SlotState::released);
    settled_.notify_all();
    throw;
  }
  lock.lock();
  pages.fence = done;
  pages.dirty_row_pages = 0;
  slots_.set_state(slot, SlotState::free);
  settled_.notify_all();
}

// Waits for what the background is at, and cleans released slots at once. The lock is
// open meanwhile: throws ClosedError where the cache was closed.
void Cache::settle(Lock& lock) {
  while (const auto slot = slots_.find(SlotState::released)) clean(lock, *slot);
  settled_.wait(lock, [this] {
    if (slots_.slots_in(SlotState::cleaning) > 0) return false;
    for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
      if (slots_.head(slot).in_flight) return false;
    }
    return true;
  });
  check_usable();
}

// --- the background ---

void Cache::ask(std::uint32_t slot, std::uint32_t tokens) {
  if (wanted_[slot] == 0) wanted_slots_.push_back(slot);
  wanted_[slot] = std::max(wanted_[slot], tokens);
}

void Cache::wake_mapper() {
  if (mapper_) mapper_->wake();
}

bool Cache::do_background_work() {
  Lock lock(mutex_);
  if (closed_) return false;
  try {
    if (prefetch_some(lock)) return true;
    if (const auto slot = slots_.find(SlotState::released)) {
      clean(lock, *slot);
      return true;
    }
    return prepare_admission(lock);
  } catch (const std::exception&) {
    // What the background cannot do, for want of the process's own memory as well, is
    // left to the call that needs it, which reports the failure.
    ++prefetch_failures_;
    return !wanted_slots_.empty();
  }
}

// Grows a few of the slots that were asked for: few enough that a step which needs
// pages itself does not wait long for the driver.
bool Cache::prefetch_some(Lock& lock) {
  constexpr std::size_t kEntriesAtOnce = 128;
  const std::size_t most = driver_->capabilities().batch_is_one_call
                               ? slots_.size()
                               : std::max<std::size_t>(1, kEntriesAtOnce / geometry_.arenas);
  std::vector<GrowthTarget> targets;
  bool looked = false;
  while (!wanted_slots_.empty() && targets.size() < most) {
    const std::uint32_t slot = wanted_slots_.back();
    wanted_slots_.pop_back();
    const std::uint32_t tokens = std::exchange(wanted_[slot], 0);
    const SlotHead& head = slots_.head(slot);
    looked = true;
    if (head.state == SlotState::live && !head.in_flight && tokens > head.capacity) {
      targets.push_back({slot, math_.pages_for(tokens)});
    }
  }
  if (!targets.empty()) {
    Stopwatch hidden(hidden_seconds_);
    if (!try_grow(lock, targets, pool_->pages_available(), From::background)) ++prefetch_failures_;
  }
  return looked;
}

// Gives one free slot the pages of a typical request, if that takes none from other slots.
bool Cache::prepare_admission(Lock& lock) {
  if (!std::exchange(admission_wanted_, false)) return false;
  const std::uint32_t pages =
      math_.pages_for(std::min(geometry_.max_tokens, forecast_.tokens() + forecast_.growth()));
  const auto slot = slots_.best_fit(pages);
  if (!slot || pages <= slots_.row_pages(*slot)) return false;
  const std::vector<GrowthTarget> targets = {{*slot, pages}};
  if (new_growth().pages_needed(targets) > pool_->pages_available()) return false;
  Stopwatch hidden(hidden_seconds_);
  return try_grow(lock, targets, pool_->pages_available(), From::background);
}

}  // namespace pyvattn
