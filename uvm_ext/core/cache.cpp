#include "core/cache.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <string>
#include <utility>

#include "adaptors/serialized.hpp"
#include "core/errors.hpp"
#include "core/fork.hpp"

namespace pyvattn {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Adds the time until the end of the scope to a sum.
class Stopwatch {
 public:
  explicit Stopwatch(double& sum) : sum_(sum) {}
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() { sum_ += seconds_since(start_); }

 private:
  double& sum_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

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

std::string bytes_text(std::uint64_t bytes) {
  const char* const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  double value = static_cast<double>(bytes);
  for (; value >= 1024 && unit < 4; ++unit) value /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return text;
}

void check(const Geometry& g) {
  if (g.arenas == 0 || g.slots == 0 || g.max_tokens == 0 || g.token_bytes == 0 ||
      g.page_size == 0) {
    throw ConfigError("arenas, slots, max_tokens, token_bytes and page_size must be positive");
  }
  const double bytes = static_cast<double>(g.row_bytes()) * g.slots * g.arenas;
  if (bytes > 64e12) {
    throw ConfigError("the arenas would reserve " + std::to_string(bytes / 1e12) +
                      " TB of addresses, more than the 64 TB a process can hope for: lower "
                      "max_slots or max_tokens");
  }
}

// A sixteenth of the limit lets a long prompt have one extent, and a shrinking
// limit find slabs that are empty.
std::size_t slab_size(const Driver& driver, const CacheOptions& options) {
  const std::uint64_t page = driver.page_size();
  if (options.memory_limit < page) {
    throw ConfigError("a memory limit of " + bytes_text(options.memory_limit) +
                      " holds not one page of " + bytes_text(page) + ": raise it");
  }
  if (driver.capabilities().slab_per_page) return page;
  const std::uint64_t wanted =
      options.slab_bytes != 0
          ? options.slab_bytes
          : std::clamp<std::uint64_t>(options.memory_limit / 16, page, std::uint64_t{1} << 30);
  std::uint64_t size = page;
  while (size * 2 <= wanted) size *= 2;
  return size;
}

}  // namespace

Cache::Cache(const DriverPtr& driver, const Geometry& geometry, const CacheOptions& options)
    : limit_(std::make_shared<LimitAdaptor>(driver, options.memory_limit)),
      statistics_(std::make_shared<StatisticsAdaptor>(limit_)),
      driver_(std::make_shared<SerializedAdaptor>(statistics_)),
      geometry_(geometry),
      math_(geometry, !driver->capabilities().zero_backed),
      eager_(options.eager),
      fork_generation_(fork_generation()),
      slots_(geometry.slots, geometry.arenas),
      wanted_(geometry.slots, 0) {
  check(geometry);
  const std::size_t slab = slab_size(*driver, options);
  arenas_ = make_arenas(driver_, geometry);
  pool_ = std::make_unique<PagePool>(*driver_, *limit_, slab);
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) slots_.count_pages(slot);
  if (eager_) mapper_ = std::make_unique<Mapper>([this] { return do_background_work(); });
}

Cache::~Cache() {
  if (inherited()) {
    // The parent's thread does not exist here, and what it had locked stays locked.
    if (mapper_) mapper_->abandon();
    static_cast<void>(mapper_.release());
    static_cast<void>(pool_.release());
    return;
  }
  try {
    close();
  } catch (const Error&) {
    // A destructor has nobody to tell; the driver gives back what is left when it goes.
  }
}

// --- checks ---

bool Cache::inherited() const { return fork_generation_ != fork_generation(); }

void Cache::check_usable() const {
  if (inherited()) {
    throw ForkError(
        "this cache belongs to the parent process: open one cache in each process, after fork()");
  }
  if (closed_) throw ClosedError("the cache is closed: open a new one");
}

Cache::Lock Cache::lock_usable() {
  check_usable();
  Lock lock(mutex_);
  check_usable();
  return lock;
}

std::uint32_t Cache::check_live(const SlotRef& slot) const {
  if (slot.index >= slots_.size()) {
    throw SlotError("slot " + std::to_string(slot.index) + " is not one of this cache's " +
                    std::to_string(slots_.size()) + ": use what acquire() returned");
  }
  const SlotHead& head = slots_.head(slot.index);
  if (head.state != SlotState::live ||
      (slot.generation != head.generation && slot.generation != SlotRef::kCurrent)) {
    throw SlotError("slot " + std::to_string(slot.index) +
                    " was released: acquire() one for the new request");
  }
  return slot.index;
}

