// SPDX-License-Identifier: Apache-2.0
// Forks: what is shared, what is not, and who zeroes it in the end.
#include <cstring>

#include "base/errors.hpp"
#include "tests/cache_support.hpp"

namespace pyvattn {
namespace {

using test::CacheShape;
using test::ManualFence;
using test::WatchedCache;

// Four tokens a page; ten tokens are two whole blocks and half of one.
constexpr std::uint32_t kTokens = 10;

void write(const WatchedCache& cache, const SlotRef& slot, std::uint64_t tokens, int mark) {
  for (std::uint32_t arena = 0; arena < cache.shape.arenas; ++arena) {
    for (std::uint64_t t = 0; t < tokens; ++t) std::memset(cache.token(arena, slot, t), mark, 8);
  }
}

bool reads(const WatchedCache& cache, const SlotRef& slot, std::uint64_t tokens, int mark) {
  for (std::uint32_t arena = 0; arena < cache.shape.arenas; ++arena) {
    for (std::uint64_t t = 0; t < tokens; ++t) {
      if (cache.token(arena, slot, t)[0] != mark) return false;
    }
  }
  return true;
}

TEST(fork_shares_whole_blocks_and_backs_the_rest) {
  for (const std::string& driver : test::fine_drivers()) {
    CacheShape shape;
    shape.driver = driver;
    WatchedCache cache(shape);
    const SlotRef parent = cache->admit(kTokens);
    write(cache, parent, kTokens, 7);
    const CacheStats before = cache->stats();
    const Fork fork = cache->fork(parent, kTokens);
    CHECK_EQUAL(fork.first, 2 * cache.page_size);
    CHECK_EQUAL(fork.end, kTokens * cache.page_size / 4);
    CHECK(cache.is_backed(fork.slot, kTokens));
    CHECK(reads(cache, fork.slot, 8, 7));
    CHECK(reads(cache, fork.slot, 8, 7));
    CHECK_EQUAL(unsigned{cache.token(0, fork.slot, 8)[0]}, 0u);
    CHECK_EQUAL(cache->length(fork.slot), std::int64_t{kTokens});
    // Only what it does not share.
    const CacheStats after = cache->stats();
    CHECK_EQUAL(after.pages_live - before.pages_live, before.pages_live - 2 * shape.arenas);
    cache.check_books();
    cache.close();
  }
}

TEST(a_shared_block_outlives_either_slot_and_is_zeroed_after_the_last) {
  for (const bool parent_first : {true, false}) {
    for (const bool eager : {true, false}) {
      CacheShape shape;
      shape.eager = eager;
      shape.slots = 2;
      WatchedCache cache(shape);
      const SlotRef parent = cache->admit(kTokens);
      write(cache, parent, kTokens, 7);
      const SlotRef fork = cache->fork(parent, kTokens).slot;
      const SlotRef first = parent_first ? parent : fork;
      const SlotRef last = parent_first ? fork : parent;
      cache->release(first, nullptr);
      cache->drain();
      CHECK(reads(cache, last, 8, 7));
      cache.check_books();
      // The row that came free is another request's, and the blocks are not.
      const SlotRef other = cache->admit(32);
      CHECK(reads(cache, other, 32, 0));
      write(cache, other, 32, 9);
      CHECK(reads(cache, last, 8, 7));
      cache->release(last, nullptr);
      cache->drain();
      const SlotRef next = cache->admit(32);
      CHECK(reads(cache, next, 32, 0));
      cache.check_books();
      cache.close();
    }
  }
}

TEST(a_slot_is_not_made_shorter_than_what_it_shares) {
  WatchedCache cache(CacheShape{});
  const SlotRef parent = cache->admit(kTokens);
  const SlotRef fork = cache->fork(parent, kTokens).slot;
  for (const SlotRef& slot : {parent, fork}) {
    const SlotLength shorter = {slot, 7};
    CHECK_THROWS(LengthError, cache->step(&shorter, 1));
    CHECK_THROWS(LengthError, cache->trim(slot, 7, nullptr));
    const SlotLength shared = {slot, 8};
    cache->step(&shared, 1);
    cache->trim(slot, 8, nullptr);
  }
  CHECK_THROWS(LengthError, cache->fork(parent, 9));
  cache.check_books();
}

TEST(a_fork_that_finds_no_memory_leaves_nothing_behind) {
  CacheShape shape;
  shape.limit_pages = 5 * shape.arenas;
  shape.slab_pages = shape.arenas;
  WatchedCache cache(shape);
  const SlotRef parent = cache->admit(kTokens);
  cache->admit(8);
  const auto before = cache.snapshot({parent});
  CHECK_THROWS(OutOfMemory, cache->fork(parent, kTokens));
  const SlotLength shorter = {parent, 1};
  cache->step(&shorter, 1);
  const SlotLength again = {parent, kTokens};
  cache->step(&again, 1);
  CHECK(cache->can_admit(0));
  cache.check_books();
  CHECK_EQUAL(cache->stats().slots_live, 2u);
  CHECK_EQUAL(cache->stats().pages_live, before.counts[4]);
  // Whole blocks alone need none.
  cache->fork(parent, 8);
  cache.check_books();
}

TEST(a_failing_driver_call_does_not_lose_blocks_of_a_fork) {
  for (std::uint32_t nth = 0; nth < 8; ++nth) {
    WatchedCache cache(CacheShape{});
    const SlotRef parent = cache->admit(kTokens);
    write(cache, parent, kTokens, 7);
    cache.faults->fail_nth(nth, false);
    try {
      const SlotRef fork = cache->fork(parent, kTokens).slot;
      cache->release(fork, nullptr);
    } catch (const DriverError&) {
    }
    cache.faults->disarm();
    CHECK(reads(cache, parent, kTokens, 7));
    cache->release(parent, nullptr);
    const SlotRef next = cache->admit(32);
    CHECK(reads(cache, next, 32, 0));
    cache.check_books();
    cache.close();
  }
}

TEST(a_fork_that_kernels_still_read_stays_mapped) {
  for (const bool eager : {true, false}) {
    CacheShape shape;
    shape.eager = eager;
    WatchedCache cache(shape);
    const SlotRef parent = cache->admit(kTokens);
    write(cache, parent, kTokens, 7);
    const SlotRef fork = cache->fork(parent, kTokens).slot;
    const auto fence = std::make_shared<ManualFence>();
    for (std::uint32_t arena = 0; arena < shape.arenas; ++arena) {
      cache.watch->protect(cache.row(arena, fork), fence);
    }
    cache->release(fork, fence);
    cache->release(parent, nullptr);
    cache->drain();
    CHECK(reads(cache, fork, 8, 7));
    cache.check_books();
    fence->pass();
    const SlotRef next = cache->admit(32);
    CHECK(reads(cache, next, 32, 0));
    cache.check_books();
    cache.close();
  }
}

}  // namespace
}  // namespace pyvattn
