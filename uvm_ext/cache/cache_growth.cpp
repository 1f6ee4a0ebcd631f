// How the slots of a step come by their pages.
#include "cache/cache.hpp"

#include <algorithm>
#include <string>

#include "base/errors.hpp"
#include "base/stopwatch.hpp"
#include "base/text.hpp"

namespace pyvattn {

void Cache::throw_out_of_memory(std::uint64_t pages, const std::string& cause) const {
  const std::uint64_t page = geometry_.page_size;
  const std::uint64_t free = pool_->pages_available() * page;
  const std::uint64_t reclaimable = spare_pages() * page;
  // A driver that gives details, in parentheses, says there what helps.
  const bool explained = !cause.empty() && cause.back() == ')';
  std::string remedy = ": release a slot, admit fewer requests or raise the limit with resize()";
  if (!cause.empty()) remedy += " [" + cause + "]";
  if (explained) remedy = ", but " + cause;
  throw OutOfMemory("out of pages: " + bytes_text(pages * page) + " asked for, " +
                        bytes_text(free) + " free, " + bytes_text(reclaimable) +
                        " reclaimable, limit " + bytes_text(limit_->limit()) + remedy,
                    pages * page, free, reclaimable);
}

// Plans under the lock and makes the driver calls: with the lock held in the
// foreground, where the caller waits anyway; without it in the background, so that
// a step that needs nothing is not held up. False where the slots hold too little.
bool Cache::try_grow(Lock& lock, const std::vector<GrowthTarget>& targets, std::uint64_t from_pool,
                     From from) {
  Growth growth = new_growth();
  const std::uint64_t needed = growth.pages_needed(targets);
  if (needed > from_pool) {
    if (needed > from_pool + spare_pages()) return false;
    growth.plan(targets, from_pool, spare_tails(needed - from_pool), math_);
  } else {
    const std::vector<GrowthTarget> ahead = with_read_ahead(targets);
    growth.plan(growth.pages_needed(ahead) <= from_pool ? ahead : targets, from_pool, {}, math_);
  }
  pages_in_flight_ += growth.pages_in_flight();
  if (from == From::background) lock.unlock();
  try {
    growth.execute();
  } catch (...) {
    if (from == From::background) lock.lock();
    pages_in_flight_ -= growth.pages_in_flight();
    growth.roll_back(math_);
    settled_.notify_all();
    throw;
  }
  if (from == From::background) lock.lock();
  pages_in_flight_ -= growth.pages_in_flight();
  growth.commit(math_);
  reclaimed_pages_ += growth.pages_reclaimed();
  settled_.notify_all();
  return true;
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
      // The lock may have been open, and another request may have the slot now.
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

void Cache::make_resident(Lock& lock, const SlotLength* requests, std::size_t count) {
  const Stopwatch blocking(blocking_seconds_);
  Claims claims(slots_, requests, count);
  grow_for(lock, requests, count);
  claims.keep();
}

// Each attempt starts from the requests again: the lock may have been open. The
// first takes things as they are, the second has what the background held, the
// third does not count on slabs that the device may not have.
void Cache::grow_for(Lock& lock, const SlotLength* requests, std::size_t count) {
  std::vector<GrowthTarget> growing;
  std::string cause;
  for (int attempt = 0; attempt < 3; ++attempt) {
    if (attempt == 1) settle(lock);
    growing = growing_slots(lock, requests, count);
    if (growing.empty()) return;
    const std::uint64_t from_pool = attempt < 2 ? pool_->pages_available() : pool_->pages_free();
    try {
      if (try_grow(lock, growing, from_pool, From::foreground)) return;
    } catch (const DriverOutOfMemory& error) {
      cause = error.what();
    }
  }
  throw_out_of_memory(new_growth().pages_needed(growing), cause);
}

// From here on no page that the step needs is spare.
void Cache::claim(const SlotLength* requests, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    SlotHead& head = slots_.head(requests[i].slot.index);
    head.claimed = std::max(head.claimed, static_cast<std::uint32_t>(requests[i].length));
  }
}

// The slots of a step that need pages, once the background has its hands on none of
// them. The lock is released while waiting for one, and the background may take up
// another in the meantime, so all are checked again after each wait.
std::vector<GrowthTarget> Cache::growing_slots(Lock& lock, const SlotLength* requests,
                                               std::size_t count) {
  while (true) {
    std::vector<GrowthTarget> growing = check_step(requests, count);
    claim(requests, count);
    const auto busy = std::find_if(growing.begin(), growing.end(), [this](const auto& target) {
      return slots_.head(target.slot).in_flight;
    });
    if (busy == growing.end()) return growing;
    wait_not_in_flight(lock, busy->slot);
  }
}

void Cache::wait_not_in_flight(Lock& lock, std::uint32_t slot) {
  settled_.wait(lock, [&] { return !slots_.head(slot).in_flight; });
  check_usable();
}

}  // namespace pyvattn
