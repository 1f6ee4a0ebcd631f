// SPDX-License-Identifier: Apache-2.0
// Everything at once: several threads with requests of their own, one that asks and
// resizes, a device that passes fences late, and the mapper thread.
#include <algorithm>
#include <cstring>
#include <deque>
#include <thread>

#include "base/errors.hpp"
#include "tests/cache_support.hpp"

namespace pyvattn {
namespace {

using test::CacheShape;
using test::ManualFence;
using test::Random;
using test::WatchedCache;

// Lets fences pass in the order in which they were handed over, a little late.
class Device {
 public:
  Device() : thread_([this] { run(); }) {}
  ~Device() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void submit(std::shared_ptr<ManualFence> fence) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      fences_.push_back(std::move(fence));
    }
    changed_.notify_all();
  }

 private:
  void run() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return stopping_ || !fences_.empty(); });
      if (fences_.empty()) return;
      const auto fence = fences_.front();
      fences_.pop_front();
      lock.unlock();
      for (int i = 0; i < 20; ++i) std::this_thread::yield();
      fence->pass();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<ManualFence>> fences_;
  bool stopping_ = false;
  std::thread thread_;
};

// Runs `body`, and keeps the first failure for the thread that joins.
class Worker {
 public:
  explicit Worker(std::function<void()> body)
      : thread_([this, body = std::move(body)] {
          try {
            body();
          } catch (const std::exception& error) {
            failure_ = error.what();
          }
        }) {}
  // A test that fails before join() must say so, not end the program.
  ~Worker() {
    if (thread_.joinable()) thread_.join();
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void join() {
    thread_.join();
    CHECK_EQUAL(failure_, "");
  }

 private:
  std::string failure_;
  std::thread thread_;
};

class Client {
 public:
  Client(WatchedCache& cache, Device& device, std::uint64_t seed)
      : cache_(cache), device_(device), random_(seed) {}

  void serve_one_request() {
    const std::uint32_t max = cache_.cache->geometry().max_tokens;
    const std::uint64_t target = random_.between(1, max);
    try {
      slot_ = cache_->acquire(static_cast<std::int64_t>(target));
    } catch (const OutOfSlots&) {
      return;
    }
    mark_ = static_cast<unsigned char>(random_.between(1, 255));
    std::uint64_t length = 0;
    while (length < target) {
      const std::uint64_t next = std::min(target, length + random_.between(1, 6));
      if (!step(next)) break;
      use(length, next);
      length = next;
      if (random_.one_in(2)) prefetch(std::min<std::uint64_t>(max, length + 6));
    }
    release();
  }

 private:
  // False where the cache is full for now.
  bool step(std::uint64_t length) {
    const SlotLength request = {slot_, static_cast<std::int64_t>(length)};
    while (true) {
      try {
        cache_->step(&request, 1);
        return true;
      } catch (const BusyError&) {
        std::this_thread::yield();
      } catch (const OutOfMemory&) {
        return false;
      }
    }
  }

  // New tokens read as zeros, old ones as they were written.
  void use(std::uint64_t from, std::uint64_t to) {
    for (std::uint32_t arena = 0; arena < cache_.shape.arenas; ++arena) {
      for (std::uint64_t t = 0; t < to; ++t) {
        unsigned char* byte = cache_.token(arena, slot_, t);
        CHECK_EQUAL(unsigned{*byte}, t < from ? unsigned{mark_} : 0u);
        *byte = mark_;
      }
    }
  }

  void prefetch(std::uint64_t length) {
    const SlotLength request = {slot_, static_cast<std::int64_t>(length)};
    cache_->prefetch(&request, 1);
  }

  // What a kernel may still read: the tokens, and the guard where its pages are private.
  Range readable(std::uint32_t arena) const {
    const auto length = static_cast<std::uint64_t>(cache_.cache->length(slot_));
    const bool private_guard = length > 0 && !cache_.watch->capabilities().zero_backed;
    const std::uint64_t tokens = length + (private_guard ? cache_.shape.guard_tokens : 0);
    return {cache_.row(arena, slot_).address, tokens * cache_.cache->geometry().token_bytes};
  }

  void release() {
    if (random_.one_in(2)) {
      const auto fence = std::make_shared<ManualFence>();
      for (std::uint32_t arena = 0; arena < cache_.shape.arenas; ++arena) {
        cache_.watch->protect(readable(arena), fence);
      }
      cache_->release(slot_, fence);
      device_.submit(fence);
    } else {
      cache_->release(slot_, nullptr);
    }
  }

