// SPDX-License-Identifier: Apache-2.0
// Caches and pools under budgets: of one, shared by two, and of a kind that grants and
// withdraws memory while they work.
#include <algorithm>
#include <atomic>
#include <thread>

#include "base/errors.hpp"
#include "drivers/registry.hpp"
#include "tests/cache_support.hpp"
#include "tests/row_map_support.hpp"

namespace pyvattn {
namespace {

using test::CacheShape;
using test::Random;
using test::WatchedCache;

// Leased from others: the limit moves by itself, and what seems to be left may be gone when
// it is asked for.
class Lease final : public Budget {
 public:
  explicit Lease(std::uint64_t granted) : granted_(granted) {}

  std::uint64_t limit() const override { return granted_; }
  std::uint64_t held() const override { return held_; }
  void set_limit(std::uint64_t limit) override { granted_ = limit; }
  bool take(std::uint64_t bytes) override {
    if (refuses || held_ + bytes > granted_) return false;
    held_ += bytes;
    most_held = std::max(most_held, held_.load());
    return true;
  }
  void give_back(std::uint64_t bytes) noexcept override { held_ -= bytes; }

  std::atomic<bool> refuses{false};
  std::uint64_t most_held = 0;

 private:
  std::atomic<std::uint64_t> granted_;
  std::atomic<std::uint64_t> held_{0};
};

struct Leased {
  explicit Leased(bool eager = false) {
    CacheShape shape;
    shape.eager = eager;
    // A block a slab, so that what is given back is exact.
    shape.slab_pages = shape.arenas;
    block = WatchedCache(shape).page_size * shape.arenas;
    lease = std::make_shared<Lease>(8 * block);
    shape.budget = lease;
    cache = std::make_unique<WatchedCache>(shape);
  }

  WatchedCache& operator*() { return *cache; }
  Cache* operator->() { return cache->cache.get(); }
  SlotRef request(std::uint32_t blocks) {
    return (*cache)->admit(std::int64_t{blocks} * cache->shape.tokens_per_page);
  }

