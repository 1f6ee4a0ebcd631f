// SPDX-License-Identifier: Apache-2.0
// Random requests on one thread, against a model of what every slot was told.
#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "base/errors.hpp"
#include "tests/cache_support.hpp"

namespace pyvattn {
namespace {

using test::CacheShape;
using test::Random;
using test::WatchedCache;

// Bytes of a token that are written and read.
constexpr std::size_t kSample = 8;

using Sample = std::array<unsigned char, kSample>;

// The guard may become a page while it is read: a zero-backed driver replaces one by the
// other in one go. ThreadSanitizer sees a write in the mmap that does so, and is told. It may
// happen between two bytes: only a byte at a time is what it should be.
__attribute__((no_sanitize("thread"))) Sample read_sample(const volatile unsigned char* bytes) {
  Sample sample;
  for (std::size_t i = 0; i < kSample; ++i) sample.data()[i] = bytes[i];
  return sample;
}

class Requests {
 public:
  Requests(WatchedCache& cache, Random& random) : cache_(cache), random_(random) {}

  void one_operation() {
    const std::uint64_t choice = random_.below(24);
    if (choice >= 22) {
      trim_front();
    } else if (choice >= 20) {
      fork();
    } else if (choice < 4) {
      acquire();
    } else if (choice < 7) {
      release();
    } else if (choice < 15) {
      step();
    } else if (choice < 17) {
      prefetch();
    } else if (choice < 18) {
      resize();
    } else {
      cache_.check_books();
    }
    check_live();
  }

 private:
  struct Request {
    SlotRef slot;
    std::uint64_t length = 0;
    // What this request writes, and what was written to each token, by the request that it
    // is a fork of as well.
    unsigned char mark = 0;
    std::vector<unsigned char> tokens;
    // Tokens below which its length may not fall, and those that it has no more.
    std::uint64_t shared = 0;
    std::uint64_t front = 0;

    std::uint64_t written() const { return tokens.size(); }
  };

  std::uint32_t max_tokens() const { return cache_.cache->geometry().max_tokens; }

  void acquire() {
    const std::uint64_t tokens = random_.below(max_tokens() + 1);
    if (live_.size() == cache_.shape.slots) {
      CHECK_THROWS(OutOfSlots, cache_->acquire(static_cast<std::int64_t>(tokens)));
      CHECK(!cache_->can_admit(static_cast<std::int64_t>(tokens)));
      return;
    }
    Request request;
    request.slot = cache_->acquire(static_cast<std::int64_t>(tokens));
    request.mark = static_cast<unsigned char>(random_.between(1, 255));
    CHECK_EQUAL(cache_->length(request.slot), 0);
    live_.push_back(request);
  }

  void fork() {
    if (live_.empty() || live_.size() == cache_.shape.slots) return;
    Request& parent = live_[random_.below(live_.size())];
    const std::uint64_t tokens = random_.between(parent.front, parent.length);
    CHECK_THROWS(LengthError, cache_->fork(parent.slot, parent.length + 1));
    Fork made;
    try {
      made = cache_->fork(parent.slot, static_cast<std::int64_t>(tokens));
    } catch (const OutOfMemory& error) {
      CHECK(error.requested > error.free + error.reclaimable);
      return;
    }
    const std::uint64_t shared = tokens - tokens % cache_.shape.tokens_per_page;
    CHECK_EQUAL(made.first, shared * cache_.cache->geometry().token_bytes);
    CHECK_EQUAL(made.end, tokens * cache_.cache->geometry().token_bytes);
    for (std::uint32_t arena = 0; arena < cache_.shape.arenas && made.end > made.first; ++arena) {
      std::memcpy(cache_.token(arena, made.slot, shared), cache_.token(arena, parent.slot, shared),
                  made.end - made.first);
    }
    parent.shared = std::max(parent.shared, shared);
    Request request;
    request.slot = made.slot;
    request.length = tokens;
    request.shared = std::max(shared, parent.front);
    request.front = parent.front;
    request.mark = static_cast<unsigned char>(random_.between(1, 255));
    request.tokens.assign(parent.tokens.begin(),
                          parent.tokens.begin() + static_cast<std::ptrdiff_t>(tokens));
    check_new_tokens(request, tokens);
    live_.push_back(request);
  }

  void trim_front() {
    if (live_.empty()) return;
    Request& request = live_[random_.below(live_.size())];
    request.front = random_.between(request.front, request.length);
    request.shared = std::max(request.shared, request.front);
    cache_->trim_front(request.slot, static_cast<std::int64_t>(request.front), nullptr);
  }

  void release() {
    if (live_.empty()) return;
    const std::size_t index = random_.below(live_.size());
    const SlotRef slot = live_[index].slot;
    cache_->release(slot, nullptr);
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(index));
    CHECK_THROWS(SlotError, cache_->release(slot, nullptr));
    const SlotLength late = {slot, 1};
    CHECK_THROWS(SlotError, cache_->step(&late, 1));
  }

  std::vector<SlotLength> some_lengths() {
    std::vector<SlotLength> lengths;
    for (const Request& request : live_) {
      if (random_.one_in(3)) continue;
      std::uint64_t length = request.length + 1;
      if (random_.one_in(3)) length = random_.below(max_tokens() + 1);
      length = std::max(length, request.shared);
      lengths.push_back(
          {request.slot, static_cast<std::int64_t>(std::min<std::uint64_t>(length, max_tokens()))});
    }
    return lengths;
  }