  WatchedCache& cache_;
  Device& device_;
  Random random_;
  SlotRef slot_;
  unsigned char mark_ = 0;
};

// Calls that only ask, and the limit that moves.
void disturb(WatchedCache& cache, Random& random, const std::atomic<bool>& done) {
  while (!done) {
    const CacheStats s = cache->stats();
    CHECK(s.pages_allocated >= s.pages_free);
    cache->can_admit(static_cast<std::int64_t>(random.below(cache->geometry().max_tokens)));
    try {
      cache->resize(random.between(cache.shape.limit_pages / 2, cache.shape.limit_pages) *
                    cache.page_size);
    } catch (const LimitError&) {
    }
    if (random.one_in(4)) cache->drain();
    cache.check_rules();
    std::this_thread::yield();
  }
}

void run_threads(const std::string& driver, std::uint64_t seed, int requests) {
  CacheShape shape;
  shape.driver = driver;
  shape.eager = true;
  shape.slots = 5;
  shape.limit_pages = 60;
  shape.slab_pages = 4;
  shape.read_ahead = static_cast<std::uint32_t>(seed % 3 * 4);
  WatchedCache cache(shape);
  {
    Device device;
    std::atomic<bool> done{false};
    std::vector<std::unique_ptr<Worker>> clients;
    for (std::uint64_t i = 0; i < 4; ++i) {
      clients.push_back(std::make_unique<Worker>([&, i] {
        Client client(cache, device, seed * 100 + i);
        for (int request = 0; request < requests; ++request) client.serve_one_request();
      }));
    }
    Worker disturber([&] {
      Random random(seed);
      disturb(cache, random, done);
    });
    std::string failure;
    for (const auto& client : clients) {
      try {
        client->join();
      } catch (const test::Failure& error) {
        failure = error.what();
      }
    }
    done = true;
    disturber.join();
    CHECK_EQUAL(failure, "");
  }
  cache.check_books();
  CHECK_EQUAL(cache->stats().slots_live, 0u);
  CHECK_EQUAL(cache->stats().bytes_used, 0u);
  cache.close();
}

TEST(cache_serves_several_threads_at_once) {
  for (const std::string& driver : test::testable_drivers()) run_threads(driver, 1, 15);
  for (const std::string& driver : test::fine_drivers()) {
    test::with_seeds(3, [&](std::uint64_t seed) { run_threads(driver, seed, 60); });
  }
}

// The background takes spare pages of a live slot. While it is at it, a step of that slot
// must not count on them.
TEST(cache_waits_for_pages_that_the_mapper_thread_is_taking) {
  CacheShape shape;
  shape.eager = true;
  shape.arenas = 1;
  shape.slots = 2;
  shape.guard_tokens = 0;
  shape.row_pages = 8;
  shape.limit_pages = 10;
  WatchedCache cache(shape);
  const auto step = [&](const SlotRef& slot, std::int64_t length) {
    const SlotLength request = {slot, length};
    cache->step(&request, 1);
  };
  const SlotRef old = cache->acquire(32);
  step(old, 32);
  cache->release(old, nullptr);
  cache->drain();
  const SlotRef rich = cache->acquire(32);
  const SlotRef poor = cache->acquire(0);
  step(rich, 4);
  cache->drain();

  const auto gate = std::make_shared<ManualFence>();
  cache.watch->hold(Operation::unmap, gate);
  const SlotLength wish = {poor, 20};
  cache->prefetch(&wish, 1);
  cache.watch->wait_for_held();
  // What is taken, and not needed, is mapped still: it must not be in the pool yet.
  const CacheStats meanwhile = cache->stats();
  const std::uint64_t mapped = cache.watch->mappings().size();
  std::string outcome = "backed";
  Worker stepping([&] {
    try {
      step(rich, 32);
      if (!cache.is_backed(rich, 32)) outcome = "not backed";
    } catch (const OutOfMemory&) {
      outcome = "refused";
    }
  });
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();
  cache.watch->hold(Operation::unmap, nullptr);
  gate->pass();
  stepping.join();
  CHECK(mapped + meanwhile.pages_free <= meanwhile.pages_allocated);
  CHECK(outcome == "refused" || (outcome == "backed" && cache.is_backed(rich, 32)));
  cache.close();
}

// A step waits for one slot that the background is mapping; by the time it is done, the
// background has taken up the next one, which the step has seen idle before.
TEST(cache_looks_again_after_waiting_for_the_mapper_thread) {
  test::with_seeds(20, [](std::uint64_t) {
    CacheShape shape;
    shape.eager = true;
    // So many arenas that the background takes one slot at a time.
    shape.arenas = 128;
    shape.slots = 2;
    shape.row_pages = 2;
    shape.limit_pages = 512;
    shape.slab_pages = 64;
    WatchedCache cache(shape);
    const SlotRef first = cache->acquire(0);
    const SlotRef second = cache->acquire(0);
    cache->drain();

    const auto gates = {std::make_shared<ManualFence>(), std::make_shared<ManualFence>()};
    cache.watch->hold(Operation::map, *gates.begin());
    const SlotLength wishes[] = {{first, 4}, {second, 4}};
    cache->prefetch(wishes, 2);
    cache.watch->wait_for_held();
    Worker stepping([&] { cache->step(wishes, 2); });
    for (int i = 0; i < 100; ++i) std::this_thread::yield();
    cache.watch->hold(Operation::map, *(gates.begin() + 1));
    (*gates.begin())->pass();
    for (int i = 0; i < 100; ++i) std::this_thread::yield();
    (*(gates.begin() + 1))->pass();
    stepping.join();
    CHECK(cache.is_backed(first, 4));
    CHECK(cache.is_backed(second, 4));
    cache.check_books();
    cache.close();
  });
}

// The mapper thread runs out of the process's own memory: the process goes on, and the call
// that needs the pages maps or cleans them itself.
TEST(cache_outlives_a_mapper_thread_that_is_out_of_memory) {
  CacheShape shape;
  shape.eager = true;
  WatchedCache cache(shape);
  const SlotRef slot = cache->acquire(0);
  cache->drain();
  cache.watch->exhaust(Operation::map);
  const SlotLength wish = {slot, 20};
  cache->prefetch(&wish, 1);
  cache->drain();
  CHECK_EQUAL(cache->stats().prefetch_failures, 1u);
  CHECK(!cache.is_backed(slot, 1));
  cache.check_books();
  cache->step(&wish, 1);
  CHECK(cache.is_backed(slot, 20));
  // The step woke the thread as well, and a second pass would clean what the first could not.
  cache->drain();

  cache.watch->exhaust(Operation::zero);
  cache->release(slot, nullptr);
  cache->drain();
  CHECK_EQUAL(cache->stats().prefetch_failures, 2u);
  CHECK(cache->stats().pages_quarantined > 0);
  cache.check_books();
  cache->resize(shape.limit_pages * cache.page_size);
  CHECK_EQUAL(cache->stats().pages_quarantined, 0u);
  cache.close();
}

// close() may come while every other call is on its way: each ends, or says ClosedError.
TEST(cache_closes_under_the_feet_of_other_threads) {
  test::with_seeds(20, [](std::uint64_t seed) {
    CacheShape shape;
    shape.eager = true;
    WatchedCache cache(shape);
    std::vector<std::unique_ptr<Worker>> workers;
    for (std::uint64_t i = 0; i < 3; ++i) {
      workers.push_back(std::make_unique<Worker>([&cache, seed, i] {
        Random random(seed * 10 + i);
        try {
          while (true) {
            const SlotRef slot = cache->acquire(10);
            const SlotLength lengths = {slot, static_cast<std::int64_t>(random.between(1, 30))};
            cache->prefetch(&lengths, 1);
            try {
              cache->step(&lengths, 1);
            } catch (const BusyError&) {
            }
            cache->release(slot, nullptr);
          }
        } catch (const ClosedError&) {
        }
      }));
    }
    // One that takes the lock for nothing else.
    workers.push_back(std::make_unique<Worker>([&cache] {
      try {
        while (true) CHECK(cache->arena(0)->bytes() > 0);
      } catch (const ClosedError&) {
      }
    }));
    for (std::uint64_t i = 0; i < seed * 5; ++i) std::this_thread::yield();
    cache->close();
    for (const auto& worker : workers) worker->join();
    cache.close();
  });
}

// trim() takes blocks away without the lock: close() must not take the same ones.
TEST(cache_closes_once_a_slot_has_been_shortened) {
  WatchedCache cache(CacheShape{});
  const SlotRef slot = cache->acquire(0);
  const SlotLength whole = {slot, 30};
  cache->step(&whole, 1);
  const auto gate = std::make_shared<ManualFence>();
  cache.watch->hold(Operation::unmap, gate);
  Worker trimming([&] { cache->trim(slot, 4, nullptr); });
  cache.watch->wait_for_held();
  Worker closing([&] { cache->close(); });
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();
  cache.watch->hold(Operation::unmap, nullptr);
  gate->pass();
  trimming.join();
  closing.join();
  cache.close();
}

TEST(blocks_on_their_way_to_a_free_slot_are_not_live) {
  CacheShape shape;
  shape.eager = true;
  WatchedCache cache(shape);
  const auto until = std::make_shared<ManualFence>();
  cache.watch->hold(Operation::map, until);
  cache->acquire(8);
  cache.watch->wait_for_held();
  const CacheStats meanwhile = cache->stats();
  until->pass();
  cache.watch->hold(Operation::map, nullptr);
  cache->drain();
  CHECK_EQUAL(meanwhile.pages_live, 0u);
  CHECK(meanwhile.pages_retained > 0);
  CHECK_EQUAL(meanwhile.pages_retained, cache->stats().pages_retained);
  cache.check_books();
}

}  // namespace
}  // namespace pyvattn
