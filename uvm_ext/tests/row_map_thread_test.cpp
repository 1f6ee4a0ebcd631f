// SPDX-License-Identifier: Apache-2.0
// What a row map leaves to its own thread.
#include <atomic>
#include <thread>

#include "base/errors.hpp"
#include "tests/row_map_support.hpp"

namespace pyvattn {
namespace {

using test::ManualFence;
using test::MapShape;
using test::Random;
using test::WatchedMap;

std::vector<BlockId> take(WatchedMap& map, std::uint32_t count) {
  return map.store->allocate(count, BlockPool::kAnywhere);
}

// Map calls wait until pass(), or until a test that fails has said so.
class HeldMaps {
 public:
  explicit HeldMaps(WatchedMap& map) : gate_(std::make_shared<ManualFence>()) {
    map.watch->hold(Operation::map, gate_);
  }
  HeldMaps(const HeldMaps&) = delete;
  HeldMaps& operator=(const HeldMaps&) = delete;
  ~HeldMaps() { pass(); }
  void pass() { gate_->pass(); }

 private:
  const std::shared_ptr<ManualFence> gate_;
};

TEST(background_thread_maps_without_its_caller) {
  WatchedMap map(MapShape{});
  HeldMaps gate(map);
  map->open(take(map, 3));
  map->flush_async();
  map.watch->wait_for_held();
  gate.pass();
  map->join();
  CHECK_EQUAL(map.watch->mappings().size(), 3u * 3);
  map.check_rows();
  map.close();
}

TEST(background_thread_maps_what_is_staged_while_it_is_busy) {
  WatchedMap map(MapShape{});
  HeldMaps first(map);
  map->open(take(map, 1));
  map->flush_async();
  map.watch->wait_for_held();
  map->open(take(map, 2));
  map->flush_async();
  HeldMaps second(map);
  first.pass();
  // Nobody has called join().
  map.watch->wait_for_held();
  second.pass();
  map->join();
  CHECK_EQUAL(map.watch->mappings().size(), 3u * 3);
  CHECK_EQUAL(map.store->stats().map_batches, 2u);
  map.close();
}

// All rows but one are closed, and their close() is part of the flush.
TEST(rows_that_were_closed_are_opened_again_while_the_background_thread_maps) {
  WatchedMap map(MapShape{});
  const std::vector<BlockId> blocks = take(map, 6);
  std::vector<std::uint32_t> rows;
  for (BlockId block : blocks) rows.push_back(map->open({block, block}));
  map->join();
  for (std::uint32_t row : rows) map->close(row, nullptr);
  HeldMaps gate(map);
  CHECK_EQUAL(map->open({blocks[0], blocks[0], blocks[0]}), rows[0]);
  map->flush_async();
  map.watch->wait_for_held();
  for (std::size_t i = 1; i < 5; ++i) CHECK_EQUAL(map->open({blocks[i]}), rows[i]);
  CHECK_EQUAL(map->reclaim(1), 0u);
  gate.pass();
  map->join();
  map.check_rows();
  // Behind the open rows and in the closed one, all is as it was.
  CHECK_EQUAL(map.watch->mappings().size(), 13u * 3);
  CHECK_EQUAL(map->open_rows().size(), 5u);
  CHECK_EQUAL(map.store->stats().unmap_calls, 0u);
  map.close();
}

TEST(join_does_what_no_thread_was_asked_for_and_nothing_twice) {
  WatchedMap map(MapShape{});
  map->join();
  map->open(take(map, 2));
  map->join();
  map.check_rows();
  map->join();
  map->flush_async();
  map->join();
  CHECK_EQUAL(map.store->stats().map_batches, 1u);
  map.close();
}

TEST(failure_of_the_background_thread_comes_at_join_with_nothing_changed) {
  WatchedMap map(MapShape{});
  const std::vector<BlockId> blocks = take(map, 4);
  const std::uint32_t row = map->open({blocks[0]});
  map->join();
  const auto before = map.watch->mappings();
  for (const bool out_of_memory : {false, true}) {
    map->extend(row, {blocks[1 + out_of_memory]});
    map.faults->fail_nth(0, out_of_memory);
    map->flush_async();
    if (out_of_memory) {
      CHECK_THROWS(DriverOutOfMemory, map->join());
    } else {
      CHECK_THROWS(DriverError, map->join());
    }
    CHECK(map.watch->mappings() == before);
  }
  // What was staged still is.
  map->join();
  map.check_rows();
  CHECK_EQUAL(map.watch->mappings().size(), 3u * 3);
  map.close();
}

TEST(failure_of_the_background_thread_comes_at_join_whatever_it_is_asked_meanwhile) {
  WatchedMap map(MapShape{});
  map->open(take(map, 1));
  HeldMaps gate(map);
  map.faults->fail_nth(0, false);
  map->flush_async();
  map.watch->wait_for_held();
  map->open(take(map, 1));
  map->flush_async();
  gate.pass();
  CHECK_THROWS(DriverError, map->join());
  CHECK(map.watch->mappings().empty());
  map->join();
  CHECK_EQUAL(map.watch->mappings().size(), 2u * 3);
  map.check_rows();
  map.close();
}

TEST(block_released_before_the_background_thread_maps_it_is_named_at_join) {
  WatchedMap map(MapShape{});
  const std::vector<BlockId> blocks = take(map, 1);
  map->open(blocks);
  map.store->release(blocks);
  map->flush_async();
  CHECK_THROWS(BlockError, map->join());
  map->discard();
  map->join();
  map.close();
}

TEST(failure_of_the_background_thread_is_forgotten_with_what_was_staged) {
  WatchedMap map(MapShape{});
  const std::vector<BlockId> blocks = take(map, 2);
  for (const bool flushed : {false, true}) {
    map->open({blocks[flushed]});
    HeldMaps gate(map);
    map.faults->fail_nth(0, false);
    map->flush_async();
    map.watch->wait_for_held();
    gate.pass();
    // Each waits for the thread, and deals with what it leaves.
    if (flushed) {
      map->flush();
    } else {
      map->discard();
    }
    map->join();
  }
  CHECK_EQUAL(map.watch->mappings().size(), 1u * 3);
  map.check_rows();
  map.close();
}

// One row is in the driver's hands, another is queued.
TEST(close_waits_for_the_background_thread_and_drops_what_is_queued) {
  WatchedMap map(MapShape{});
  HeldMaps gate(map);
  map->open(take(map, 2));
  map->flush_async();
  map.watch->wait_for_held();
  map->open(take(map, 1));
  map->flush_async();
  std::thread closing([&] { map.store->close(); });
  while (!map.store->closed()) std::this_thread::yield();
  CHECK_THROWS(ClosedError, map->flush_async());
  CHECK_THROWS(ClosedError, map->join());
  gate.pass();
  closing.join();
  CHECK_EQUAL(map.store->stats().map_batches, 1u);
  map.close();
}

TEST(map_that_ends_waits_for_its_background_thread) {
  WatchedMap map(MapShape{});
  HeldMaps gate(map);
  map->open(take(map, 2));
  map->flush_async();
  map.watch->wait_for_held();
  std::atomic<bool> ended{false};
  std::thread ending([&] {
    map.map.reset();
    ended = true;
  });
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();
  const bool too_early = ended;
  gate.pass();
  ending.join();
  CHECK(!too_early);
  CHECK(map.watch->mappings().empty());
  map.close();
}

TEST(retired_pool_has_no_background_thread_left_at_work) {
  WatchedMap map(MapShape{});
  HeldMaps gate(map);
  map->open(take(map, 2));
  map->flush_async();
  map.watch->wait_for_held();
  std::atomic<bool> retired{false};
  std::thread retiring([&] {
    map.store->retire();
    retired = true;
  });
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();
  const bool too_early = retired;
  gate.pass();
  retiring.join();
  CHECK(!too_early);
  CHECK_EQUAL(map.watch->mappings().size(), 2u * 3);
  map.close();
}

// Serves requests of its own beside others; sees to its rows with join() alone.
void serve(WatchedMap& map, std::uint64_t seed, const std::vector<BlockId>& blocks) {
  Random random(seed);
  const auto settle = [&] {
    while (true) {
      try {
        return map->join();
      } catch (const DriverError&) {
        // Injected, or another thread's: what was staged still is.
      }
    }
  };
  for (int request = 0; request < 30; ++request) {
    const std::uint32_t row = map->open({blocks[random.below(blocks.size())]});
    map->flush_async();
    for (std::uint64_t steps = random.below(5); steps > 0; --steps) {
      map->extend(row, {blocks[random.below(blocks.size())]});
      map->flush_async();
      if (random.one_in(8)) map.faults->fail_nth(0, random.one_in(2));
      if (random.one_in(2)) settle();
    }
    settle();
    map->close(row, nullptr);
    if (random.one_in(4)) map->flush_async();
  }
  settle();
}

TEST(several_threads_share_the_background_thread) {
  test::with_seeds(4, [](std::uint64_t seed) {
    WatchedMap map(MapShape{});
    std::vector<std::vector<BlockId>> blocks;
    for (int i = 0; i < 3; ++i) blocks.push_back(take(map, 5));
    std::vector<std::thread> threads;
    for (std::uint64_t i = 0; i < 3; ++i) {
      threads.emplace_back([&, seed, i] { serve(map, seed * 3 + i, blocks[i]); });
    }
    for (std::thread& thread : threads) thread.join();
    map.faults->disarm();
    map->join();
    map.check_rows();
    CHECK(map->open_rows().empty());
    map.close();
  });
}

}  // namespace
}  // namespace pyvattn