  void step() {
    const std::vector<SlotLength> lengths = some_lengths();
    try {
      cache_->step(lengths.data(), lengths.size());
    } catch (const OutOfMemory& error) {
      CHECK(error.requested > error.free + error.reclaimable);
      return;
    }
    for (const SlotLength& each : lengths) stepped(each);
  }

  void stepped(const SlotLength& now) {
    Request& request = *std::find_if(live_.begin(), live_.end(), [&](const Request& candidate) {
      return candidate.slot.index == now.slot.index;
    });
    const auto length = static_cast<std::uint64_t>(now.length);
    check_new_tokens(request, length);
    request.length = length;
    for (std::uint32_t arena = 0; arena < cache_.shape.arenas; ++arena) {
      for (std::uint64_t t = request.written(); t < length; ++t) {
        std::memset(cache_.token(arena, request.slot, t), request.mark, kSample);
      }
    }
    if (length > request.written()) request.tokens.resize(length, request.mark);
  }

  // What this request did not write reads as zeros, into the guard (invariants 2 and 3), or as
  // what it wrote at its front and has no more.
  // No kernel reads the row of a request without tokens: a private guard leaves it bare, and
  // zeros of a whole region make room for a moment when the first page there is mapped.
  void check_new_tokens(const Request& request, std::uint64_t length) {
    if (length == 0) return;
    for (std::uint32_t arena = 0; arena < cache_.shape.arenas; ++arena) {
      for (std::uint64_t t = request.written(); t < length + cache_.shape.guard_tokens; ++t) {
        const Sample sample = read_sample(cache_.token(arena, request.slot, t));
        for (const unsigned char byte : sample) CHECK(byte == 0 || is_gone(request, byte));
      }
    }
  }

  static bool is_gone(const Request& request, unsigned char mark) {
    const auto begin = request.tokens.begin();
    const auto end = begin + static_cast<std::ptrdiff_t>(request.front);
    return std::find(begin, end, mark) != end;
  }

  void prefetch() {
    const std::vector<SlotLength> lengths = some_lengths();
    cache_->prefetch(lengths.data(), lengths.size());
  }

  void resize() {
    const std::uint64_t limit = random_.between(1, 2 * cache_.shape.limit_pages) * cache_.page_size;
    const std::uint64_t before = cache_->stats().memory_limit;
    try {
      cache_->resize(limit);
      CHECK_EQUAL(cache_->stats().memory_limit, limit);
    } catch (const LimitError&) {
      CHECK_EQUAL(cache_->stats().memory_limit, before);
      const std::uint64_t live = cache_->stats().pages_live * cache_.page_size;
      CHECK(limit < std::max(live, cache_->geometry().block_bytes()));
    }
  }

  // Lengths and data of every request are what they were left as (invariant 1).
  void check_live() {
    std::uint64_t used = 0;
    for (const Request& request : live_) {
      used += request.length - request.front;
      CHECK_EQUAL(static_cast<std::uint64_t>(cache_->length(request.slot)), request.length);
      for (std::uint32_t arena = 0; arena < cache_.shape.arenas; ++arena) {
        for (std::uint64_t t = request.front; t < request.written();
             t += 1 + request.written() / 4) {
          CHECK_EQUAL(unsigned{cache_.token(arena, request.slot, t)[0]},
                      unsigned{request.tokens[t]});
        }
      }
    }
    const Geometry& g = cache_->geometry();
    CHECK_EQUAL(cache_->stats().bytes_used, used * g.token_bytes * g.arenas);
    CHECK_EQUAL(cache_->stats().slots_live, live_.size());
  }

  WatchedCache& cache_;
  Random& random_;
  std::vector<Request> live_;
};

void run_random(const std::string& driver, bool eager, unsigned seeds) {
  test::with_seeds(seeds, [&](std::uint64_t seed) {
    Random random(seed);
    CacheShape shape;
    shape.driver = driver;
    shape.eager = eager;
    shape.arenas = static_cast<std::uint32_t>(random.between(1, 4));
    shape.slots = static_cast<std::uint32_t>(random.between(1, 8));
    shape.limit_pages = random.between(4, 100);
    shape.slab_pages = std::uint64_t{1} << random.below(5);
    shape.guard_tokens = static_cast<std::uint32_t>(random.below(20));
    shape.read_ahead = static_cast<std::uint32_t>(random.below(12));
    WatchedCache cache(shape);
    Requests requests(cache, random);
    for (int i = 0; i < 300; ++i) requests.one_operation();
    cache.check_books();
    cache.close();
  });
}

TEST(cache_keeps_its_word_under_random_requests) {
  for (const std::string& driver : test::testable_drivers()) run_random(driver, false, 2);
  for (const std::string& driver : test::fine_drivers()) run_random(driver, false, 12);
}

TEST(cache_keeps_its_word_with_the_mapper_thread) {
  for (const std::string& driver : test::testable_drivers()) run_random(driver, true, 2);
  for (const std::string& driver : test::fine_drivers()) run_random(driver, true, 12);
}

}  // namespace
}  // namespace pyvattn
