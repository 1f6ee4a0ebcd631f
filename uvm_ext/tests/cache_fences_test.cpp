// SPDX-License-Identifier: Apache-2.0
// Which free slot a request gets while the device still uses some of them. The driver here
// zeroes late: what was released keeps a fence.
#include "cache/cache.hpp"
#include "drivers/registry.hpp"
#include "tests/cache_support.hpp"

namespace pyvattn {
namespace {

// Counts who waits, and has passed once somebody did.
class CountingFence final : public Fence {
 public:
  bool passed() override { return passed_; }
  void wait() override {
    ++waits_;
    passed_ = true;
  }
  void pass() { passed_ = true; }
  int waits() const { return waits_; }

 private:
  bool passed_ = false;
  int waits_ = 0;
};

class LateZeros final : public Adaptor {
 public:
  using Adaptor::Adaptor;
  FencePtr zero(const std::vector<Range>& batch, const FencePtr& after) override {
    inner().zero(batch, after);
    fences.push_back(std::make_shared<CountingFence>());
    return fences.back();
  }
  int waits() const {
    int sum = 0;
    for (const auto& fence : fences) sum += fence->waits();
    return sum;
  }

  std::vector<std::shared_ptr<CountingFence>> fences;
};

constexpr std::uint64_t kPage = 64 << 10;

// Four tokens to a page, one arena, rows of eight pages. Slots are released in the order
// of `row_pages`, which is also that of the fences.
struct Released {
  Released(std::uint32_t slots, std::uint64_t limit_pages,
           const std::vector<std::uint32_t>& row_pages)
      : driver(std::make_shared<LateZeros>(make_driver({"host", kPage, 0}))),
        cache(driver, Geometry{1, slots, 32, 0, kPage / 4, kPage},
              std::make_shared<MemoryLimit>(limit_pages * kPage), CacheOptions{8 * kPage, false}) {
    std::vector<SlotLength> lengths;
    for (std::uint32_t pages : row_pages) lengths.push_back({cache.acquire(0), 4 * pages});
    cache.step(lengths.data(), lengths.size());
    for (const SlotLength& each : lengths) {
      rows.push_back(each.slot.index);
      cache.release(each.slot, nullptr);
    }
  }

  const std::shared_ptr<LateZeros> driver;
  Cache cache;
  std::vector<std::uint32_t> rows;
};

TEST(acquire_takes_the_best_fit_among_slots_whose_fence_has_passed) {
  Released released(4, 64, {4, 5, 6, 2});
  released.driver->fences[1]->pass();
  released.driver->fences[2]->pass();
  CHECK_EQUAL(released.cache.acquire(16).index, released.rows[1]);
  CHECK_EQUAL(released.driver->waits(), 0);
}

TEST(acquire_takes_an_empty_slot_rather_than_wait) {
  Released released(2, 64, {4});
  CHECK(released.cache.acquire(16).index != released.rows[0]);
  CHECK_EQUAL(released.driver->waits(), 0);
}

TEST(acquire_waits_where_every_slot_has_a_fence_to_wait_for) {
  Released released(2, 64, {6, 4});
  CHECK_EQUAL(released.cache.acquire(16).index, released.rows[1]);
  CHECK_EQUAL(released.driver->fences[1]->waits(), 1);
  CHECK_EQUAL(released.driver->waits(), 1);
}

// An empty slot would have to take its pages from those that the device still uses.
TEST(acquire_waits_where_the_pages_would_have_to_be_waited_for_too) {
  Released released(3, 10, {4, 6});
  CHECK_EQUAL(released.cache.acquire(16).index, released.rows[0]);
  CHECK_EQUAL(released.driver->fences[0]->waits(), 1);
  CHECK_EQUAL(released.driver->waits(), 1);
}

TEST(close_waits_for_readers_of_a_trimmed_front_without_the_lock) {
  test::WatchedCache cache(test::CacheShape{});
  const SlotLength length = {cache->acquire(0), 12};
  cache->step(&length, 1);
  const auto fence = std::make_shared<test::AskingFence>([&] { cache->stats(); });
  cache.watch->protect({cache.row(0, length.slot).address, cache.page_size}, fence);
  cache->trim_front(length.slot, 4, fence);
  cache.close();
  CHECK(fence->passed());
}

TEST(growth_takes_pages_that_need_no_waiting_first) {
  Released released(3, 10, {4, 6});
  released.driver->fences[1]->pass();
  const SlotRef slot = released.cache.acquire(0);
  CHECK(slot.index != released.rows[0]);
  const SlotLength length = {slot, 4 * 6};
  released.cache.step(&length, 1);
  CHECK_EQUAL(released.driver->waits(), 0);
}

}  // namespace
}  // namespace pyvattn