std::uint32_t Cache::check_length(std::int64_t length) const {
  if (length < 0 || length > geometry_.max_tokens) {
    throw LengthError("a length of " + std::to_string(length) + " tokens is outside 0.." +
                      std::to_string(geometry_.max_tokens) +
                      ": open the cache with a larger max_tokens, or cut the request");
  }
  return static_cast<std::uint32_t>(length);
}

// Says what is wrong with a request that check_step() will not have.
void Cache::refuse(const SlotLength& request) const {
  check_live(request.slot);
  check_length(request.length);
  throw SlotError("slot " + std::to_string(request.slot.index) + " is named twice in one call");
}

void Cache::next_call() {
  if (++call_ != 0) return;
  // Once in four billion calls: no slot may seem to have been named in this one.
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) slots_.head(slot).stamp = 0;
  call_ = 1;
}

// Validates every request and returns those that need pages. One look at each slot:
// a step of thousands of slots that need nothing is nothing but this.
std::vector<GrowthTarget> Cache::check_step(const SlotLength* requests, std::size_t count) {
  check_usable();
  next_call();
  std::vector<GrowthTarget> growing;
  SlotHead* const heads = slots_.heads();
  const std::uint32_t slots = slots_.size();
  const std::uint64_t max_tokens = geometry_.max_tokens;
  const std::uint32_t call = call_;
  for (std::size_t i = 0; i < count; ++i) {
    const SlotLength& request = requests[i];
    if (request.slot.index >= slots) refuse(request);
    SlotHead& head = heads[request.slot.index];
    const bool current =
        request.slot.generation == head.generation || request.slot.generation == SlotRef::kCurrent;
    if (!current || head.state != SlotState::live || head.stamp == call ||
        static_cast<std::uint64_t>(request.length) > max_tokens) {
      refuse(request);
    }
    head.stamp = call;
    head.claimed = static_cast<std::uint32_t>(request.length);
    if (head.claimed > head.capacity) {
      growing.push_back({request.slot.index, math_.pages_for(head.claimed)});
    }
  }
  return growing;
}

// --- requests ---

SlotRef Cache::acquire(std::int64_t tokens) {
  const std::uint32_t length = check_length(tokens);
  Lock lock = lock_usable();
  std::optional<std::uint32_t> slot = slots_.best_fit(math_.pages_for(length));
  // What is not live is being cleaned or moved; the lock is open while settling, so
  // that other threads may have released more, or taken what came free.
  while (!slot) {
    if (slots_.slots_in(SlotState::live) == slots_.size()) {
      throw OutOfSlots("all " + std::to_string(slots_.size()) +
                       " slots are live: release() one, or open the cache with more max_slots");
    }
    settle(lock);
    slot = slots_.best_fit(math_.pages_for(length));
  }
  FencePtr& fence = slots_.pages(*slot).fence;
  if (fence) fence->wait();
  fence = nullptr;
  slots_.set_state(*slot, SlotState::live);
  SlotHead& head = slots_.head(*slot);
  ++head.generation;
  head.length = 0;
  head.written = 0;
  head.claimed = 0;
  // The next request is expected to be like the last ones, the newest counting most.
  typical_tokens_ += (static_cast<double>(length) - typical_tokens_) * 0.25;
  admission_wanted_ = true;
  wake_mapper();
  return {*slot, head.generation};
}

