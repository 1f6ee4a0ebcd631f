// SPDX-License-Identifier: Apache-2.0
// For every N the Nth driver call of an operation fails: the state is exactly what it was
// before, and the same call works afterwards (invariant 6). Then two calls fail, the
// second perhaps on the way back: the books still balance and nothing leaks.
#include <functional>

#include "base/errors.hpp"
#include "tests/cache_support.hpp"

namespace pyvattn {
namespace {

using test::CacheShape;
using test::Snapshot;
using test::WatchedCache;

constexpr int kMostCalls = 100;

struct Scenario {
  const char* name;
  CacheShape shape;
  // Brings a new cache to where the operation starts; returns the live slots.
  std::function<std::vector<SlotRef>(WatchedCache&)> prepare;
  std::function<void(WatchedCache&, const std::vector<SlotRef>&)> act;
};

void step_to(WatchedCache& cache, const std::vector<SlotRef>& slots, std::int64_t length) {
  std::vector<SlotLength> lengths;
  for (const SlotRef& slot : slots) lengths.push_back({slot, length});
  cache->step(lengths.data(), lengths.size());
}

SlotRef retained_row(WatchedCache& cache, std::int64_t tokens) {
  const SlotRef slot = cache->acquire(tokens);
  step_to(cache, {slot}, tokens);
  cache->release(slot, nullptr);
  return slot;
}

Scenario growth_from_fresh_slabs() {
  CacheShape shape;
  shape.guard_tokens = 0;
  return {"growth from fresh slabs", shape,
          [](WatchedCache& cache) {
            const std::vector<SlotRef> live = {cache->acquire(0), cache->acquire(0)};
            step_to(cache, live, 5);
            return live;
          },
          [](WatchedCache& cache, const std::vector<SlotRef>& live) { step_to(cache, live, 30); }};
}

Scenario growth_that_reads_ahead() {
  Scenario scenario = growth_from_fresh_slabs();
  scenario.name = "growth that reads ahead";
  scenario.shape.read_ahead = 8;
  return scenario;
}

// The pool is empty: pages come from two released slots.
Scenario growth_that_reclaims() {
  CacheShape shape;
  shape.guard_tokens = 0;
  shape.limit_pages = 48;
  return {"growth that reclaims", shape,
          [](WatchedCache& cache) {
            const std::vector<SlotRef> old = {cache->acquire(32), cache->acquire(32)};
            step_to(cache, old, 32);
            const std::vector<SlotRef> live = {cache->acquire(0), cache->acquire(0)};
            for (const SlotRef& slot : old) cache->release(slot, nullptr);
            return live;
          },
          [](WatchedCache& cache, const std::vector<SlotRef>& live) { step_to(cache, live, 31); }};
}

// A part of the pages from the pool and new slabs, a part from a live slot's spare tail.
Scenario growth_that_takes_a_live_slots_spare_pages() {
  CacheShape shape;
  shape.guard_tokens = 0;
  shape.limit_pages = 30;
  return {
      "growth that takes spare pages", shape,
      [](WatchedCache& cache) {
        retained_row(cache, 32);
        const std::vector<SlotRef> live = {cache->acquire(32), cache->acquire(0)};
        step_to(cache, {live[0]}, 4);
        return live;
      },
      [](WatchedCache& cache, const std::vector<SlotRef>& live) { step_to(cache, {live[1]}, 20); }};
}

// One slot only uses what it inherited, another grows: nothing of the former is spare while
// they step, and what was spare before is so again where the step fails.
Scenario growth_beside_a_slot_that_uses_what_it_inherited() {
  CacheShape shape;
  shape.guard_tokens = 0;
  return {"growth beside a slot that uses what it inherited", shape,
          [](WatchedCache& cache) {
            retained_row(cache, 32);
            const std::vector<SlotRef> live = {cache->acquire(32), cache->acquire(0)};
            step_to(cache, {live[0]}, 4);
            return live;
          },
          [](WatchedCache& cache, const std::vector<SlotRef>& live) { step_to(cache, live, 30); }};
}

// One ring grows to its whole length, the other over what it has held before.
Scenario growth_of_rings() {
  CacheShape shape;
  shape.guard_tokens = 2;
  shape.window = 9;
  shape.ring_pages = 4;
  return {"growth of rings", shape,
          [](WatchedCache& cache) {
            const std::vector<SlotRef> live = {cache->acquire(0), cache->acquire(0)};
            step_to(cache, live, 5);
            step_to(cache, {live[1]}, 8);
            return live;
          },
          [](WatchedCache& cache, const std::vector<SlotRef>& live) { step_to(cache, live, 18); }};
}

Scenario shrinking_the_limit() {
  CacheShape shape;
  shape.slab_pages = 4;
  return {
      "shrinking the limit", shape,
      [](WatchedCache& cache) {
        retained_row(cache, 20);
        return std::vector<SlotRef>{};
      },
      [](WatchedCache& cache, const std::vector<SlotRef>&) { cache->resize(3 * cache.page_size); }};
}

std::vector<Scenario> atomic_scenarios() {
  return {growth_from_fresh_slabs(),
          growth_that_reads_ahead(),
          growth_that_reclaims(),
          growth_that_takes_a_live_slots_spare_pages(),
          growth_beside_a_slot_that_uses_what_it_inherited(),
          growth_of_rings()};
}

std::vector<Scenario> all_scenarios() {
  std::vector<Scenario> scenarios = atomic_scenarios();
  scenarios.push_back(shrinking_the_limit());
  return scenarios;
}

// The scenario's shape on a driver: with one arena only where pages are large.
CacheShape shape_on(const std::string& driver, const Scenario& scenario) {
  CacheShape shape = scenario.shape;
  shape.driver = driver;
  if (!test::has_fine_pages(driver)) {
    shape.limit_pages /= shape.arenas;
    shape.arenas = 1;
  }
  return shape;
}

// Runs the operation on a new cache with its Nth driver call failing. False once the
// operation has no Nth call.
bool fail_one_call(const Scenario& scenario, const std::string& driver, int nth,
                   bool out_of_memory) {
  WatchedCache cache(shape_on(driver, scenario));
  const std::vector<SlotRef> live = scenario.prepare(cache);
  const Snapshot before = cache.snapshot(live);
  cache.faults->fail_nth(nth, out_of_memory);
  bool failed = false;
  try {
    scenario.act(cache, live);
  } catch (const Error&) {
    failed = true;
  }
  const bool reached = !cache.faults->armed();
  cache.faults->disarm();
  cache.check_books();
  if (failed) {
    CHECK(reached);
    CHECK(cache.snapshot(live) == before);
    scenario.act(cache, live);
    cache.check_books();
  }
  cache.close();
  return reached;
}

void fail_every_call(const std::vector<std::string>& drivers, bool out_of_memory) {
  for (const std::string& driver : drivers) {
    for (const Scenario& scenario : atomic_scenarios()) {
      int nth = 0;
      try {
        while (fail_one_call(scenario, driver, nth, out_of_memory)) CHECK(++nth < kMostCalls);
      } catch (const std::exception& error) {
        throw test::Failure(driver + ", " + scenario.name + ", call " + std::to_string(nth) + ": " +
                            error.what());
      }
      CHECK(nth > 0);
    }
  }
}

TEST(cache_is_unchanged_by_every_call_that_fails) {
  fail_every_call(test::testable_drivers(), false);
}

TEST(cache_is_unchanged_by_every_call_that_is_out_of_memory) {
  fail_every_call(test::fine_drivers(), true);
}

void fail_two_calls(const Scenario& scenario, const std::string& driver, int first, int second) {
  WatchedCache cache(shape_on(driver, scenario));
  const std::vector<SlotRef> live = scenario.prepare(cache);
  cache.faults->fail_nth(first, false);
  cache.second_fault->fail_nth(second, false);
  try {
    scenario.act(cache, live);
  } catch (const Error&) {
  }
  cache.faults->disarm();
  cache.second_fault->disarm();
  cache.check_books();
  scenario.act(cache, live);
  cache.check_books();
  cache.close();
}

TEST(cache_survives_a_failure_on_the_way_back) {
  constexpr int kCalls = 5;
  for (const std::string& driver : test::fine_drivers()) {
    for (const Scenario& scenario : all_scenarios()) {
      for (int first = 0; first < kCalls; ++first) {
        for (int second = 0; second < kCalls; ++second) {
          try {
            fail_two_calls(scenario, driver, first, second);
          } catch (const std::exception& error) {
            throw test::Failure(driver + ", " + scenario.name + ", calls " + std::to_string(first) +
                                " and " + std::to_string(second) + ": " + error.what());
          }
        }
      }
    }
  }
}

TEST(cache_leaks_nothing_where_opening_fails) {
  for (const std::string& driver : test::testable_drivers()) {
    CacheShape shape;
    shape.driver = driver;
    const WatchedCache whole(shape);
    const Geometry geometry = whole.cache->geometry();
    whole.cache->close();
    for (std::uint32_t nth = 0; nth < shape.arenas; ++nth) {
      whole.faults->fail_nth(nth, false);
      CHECK_THROWS(DriverError, Cache(whole.watch, geometry, whole.budget, CacheOptions{}));
      CHECK_EQUAL(whole.checked->live_reservations(), 0u);
    }
  }
}

TEST(close_gives_back_the_rest_when_it_is_called_again) {
  for (const std::string& driver : test::fine_drivers()) {
    for (int nth = 0; nth < kMostCalls; ++nth) {
      CacheShape shape;
      shape.driver = driver;
      WatchedCache cache(shape);
      const std::vector<SlotRef> live = {cache->acquire(0), cache->acquire(0)};
      step_to(cache, live, 10);
      cache.faults->fail_nth(nth, false);
      try {
        cache->close();
      } catch (const DriverError&) {
      }
      const bool reached = !cache.faults->armed();
      cache->close();
      // Of addresses that could not be released the driver takes care when it goes.
      CHECK(cache.watch->mappings().empty());
      CHECK_EQUAL(cache.checked->live_slabs(), 0u);
      if (!reached) break;
      CHECK(nth + 1 < kMostCalls);
    }
  }
}

}  // namespace
}  // namespace pyvattn
