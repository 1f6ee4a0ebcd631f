// SPDX-License-Identifier: Apache-2.0
// Rows that are rings: random requests against a model of what every slot was told, both
// addresses of each token read; driver calls counted; what is refused.
#include <algorithm>
#include <cstring>
#include <vector>

#include "base/errors.hpp"
#include "cache/grouped_cache.hpp"
#include "drivers/registry.hpp"
#include "tests/cache_support.hpp"

namespace pyvattn {
namespace {

using test::CacheShape;
using test::Random;
using test::WatchedCache;

CacheShape ring_shape() {
  CacheShape shape;
  shape.row_pages = 40;
  shape.guard_tokens = 3;
  shape.window = 10;
  shape.ring_pages = 6;
  return shape;
}

std::uint64_t driver_calls(WatchedCache& cache) {
  const CacheStats s = cache->stats();
  return s.map_calls + s.unmap_calls + s.zeroed_bytes;
}

void step_to(WatchedCache& cache, const SlotRef& slot, std::int64_t length,
             std::uint32_t rollback = 0) {
  const SlotLength request = {slot, length};
  cache->step(&request, 1, {nullptr, rollback});
}

// The guard may become a page while it is read: see cache_random_test.cpp.
__attribute__((no_sanitize("thread"))) unsigned read_byte(const volatile unsigned char* byte) {
  return *byte;
}

class Requests {
 public:
  Requests(WatchedCache& cache, Random& random) : cache_(cache), random_(random) {}

  void one_operation() {
    const std::uint64_t choice = random_.below(20);
    if (choice < 3) {
      acquire();
    } else if (choice < 5) {
      fork();
    } else if (choice < 7) {
      release();
    } else if (choice < 9) {
      fall();
    } else if (choice < 10) {
      shorten();
    } else if (choice < 19) {
      grow();
    } else {
      cache_.check_books();
    }
    for (const Request& request : live_) check(request);
  }

 private:
  struct Request {
    SlotRef slot;
    // What was written to each token of its length.
    std::vector<unsigned char> tokens;
    // The longest that it was: tokens so far below have others in their place.
    std::uint64_t most = 0;

    std::uint64_t length() const { return tokens.size(); }
  };

  std::uint64_t ring() const { return cache_.cache->geometry().ring_tokens; }
  std::uint64_t window() const { return cache_.shape.window; }
  std::uint64_t chunk() const { return ring() - window() + 1 - cache_.shape.guard_tokens; }
  std::uint64_t lowest(const Request& request) const {
    return request.most <= ring() ? 0 : request.most - ring() + window() - 1;
  }
  Request& some() { return live_[random_.below(live_.size())]; }

  void acquire() {
    if (live_.size() == cache_.shape.slots) return;
    const auto tokens = static_cast<std::int64_t>(random_.below(60));
    live_.push_back({cache_->acquire(tokens), {}, 0});
    allowed_[live_.back().slot.index] = 0;
  }

  void release() {
    if (live_.empty()) return;
    const std::size_t index = random_.below(live_.size());
    cache_->release(live_[index].slot, nullptr);
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(index));
  }

  void grow() {
    if (live_.empty()) return;
    Request& request = some();
    const std::uint64_t first = request.length();
    const std::uint64_t most = random_.one_in(8) ? 2 * ring() : chunk();
    const std::uint64_t length = std::min<std::uint64_t>(first + random_.between(1, most),
                                                         cache_.cache->geometry().max_tokens);
    if (length == first) return;
    // What this step may fall back by is what its ring has room for.
    const std::uint64_t room = first < lowest_at(length) ? 0 : first - lowest_at(length);
    const auto rollback = static_cast<std::uint32_t>(random_.below(room + 1));
    // Also where the step fails: see Cache::step().
    std::uint64_t& allowed = allowed_[request.slot.index];
    allowed = std::max(allowed, first - std::min<std::uint64_t>(first, rollback));
    try {
      step_to(cache_, request.slot, static_cast<std::int64_t>(length), rollback);
    } catch (const OutOfMemory& error) {
      CHECK(error.requested > error.free + error.reclaimable);
      return;
    }
    check_fresh(request, length);
    request.most = std::max(request.most, length);
    write(request, length);
  }

  std::uint64_t lowest_at(std::uint64_t length) const {
    return length <= ring() ? 0 : length - ring() + window() - 1;
  }