void Cache::release(const SlotRef& ref, FencePtr after) {
  Lock lock = lock_usable();
  std::uint32_t slot = check_live(ref);
  wait_not_in_flight(lock, slot);
  slot = check_live(ref);
  SlotHead& head = slots_.head(slot);
  SlotPages& pages = slots_.pages(slot);
  tokens_used_ -= head.length;
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
  } catch (const Error&) {
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
    used += head.claimed;
    used -= head.length;
    head.length = head.claimed;
    head.written = std::max(head.written, head.claimed);
    any_full |= head.claimed >= head.capacity;
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

const ArenaPtr& Cache::arena(std::uint32_t index) const {
  check_usable();
  if (index >= arenas_.size()) {
    throw ConfigError("arena " + std::to_string(index) + " is outside 0.." +
                      std::to_string(arenas_.size() - 1));
  }
  return arenas_[index];
}

// --- growth ---

// Of a live slot, what its longest length needs: kernels on the way may still read
// there. Of a free one, nothing.
std::uint32_t Cache::row_pages_kept(std::uint32_t slot) const {
  const SlotHead& head = slots_.head(slot);
  const std::uint32_t rows = slots_.row_pages(slot);
  if (head.state == SlotState::free) return 0;
  if (head.state != SlotState::live) return rows;
  return std::min(rows, math_.pages_for(std::max(head.written, head.claimed)));
}

// What may be taken away, in the order in which it is: the longest released first,
// then what live slots inherited from longer requests.
std::vector<SpareTail> Cache::spare_tails() const {
  std::vector<SpareTail> tails;
  for (std::uint32_t slot : slots_.free_with_pages()) {
    if (!slots_.head(slot).in_flight) tails.push_back({slot, 0});
  }
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    const SlotHead& head = slots_.head(slot);
    if (head.state != SlotState::live || head.in_flight) continue;
    const std::uint32_t kept = row_pages_kept(slot);
    if (kept < slots_.row_pages(slot)) tails.push_back({slot, kept});
  }
  return tails;
}

std::uint64_t Cache::spare_pages() const {
  std::uint64_t pages = slots_.pages_in(SlotState::free);
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_.head(slot).state != SlotState::live) continue;
    pages += std::uint64_t{slots_.row_pages(slot) - row_pages_kept(slot)} * geometry_.arenas;
  }
  return pages;
}

void Cache::throw_out_of_memory(std::uint64_t pages, const std::string& cause) const {
  const std::uint64_t page = geometry_.page_size;
  const std::uint64_t free = pool_->pages_available() * page;
  const std::uint64_t reclaimable = spare_pages() * page;
  throw OutOfMemory("out of pages: " + bytes_text(pages * page) + " asked for, " +
                        bytes_text(free) + " free, " + bytes_text(reclaimable) +
                        " reclaimable, limit " + bytes_text(limit_->limit()) +
                        ": release a slot, admit fewer requests or raise the limit with resize()" +
                        (cause.empty() ? "" : " [" + cause + "]"),
                    pages * page, free, reclaimable);
}

