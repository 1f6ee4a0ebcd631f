// What a request asks of a cache: acquire, step, prefetch, release.
#include "cache/cache.hpp"

#include <algorithm>
#include <chrono>
#include <exception>
#include <string>
#include <utility>

#include "base/errors.hpp"
#include "base/stopwatch.hpp"

namespace pyvattn {
namespace {

// Holds a flag for one call; refuses a second caller.
class Exclusive {
 public:
  explicit Exclusive(std::atomic<bool>& flag) : flag_(flag) {
    if (flag_.exchange(true)) {
      throw BusyError(
          "two threads called step() at once: let one thread step, or hold a lock around it");
    }
  }
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;
  ~Exclusive() { flag_ = false; }

 private:
  std::atomic<bool>& flag_;
};

}  // namespace

// A free slot whose pages are no longer in use. The lock is released while waiting for
// one: other threads may release more meanwhile, or take what came free.
std::uint32_t Cache::ready_slot(Lock& lock, std::uint32_t row_pages) {
  while (true) {
    const std::optional<std::uint32_t> slot = choose_slot(row_pages);
    if (slot && slots_.is_ready(*slot)) return *slot;
    if (slot) {
      const FencePtr fence = slots_.pages(*slot).fence;
      lock.unlock();
      fence->wait();
      lock.lock();
      check_usable();
    } else if (slots_.slots_in(SlotState::live) < slots_.size()) {
      // What is not live is being cleaned or moved.
      settle(lock);
    } else {
      throw OutOfSlots("all " + std::to_string(slots_.size()) +
                       " slots are live: release() one, or open the cache with more max_slots");
    }
  }
}

// The slot that fits best. Where the device still uses it: one that is ready, unless
// the pages which that one lacks would have to be waited for as well.
std::optional<std::uint32_t> Cache::choose_slot(std::uint32_t row_pages) const {
  const std::optional<std::uint32_t> best = slots_.best_fit(row_pages);
  if (!best || slots_.is_ready(*best)) return best;
  const auto ready = slots_.best_fit(row_pages, SlotTable::Among::ready);
  if (!ready) return best;
  const std::uint32_t lacking = row_pages - std::min(row_pages, slots_.row_pages(*ready));
  const std::uint64_t own = slots_.pages(*ready).pages.size();
  const std::uint64_t to_be_had =
      pool_->pages_available() + spare_pages() - slots_.pages_fenced() - own;
  return std::uint64_t{lacking} * geometry_.arenas <= to_be_had ? ready : best;
}

SlotRef Cache::acquire(std::int64_t tokens) {
  const std::uint32_t length = check_length(tokens);
  Lock lock = lock_usable();
  const std::uint32_t expected =
      length > 0 ? std::min(geometry_.max_tokens, length + forecast_.growth()) : 0;
  const std::uint32_t slot = ready_slot(lock, math_.pages_for(expected));
  slots_.pages(slot).asked = length;
  slots_.pages(slot).fence = nullptr;
  slots_.set_state(slot, SlotState::live);
  SlotHead& head = slots_.head(slot);
  ++head.generation;
  head.length = 0;
  head.written = 0;
  head.claimed = 0;
  forecast_.acquired(length);
  admission_wanted_ = true;
  wake_mapper();
  return {slot, head.generation};
}

void Cache::release(const SlotRef& ref, FencePtr after) {
  Lock lock = lock_usable();
  std::uint32_t slot = check_live(ref);
  wait_not_in_flight(lock, slot);
  slot = check_live(ref);
  SlotHead& head = slots_.head(slot);
  SlotPages& pages = slots_.pages(slot);
  tokens_used_ -= head.length;
  forecast_.ended(pages.asked, head.written);
  head.length = 0;
  pages.dirty_row_pages = math_.pages_touched(head.written);
  pages.released_at = ++releases_;
  pages.fence = std::move(after);
  if (wanted_[slot] != 0) wanted_[slot] = 1;
  if (pages.dirty_row_pages == 0) {
    slots_.set_state(slot, SlotState::free);
    return;
  }
  slots_.set_state(slot, SlotState::released);
  if (mapper_) return wake_mapper();
  try {
    clean(lock, slot);
  } catch (const std::exception&) {
    // The slot stays released; acquire() or growth cleans it, or reports why not.
  }
}

void Cache::step(const SlotLength* requests, std::size_t count) {
  const Exclusive one(stepping_);
  check_usable();
  Lock lock(mutex_, std::try_to_lock);
  if (!lock) {
    const auto start = std::chrono::steady_clock::now();
    lock.lock();
    blocking_seconds_ += seconds_since(start);
  }
  if (!check_step(requests, count).empty()) make_resident(lock, requests, count);
  if (store_lengths(requests, count) && eager_) ask_for_next(requests, count);
}

// Returns whether any slot is as long as its pages allow.
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
  Lock lock = lock_usable();
  if (check_step(requests, count).empty() || !mapper_) return;
  claim(requests, count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto length = static_cast<std::uint32_t>(requests[i].length);
    if (length > slots_.head(requests[i].slot.index).capacity) ask(requests[i].slot.index, length);
  }
  wake_mapper();
}

bool Cache::can_admit(std::int64_t tokens) {
  const std::uint32_t length = check_length(tokens);
  Lock lock = lock_usable();
  if (slots_.slots_in(SlotState::live) == slots_.size()) return false;
  const std::uint64_t pages = std::uint64_t{math_.pages_for(length)} * geometry_.arenas;
  return pages <= pool_->pages_available() + spare_pages() + slots_.pages_in(SlotState::released) +
                      slots_.pages_in(SlotState::cleaning);
}

void Cache::drain() {
  check_usable();
  if (mapper_) mapper_->drain();
}

std::int64_t Cache::length(const SlotRef& slot) {
  Lock lock = lock_usable();
  return slots_.head(check_live(slot)).length;
}

std::vector<LiveSlot> Cache::live_slots() {
  const Lock lock = lock_usable();
  std::vector<LiveSlot> live;
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    const SlotHead& head = slots_.head(slot);
    if (head.state != SlotState::live) continue;
    live.push_back({{slot, head.generation}, head.length, head.written});
  }
  return live;
}

ArenaPtr Cache::arena(std::uint32_t index) {
  const Lock lock = lock_usable();
  if (index >= arenas_.size()) {
    throw ConfigError("arena " + std::to_string(index) + " is outside 0.." +
                      std::to_string(arenas_.size() - 1));
  }
  return arenas_[index];
}

}  // namespace pyvattn