  // Tokens that were never written read as zeros, into the guard, until others take their place.
  void check_fresh(const Request& request, std::uint64_t length) {
    const std::uint64_t end = std::min(length + cache_.shape.guard_tokens, ring());
    for (std::uint32_t arena = 0; arena < cache_.shape.arenas; ++arena) {
      for (std::uint64_t t = request.most; t < end; ++t) {
        CHECK_EQUAL(read_byte(cache_.token(arena, request.slot, t)), 0u);
      }
    }
  }

  void write(Request& request, std::uint64_t length) {
    while (request.length() < length) {
      const std::uint64_t p = request.length() % ring();
      const auto mark = static_cast<unsigned char>(random_.between(1, 255));
      const std::uint64_t at = random_.one_in(2) ? p : p + ring();
      for (std::uint32_t arena = 0; arena < cache_.shape.arenas; ++arena) {
        std::memset(cache_.token(arena, request.slot, at), mark, 2);
      }
      request.tokens.push_back(mark);
    }
  }

  // To where the last step may fall back, and no further.
  void fall() {
    if (live_.empty()) return;
    Request& request = some();
    const std::uint64_t least = std::max(lowest(request), allowed_[request.slot.index]);
    if (request.length() <= least) return;
    const std::uint64_t length = random_.between(least, request.length() - 1);
    step_to(cache_, request.slot, static_cast<std::int64_t>(length));
    request.tokens.resize(length);
  }

  void shorten() {
    if (live_.empty()) return;
    Request& request = some();
    const std::uint64_t least = std::max(lowest(request), allowed_[request.slot.index]);
    if (request.length() <= least) return;
    const std::uint64_t length = random_.between(least, request.length() - 1);
    cache_->trim(request.slot, static_cast<std::int64_t>(length), nullptr);
    request.tokens.resize(length);
  }

  void fork() {
    if (live_.empty() || live_.size() == cache_.shape.slots) return;
    Request& parent = some();
    Fork made;
    try {
      made = cache_->fork(parent.slot, static_cast<std::int64_t>(parent.length()));
    } catch (const OutOfMemory& error) {
      CHECK(error.requested > error.free + error.reclaimable);
      return;
    }
    CHECK_EQUAL(made.first, 0u);
    CHECK_EQUAL(made.end, std::min(parent.length(), ring()) * cache_.cache->geometry().token_bytes);
    for (std::uint32_t arena = 0; arena < cache_.shape.arenas; ++arena) {
      std::memcpy(cache_.token(arena, made.slot, 0), cache_.token(arena, parent.slot, 0), made.end);
    }
    allowed_[made.slot.index] = parent.length();
    // A copy: the list may move while it takes one.
    const Request child = {made.slot, parent.tokens, parent.most};
    live_.push_back(child);
  }

  // The window of the next token, and what the ring holds besides, at both addresses.
  void check(const Request& request) {
    CHECK_EQUAL(static_cast<std::uint64_t>(cache_->length(request.slot)), request.length());
    const std::uint64_t least = request.most > ring() ? request.most - ring() : 0;
    for (std::uint64_t t = least; t < request.length(); ++t) {
      for (std::uint32_t arena = 0; arena < cache_.shape.arenas; ++arena) {
        for (const std::uint64_t at : {t % ring(), t % ring() + ring()}) {
          CHECK_EQUAL(unsigned{cache_.token(arena, request.slot, at)[1]},
                      unsigned{request.tokens[t]});
        }
      }
    }
  }