// Plans under the lock and makes the driver calls: with the lock held in the
// foreground, where the caller waits anyway; without it in the background, so that
// a step that needs nothing is not held up. False where the slots hold too little.
bool Cache::try_grow(Lock& lock, const std::vector<GrowthTarget>& targets, std::uint64_t from_pool,
                     From from) {
  Growth growth = new_growth();
  const std::uint64_t needed = growth.pages_needed(targets);
  const bool short_of_pages = needed > from_pool;
  if (short_of_pages && needed > from_pool + spare_pages()) return false;
  growth.plan(targets, from_pool, short_of_pages ? spare_tails() : std::vector<SpareTail>{}, math_);
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

// Each attempt starts from the requests again: the lock may have been open. The
// first takes things as they are, the second has what the background held, the
// third does not count on slabs that the device may not have.
void Cache::make_resident(Lock& lock, const SlotLength* requests, std::size_t count) {
  const Stopwatch blocking(blocking_seconds_);
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

// The slots of a step that need pages, once the background has its hands on none of
// them. The lock is open while one is waited for, and the background may take up
// another meanwhile, so that after each wait all are looked at again.
std::vector<GrowthTarget> Cache::growing_slots(Lock& lock, const SlotLength* requests,
                                               std::size_t count) {
  while (true) {
    std::vector<GrowthTarget> growing = check_step(requests, count);
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

// --- cleaning ---

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
  } catch (const Error&) {
    // What the background cannot do is left to the call that needs it, which
    // reports the failure.
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

// Gives one free slot the pages of a typical request, if that costs nobody any.
bool Cache::prepare_admission(Lock& lock) {
  if (!std::exchange(admission_wanted_, false)) return false;
  const std::uint32_t pages = math_.pages_for(static_cast<std::uint32_t>(typical_tokens_));
  const auto slot = slots_.best_fit(pages);
  if (!slot || pages <= slots_.row_pages(*slot)) return false;
  const std::vector<GrowthTarget> targets = {{*slot, pages}};
  if (new_growth().pages_needed(targets) > pool_->pages_available()) return false;
  Stopwatch hidden(hidden_seconds_);
  return try_grow(lock, targets, pool_->pages_available(), From::background);
}

// --- limit, end, books ---

std::uint64_t Cache::resize(std::uint64_t memory_limit) {
  Lock lock = lock_usable();
  settle(lock);
  const std::uint64_t live =
      (slots_.pages_in(SlotState::live) + slots_.pages_in(SlotState::free) - spare_pages()) *
      geometry_.page_size;
  if (memory_limit < live || memory_limit < geometry_.page_size) {
    throw LimitError("a limit of " + bytes_text(memory_limit) + " is below the " +
                     bytes_text(std::max(live, geometry_.page_size)) +
                     " that live slots hold: release some first");
  }
  if (memory_limit < limit_->allocated()) {
    pool_->trim(memory_limit);
    for (const SpareTail& tail : spare_tails()) {
      if (limit_->allocated() <= memory_limit) break;
      unmap_tail(tail);
      pool_->trim(memory_limit);
    }
  }
  limit_->set_limit(memory_limit);
  return limit_->allocated();
}

// Unmaps pages that nobody uses and gives them to the pool.
void Cache::unmap_tail(const SpareTail& tail) {
  const auto& [slot, kept] = tail;
  SlotPages& row = slots_.pages(slot);
  const auto cut = row.pages.begin() + std::ptrdiff_t{kept} * geometry_.arenas;
  const std::vector<PageNumber> pages(cut, row.pages.end());
  if (pages.empty()) return;
  if (row.fence) row.fence->wait();
  driver_->unmap(map_entries(*pool_, arenas_, geometry_, slot, kept, pages));
  slots_.forget_pages(slot);
  row.pages.erase(cut, row.pages.end());
  slots_.count_pages(slot);
  slots_.head(slot).capacity = math_.capacity(kept);
  for (PageNumber page : pages) pool_->release({page, 1});
}

void Cache::close() {
  if (inherited()) check_usable();
  const std::lock_guard<std::mutex> one(closing_);
  closed_ = true;
  if (mapper_) mapper_->stop();
  Lock lock(mutex_);
  // Another thread may be zeroing a slot on its own behalf.
  settled_.wait(lock, [this] { return slots_.slots_in(SlotState::cleaning) == 0; });
  std::exception_ptr failure;
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    SlotHead& head = slots_.head(slot);
    if (head.state == SlotState::live) ++head.generation;
    slots_.set_state(slot, SlotState::free);
    try {
      unmap_tail({slot, 0});
    } catch (const Error&) {
      failure = std::current_exception();
    }
  }
  tokens_used_ = 0;
  pool_->trim(0);
  // Whoever calls again after a failure gives back the rest.
  if (failure) std::rethrow_exception(failure);
  arenas_.clear();
}

CacheStats Cache::stats() {
  if (inherited()) check_usable();
  Lock lock(mutex_);
  const OperationCounts counts = statistics_->counts();
  const auto count = [&](Operation operation) {
    return counts[static_cast<std::size_t>(operation)];
  };
  CacheStats s;
  s.page_size = geometry_.page_size;
  s.pages_allocated = pool_->pages_allocated();
  s.pages_free = pool_->pages_free();
  const std::uint64_t spare = spare_pages();
  s.pages_live = slots_.pages_in(SlotState::live) + slots_.pages_in(SlotState::free) - spare +
                 pages_in_flight_;
  s.pages_quarantined = slots_.pages_in(SlotState::released) +
                        slots_.pages_in(SlotState::cleaning) + slots_.pages_fenced();
  s.pages_retained = spare - slots_.pages_fenced();
  s.pages_mapped = s.pages_live + s.pages_retained;
  s.slabs = pool_->slabs();
  s.slots_live = slots_.slots_in(SlotState::live);
  s.memory_limit = limit_->limit();
  s.bytes_used = tokens_used_ * geometry_.token_bytes * geometry_.arenas;
  s.bytes_reserved = geometry_.arena_bytes() * geometry_.arenas;
  s.map_calls = count(Operation::map).calls;
  s.map_batches = count(Operation::map).batches;
  s.unmap_calls = count(Operation::unmap).calls;
  for (const OperationCount& each : counts) s.driver_failures += each.failures;
  s.prefetch_failures = prefetch_failures_;
  s.reclaimed_pages = reclaimed_pages_;
  s.zeroed_bytes = count(Operation::zero).bytes;
  s.zero_seconds = count(Operation::zero).seconds;
  s.map_seconds_blocking = blocking_seconds_;
  s.map_seconds_hidden = hidden_seconds_;
  s.bookkeeping_bytes = pool_->bookkeeping_bytes() + slots_.bookkeeping_bytes();
  return s;
}

}  // namespace pyvattn
