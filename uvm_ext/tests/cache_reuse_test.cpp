// SPDX-License-Identifier: Apache-2.0
// Which row a request gets, what is mapped ahead of it, and what is taken from whom.
#include "cache/forecast.hpp"
#include "tests/cache_support.hpp"

namespace pyvattn {
namespace {

using test::CacheShape;
using test::WatchedCache;

constexpr std::int64_t kPageTokens = 4;

CacheShape one_arena(std::uint32_t slots, std::uint64_t limit_pages, std::uint32_t read_ahead = 0) {
  CacheShape shape;
  shape.arenas = 1;
  shape.slots = slots;
  shape.row_pages = 16;
  shape.guard_tokens = 0;
  shape.limit_pages = limit_pages;
  shape.slab_pages = 16;
  shape.read_ahead = read_ahead;
  return shape;
}

void step(WatchedCache& cache, const SlotRef& slot, std::int64_t tokens) {
  const SlotLength length = {slot, tokens};
  cache->step(&length, 1);
}

// Leaves free slots with so many pages each; returns their rows.
std::vector<std::uint32_t> leave_rows(WatchedCache& cache, const std::vector<int>& row_pages) {
  std::vector<SlotRef> slots;
  for (int pages : row_pages) {
    slots.push_back(cache->acquire(0));
    step(cache, slots.back(), pages * kPageTokens);
  }
  std::vector<std::uint32_t> rows;
  for (const SlotRef& slot : slots) {
    rows.push_back(slot.index);
    cache->release(slot, nullptr);
  }
  return rows;
}

TEST(acquire_keeps_a_long_row_for_a_long_request) {
  WatchedCache cache(one_arena(2, 64));
  const auto rows = leave_rows(cache, {16});
  const SlotRef brief = cache->acquire(5 * kPageTokens);
  CHECK(brief.index != rows[0]);
  CHECK_EQUAL(cache->acquire(5 * kPageTokens).index, rows[0]);
}

TEST(acquire_extends_a_row_that_is_little_too_short) {
  WatchedCache cache(one_arena(3, 64));
  const auto rows = leave_rows(cache, {1, 3});
  CHECK_EQUAL(cache->acquire(7 * kPageTokens).index, rows[1]);
  const SlotRef other = cache->acquire(7 * kPageTokens);
  CHECK(other.index != rows[0]);
}

TEST(growth_reads_ahead_in_whole_steps_where_there_is_room) {
  WatchedCache cache(one_arena(2, 16, 4 * kPageTokens));
  const SlotRef slot = cache->acquire(0);
  step(cache, slot, 1);
  CHECK_EQUAL(cache->stats().pages_live, 1u);
  CHECK_EQUAL(cache->stats().pages_ahead, 3u);
  const std::uint64_t calls = cache->stats().map_calls;
  step(cache, slot, 4 * kPageTokens);
  CHECK_EQUAL(cache->stats().map_calls, calls);
  cache.check_books();
}

TEST(reading_ahead_takes_pages_from_nobody) {
  WatchedCache cache(one_arena(2, 6, 4 * kPageTokens));
  const SlotRef first = cache->acquire(0);
  step(cache, first, 4 * kPageTokens);
  const SlotRef second = cache->acquire(0);
  step(cache, second, 1);
  CHECK_EQUAL(cache->stats().pages_ahead, 0u);
  CHECK_EQUAL(cache->stats().unmap_calls, 0u);
}

TEST(who_lacks_pages_takes_back_what_was_read_ahead) {
  WatchedCache cache(one_arena(2, 8, 4 * kPageTokens));
  const SlotRef first = cache->acquire(0);
  step(cache, first, 1);
  CHECK_EQUAL(cache->stats().pages_ahead, 3u);
  const SlotRef second = cache->acquire(0);
  step(cache, second, 7 * kPageTokens);
  CHECK_EQUAL(cache->stats().pages_ahead, 0u);
  CHECK(cache.is_backed(first, 1));
  CHECK(cache.is_backed(second, 7 * kPageTokens));
  cache.check_books();
}

TEST(growth_takes_a_tail_whole_and_serves_the_next_from_it) {
  WatchedCache cache(one_arena(3, 8));
  leave_rows(cache, {6, 2});
  const SlotRef slot = cache->acquire(0);
  step(cache, slot, 1);
  CHECK_EQUAL(cache->stats().unmap_calls, 1u);
  CHECK_EQUAL(cache->stats().pages_free, 5u);
  step(cache, slot, 5 * kPageTokens);
  CHECK_EQUAL(cache->stats().unmap_calls, 1u);
  cache.check_books();
}

// Two released rows lie side by side in a slab: together they are one extent.
TEST(growth_joins_the_tails_that_it_takes) {
  WatchedCache cache(one_arena(3, 16));
  leave_rows(cache, {8, 8});
  const std::uint64_t calls = cache->stats().map_calls;
  const SlotRef slot = cache->acquire(0);
  step(cache, slot, 16 * kPageTokens);
  CHECK_EQUAL(cache->stats().map_calls, calls + 1);
}

TEST(forecast_follows_how_far_requests_outgrow_what_they_were_acquired_for) {
  Forecast forecast;
  CHECK_EQUAL(forecast.growth(), 0u);
  for (int i = 0; i < 200; ++i) forecast.ended(100, 300);
  CHECK(forecast.growth() >= 195 && forecast.growth() <= 200);
  for (int i = 0; i < 200; ++i) forecast.ended(0, 5000);
  CHECK(forecast.growth() >= 195);
  for (int i = 0; i < 200; ++i) forecast.ended(500, 20);
  CHECK(forecast.growth() <= 5);
}

// Requests are acquired for one page and come to four: the next gets a row of that length.
TEST(acquire_looks_for_a_row_as_long_as_requests_become) {
  WatchedCache cache(one_arena(3, 64));
  for (int i = 0; i < 60; ++i) {
    const SlotRef slot = cache->acquire(kPageTokens);
    step(cache, slot, 4 * kPageTokens);
    cache->release(slot, nullptr);
  }
  const auto rows = leave_rows(cache, {2, 4});
  const SlotRef slot = cache->acquire(kPageTokens);
  const std::uint64_t calls = cache->stats().map_calls;
  step(cache, slot, 4 * kPageTokens);
  CHECK_EQUAL(cache->stats().map_calls, calls);
}

}  // namespace
}  // namespace pyvattn