  WatchedCache& cache_;
  Random& random_;
  std::vector<Request> live_;
  // By slot: where the last step that made it longer may fall back to.
  std::uint64_t allowed_[16] = {};
};

void run_random(const std::string& driver, bool eager, unsigned seeds) {
  test::with_seeds(seeds, [&](std::uint64_t seed) {
    Random random(seed);
    CacheShape shape = ring_shape();
    shape.driver = driver;
    shape.eager = eager;
    shape.arenas = static_cast<std::uint32_t>(random.between(1, 3));
    shape.slots = static_cast<std::uint32_t>(random.between(1, 8));
    shape.window = static_cast<std::uint32_t>(random.between(1, 16));
    shape.guard_tokens = static_cast<std::uint32_t>(random.below(8));
    shape.limit_pages = random.between(18, 120);
    shape.slab_pages = std::uint64_t{1} << random.below(5);
    shape.read_ahead = static_cast<std::uint32_t>(random.below(12));
    WatchedCache cache(shape);
    Requests requests(cache, random);
    for (int i = 0; i < 300; ++i) requests.one_operation();
    cache.check_books();
    cache.close();
  });
}

TEST(rings_keep_their_word_under_random_requests) {
  for (const std::string& driver : test::testable_drivers()) run_random(driver, false, 2);
  for (const std::string& driver : test::fine_drivers()) run_random(driver, false, 12);
}

TEST(rings_keep_their_word_with_the_mapper_thread) {
  for (const std::string& driver : test::fine_drivers()) run_random(driver, true, 12);
}

TEST(a_whole_ring_calls_no_driver) {
  for (const bool eager : {false, true}) {
    CacheShape shape = ring_shape();
    shape.eager = eager;
    WatchedCache cache(shape);
    const SlotRef slot = cache->acquire(0);
    const std::int64_t ring = cache->geometry().ring_tokens;
    for (std::int64_t length = 1; length <= ring; ++length) step_to(cache, slot, length);
    cache->drain();
    const std::uint64_t before = driver_calls(cache);
    const CacheStats full = cache->stats();
    CHECK_EQUAL(full.pages_live, std::uint64_t{shape.ring_pages} * shape.arenas);
    for (std::int64_t length = ring + 1; length <= 160; ++length) step_to(cache, slot, length);
    cache->drain();
    CHECK_EQUAL(driver_calls(cache), before);
    CHECK_EQUAL(cache->stats().pages_mapped, full.pages_mapped);
    cache.close();
  }
}

// Its pages stay in place, zeroed, for whatever request comes next.
TEST(a_released_ring_is_taken_over_whole) {
  WatchedCache cache(ring_shape());
  const SlotRef first = cache->acquire(150);
  step_to(cache, first, 20);
  step_to(cache, first, 30);
  *cache.token(0, first, 5) = 7;
  cache->release(first, nullptr);
  const std::uint64_t maps = cache->stats().map_calls;
  const SlotRef second = cache->acquire(150);
  step_to(cache, second, 20);
  CHECK_EQUAL(cache->stats().map_calls, maps);
  CHECK_EQUAL(unsigned{*cache.token(0, second, 5)}, 0u);
  cache.close();
}

TEST(a_ring_refuses_lengths_that_it_has_written_over) {
  WatchedCache cache(ring_shape());
  const SlotRef slot = cache->acquire(0);
  step_to(cache, slot, 24);
  // The next query is at 25 - 24 + 10 - 1 at least: before a step and after it.
  CHECK_THROWS(LengthError, step_to(cache, slot, 40, 1));
  CHECK_EQUAL(cache->length(slot), 24);
  step_to(cache, slot, 30, 9);
  step_to(cache, slot, 15);
  CHECK_THROWS(LengthError, step_to(cache, slot, 14));
  CHECK_THROWS(LengthError, cache->trim(slot, 14, nullptr));
  CHECK_THROWS(LengthError, cache->fork(slot, 14));
  CHECK_EQUAL(cache->length(slot), 15);
  // A chunk that is appended and attended to in pieces may be longer than the ring.
  step_to(cache, slot, 120);
  CHECK_THROWS(LengthError, step_to(cache, slot, 104));
  step_to(cache, slot, 105);
  cache.close();
}

// Where a later group finds no memory, what the ring has is as it was.
TEST(a_ring_is_as_it_was_where_another_group_fails) {
  const std::size_t page = driver_capabilities("host", 0).page_sizes.front();
  const DriverPtr driver = make_driver({"host", page, 0});
  const std::vector<LayerGroup> groups = {{1, page / 4, 0, 10, 24}, {1, page / 4, 0, 0, 0}};
  GroupedCache cache(driver, groups, 2, 400, std::make_shared<MemoryLimit>(20 * page), {});
  const SlotRef slot = cache.acquire(0);
  const SlotLength first = {slot, 30};
  cache.step(&first, 1, {});
  const SlotLength next = {slot, 200};
  CHECK_THROWS(OutOfMemory, cache.step(&next, 1, {}));
  CHECK_EQUAL(cache.length(slot), 30);
  const SlotLength back = {slot, 15};
  CHECK_THROWS(LengthError, cache.step(&back, 1, {}));
  const SlotLength again = {slot, 31};
  cache.step(&again, 1, {});
  cache.close();
}

TEST(rings_that_cannot_be_are_refused) {
  const auto refuses = [](const CacheShape& shape) { WatchedCache cache(shape); };
  CacheShape shape = ring_shape();
  shape.window = 0;
  CHECK_THROWS(ConfigError, refuses(shape));
  shape.window = 22;
  CHECK_THROWS(ConfigError, refuses(shape));
  shape.window = 21;
  refuses(shape);
}

}  // namespace
}  // namespace pyvattn