  std::uint64_t block = 0;
  std::shared_ptr<Lease> lease;
  std::unique_ptr<WatchedCache> cache;
};

TEST(a_cache_takes_from_its_budget_what_it_allocates) {
  Leased t;
  const SlotRef slot = t.request(5);
  CHECK_EQUAL(t.lease->held(), 5 * t.block);
  CHECK_EQUAL(t->stats().pages_allocated, 15u);
  CHECK_EQUAL(t->stats().memory_limit, 8 * t.block);
  CHECK_THROWS(OutOfMemory, t.request(4));
  CHECK_EQUAL(t.lease->held(), 5 * t.block);
  t->release(slot, nullptr);
  t.cache->close();
  CHECK_EQUAL(t.lease->held(), 0u);
}

TEST(what_the_driver_has_not_is_given_back_to_the_budget) {
  Leased t;
  t.request(1);
  t.cache->faults->fail_nth(0, true);
  const SlotRef other = t->acquire(0);
  const SlotLength wanted = {other, 4};
  t->step(&wanted, 1);
  CHECK_EQUAL(t.lease->held(), 2 * t.block);
}

TEST(a_budget_that_grows_lets_a_waiting_step_have_memory) {
  Leased t;
  t.request(7);
  CHECK_THROWS(OutOfMemory, t.request(2));
  t.lease->set_limit(9 * t.block);
  t.request(2);
  CHECK_EQUAL(t.lease->held(), 9 * t.block);
  t.cache->check_books();
}

TEST(give_back_brings_a_cache_under_a_budget_that_shrank) {
  Leased t;
  const SlotRef stays = t.request(3);
  t->release(t.request(5), nullptr);
  t.lease->set_limit(5 * t.block);
  CHECK_EQUAL(t->give_back(), 5 * t.block);
  CHECK_EQUAL(t.lease->held(), 5 * t.block);
  CHECK(t.cache->is_backed(stays, 12));
  // What live slots hold stays.
  t.lease->set_limit(t.block);
  CHECK_EQUAL(t->give_back(), 3 * t.block);
  CHECK(t.cache->is_backed(stays, 12));
  CHECK_THROWS(OutOfMemory, t.request(1));
  t.cache->check_books();
}

TEST(the_background_gives_back_what_a_budget_has_withdrawn) {
  Leased t(true);
  const SlotRef stays = t.request(3);
  const SlotRef goes = t.request(5);
  t->drain();
  t.lease->set_limit(3 * t.block);
  t->release(goes, nullptr);
  t->drain();
  CHECK_EQUAL(t.lease->held(), 3 * t.block);
  CHECK(t.cache->is_backed(stays, 12));
  t.cache->check_books();
}

TEST(a_step_makes_do_where_the_budget_refuses_what_seemed_to_be_left) {
  Leased t;
  t->release(t.request(4), nullptr);
  const SlotRef slot = t->acquire(0);
  t.lease->refuses = true;
  const SlotLength fits = {slot, 4 * 4};
  t->step(&fits, 1);
  const auto before = t.cache->snapshot({slot});
  const SlotLength more = {slot, 6 * 4};
  CHECK_THROWS(OutOfMemory, t->step(&more, 1));
  CHECK(t.cache->snapshot({slot}) == before);
  t.lease->refuses = false;
  t->step(&more, 1);
}

TEST(two_caches_share_a_budget) {
  Leased one;
  CacheShape shape = one.cache->shape;
  WatchedCache two(shape);
  one.request(5);
  const auto fill = [&](std::uint32_t blocks) { return two->admit(std::int64_t{blocks} * 4); };
  CHECK_THROWS(OutOfMemory, fill(4));
  fill(3);
  CHECK_EQUAL(one.lease->held(), 8 * one.block);
  // Half of the budget goes: each gives back of its own.
  CHECK_THROWS(LimitError, one->resize(4 * one.block));
  one.cache->close();
  CHECK_EQUAL(one.lease->held(), 3 * one.block);
  CHECK_EQUAL(two->resize(4 * one.block), 3 * one.block);
  fill(1);
  CHECK_THROWS(OutOfMemory, fill(1));
  CHECK_EQUAL(one.lease->most_held, 8 * one.block);
}

TEST(a_block_pool_gives_back_what_its_budget_withdraws) {
  const std::uint64_t page = 64 << 10;
  const auto lease = std::make_shared<Lease>(6 * page);
  const auto store = std::make_shared<BlockStore>(make_driver({"host", page, 0}), 1, lease, page);
  const std::vector<BlockId> blocks = store->allocate(6, BlockPool::kAnywhere);
  CHECK_THROWS(OutOfMemory, store->allocate(1, BlockPool::kAnywhere));
  store->release({blocks.begin(), blocks.begin() + 4});
  lease->set_limit(3 * page);
  CHECK_EQUAL(store->give_back(), 3 * page);
  CHECK_EQUAL(lease->held(), 3 * page);
  store->close();
  CHECK_EQUAL(lease->held(), 0u);
}

TEST(a_memory_limit_grants_no_more_than_it_is_to_several_threads) {
  MemoryLimit limit(100);
  std::atomic<std::uint64_t> granted{0};
  std::atomic<bool> exceeded{false};
  const auto work = [&](std::uint64_t seed) {
    Random random(seed);
    for (int i = 0; i < 2000; ++i) {
      const std::uint64_t bytes = random.between(1, 60);
      if (!limit.take(bytes)) continue;
      if (granted.fetch_add(bytes) + bytes > 100) exceeded = true;
      granted -= bytes;
      limit.give_back(bytes);
    }
  };
  std::thread other([&] { work(1); });
  work(2);
  other.join();
  CHECK(!exceeded);
  CHECK_EQUAL(limit.held(), 0u);
  CHECK(!limit.take(101));
  limit.set_limit(101);
  CHECK(limit.take(101));
  limit.set_limit(50);
  CHECK_EQUAL(limit.headroom(), 0u);
}

}  // namespace
}  // namespace pyvattn
