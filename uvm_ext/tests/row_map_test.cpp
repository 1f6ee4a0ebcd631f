// SPDX-License-Identifier: Apache-2.0
// The row map's promises, each by itself.
#include <thread>

#include "base/errors.hpp"
#include "tests/row_map_support.hpp"

namespace pyvattn {
namespace {

using test::ManualFence;
using test::MapShape;
using test::WatchedMap;

std::vector<BlockId> take(WatchedMap& map, std::uint32_t count) {
  return map.store->allocate(count, BlockPool::kAnywhere);
}

TEST(row_maps_its_blocks_in_order_once_flushed) {
  for (const std::string& driver : test::testable_drivers()) {
    MapShape shape;
    shape.driver = driver;
    if (!test::has_fine_pages(driver)) shape.arenas = 1;
    WatchedMap map(shape);
    std::vector<BlockId> blocks = take(map, 5);
    std::reverse(blocks.begin(), blocks.end());
    const std::uint32_t row = map->open({blocks.begin(), blocks.begin() + 3});
    CHECK(map.watch->mappings().empty());
    map->flush();
    map.check_rows();
    for (std::uint32_t p = 0; p < 3; ++p) map.byte(0, row, p) = static_cast<unsigned char>(p + 1);
    map->extend(row, {blocks.begin() + 3, blocks.end()});
    map->flush();
    map.check_rows();
    for (std::uint32_t p = 0; p < 3; ++p) CHECK_EQUAL(unsigned{map.byte(0, row, p)}, p + 1);
    CHECK(map->blocks(row) == blocks);
    map.close();
  }
}

TEST(row_of_consecutive_blocks_is_one_entry_in_each_arena) {
  WatchedMap map(MapShape{});
  map->open(take(map, 8));
  map->flush();
  CHECK_EQUAL(map.store->stats().map_calls, 3u);
  CHECK_EQUAL(map.store->stats().map_batches, 1u);
}

TEST(block_may_be_mapped_in_many_places_and_is_free_when_the_last_lets_go) {
  WatchedMap map(MapShape{});
  const std::vector<BlockId> blocks = take(map, 2);
  const std::uint32_t first = map->open({blocks[0], blocks[1], blocks[0]});
  const std::uint32_t second = map->open({blocks[1]});
  map->flush();
  map.check_rows();
  map.byte(1, first, 1) = 77;
  CHECK_EQUAL(unsigned{map.byte(1, second, 0)}, 77u);
  map.byte(2, first, 0) = 78;
  CHECK_EQUAL(unsigned{map.byte(2, first, 2)}, 78u);
  const std::uint64_t free = map.store->stats().blocks_free;
  map.store->release(blocks);
  map->close(first, nullptr);
  map->flush();
  CHECK_EQUAL(map.store->stats().blocks_free, free);
  CHECK_EQUAL(map->reclaim(2), 1u);
  CHECK_EQUAL(unsigned{map.byte(1, second, 0)}, 77u);
  map->close(second, nullptr);
  map->flush();
  CHECK_EQUAL(map->reclaim(1), 1u);
  CHECK_EQUAL(map.store->stats().blocks_free, free + 2);
  map.close();
}

TEST(trim_takes_blocks_from_both_ends_and_leaves_the_others_where_they_are) {
  WatchedMap map(MapShape{});
  const std::vector<BlockId> blocks = take(map, 6);
  const std::uint32_t row = map->open(blocks);
  map->flush();
  map.byte(0, row, 3) = 9;
  map->trim(row, 2, 1, nullptr);
  map->flush();
  map.check_rows();
  CHECK_EQUAL(unsigned{map.byte(0, row, 3)}, 9u);
  CHECK_EQUAL(map.watch->mappings().size(), 3u * 3);
  CHECK(map->blocks(row) ==
        std::vector<BlockId>({RowTable::kHole, RowTable::kHole, blocks[2], blocks[3], blocks[4]}));
  map->extend(row, {blocks[0]});
  map->flush();
  map.check_rows();
  CHECK_THROWS(RowError, map->trim(row, 3, 2, nullptr));
  map.close();
}

TEST(closed_row_keeps_its_mappings_for_who_wants_the_same_blocks) {
  WatchedMap map(MapShape{});
  const std::vector<BlockId> blocks = take(map, 9);
  const std::vector<BlockId> prompt(blocks.begin(), blocks.begin() + 4);
  const std::vector<BlockId> other(blocks.begin() + 4, blocks.begin() + 8);
  const std::uint32_t warm = map->open(prompt);
  const std::uint32_t cold = map->open(other);
  map->flush();
  map->close(cold, nullptr);
  map->close(warm, nullptr);
  map->flush();
  const StoreStats before = map.store->stats();
  // Of the colder row the first three stay, the fourth makes way.
  CHECK_EQUAL(map->open({other[0], other[1], other[2], blocks[8]}), cold);
  map->flush();
  map.check_rows();
  CHECK_EQUAL(map.store->stats().map_calls, before.map_calls + 3);
  const StoreStats between = map.store->stats();
  CHECK_EQUAL(map->open(prompt), warm);
  map->flush();
  CHECK_EQUAL(map.store->stats().map_calls, between.map_calls);
  CHECK_EQUAL(map.store->stats().unmap_calls, between.unmap_calls);
  map.close();
}

TEST(open_takes_the_longest_equal_prefix_then_an_empty_row_then_the_longest_closed) {
  WatchedMap map(MapShape{});
  const std::vector<BlockId> b = take(map, 6);
  const std::vector<std::vector<BlockId>> wanted = {
      {b[0], b[1]}, {b[0], b[1], b[2]}, {b[0], b[3]}, {b[4]}};
  std::vector<std::uint32_t> rows;
  for (const auto& blocks : wanted) rows.push_back(map->open(blocks));
  map->flush();
  for (const std::uint32_t row : rows) map->close(row, nullptr);
  map->flush();
  CHECK_EQUAL(map->open({b[0], b[1], b[2], b[5]}), rows[1]);
  CHECK_EQUAL(map->open({b[0], b[1], b[2], b[5]}), rows[0]);
  CHECK_EQUAL(map->open({b[0], b[3], b[2]}), rows[2]);
  const std::uint32_t empty = map->open({b[5]});
  CHECK(std::count(rows.begin(), rows.end(), empty) == 0);
  map->open({b[5], b[0]});
  CHECK_EQUAL(map->open({b[5]}), rows[3]);
  CHECK_THROWS(OutOfSlots, map->open({}));
  map->flush();
  map.check_rows();
  map.close();
}

TEST(open_finds_the_longest_closed_row_and_forgets_what_reclaim_took) {
  WatchedMap map(MapShape{});
  const std::vector<BlockId> b = take(map, 6);
  std::vector<std::uint32_t> rows;
  for (const BlockId block : b) rows.push_back(map->open({block}));
  map->flush();
  for (const std::uint32_t row : {rows[3], rows[1], rows[0], rows[2], rows[4], rows[5]}) {
    map->close(row, nullptr);
  }
  map->flush();
  // Reopening changes its mind: it is the youngest again.
  CHECK_EQUAL(map->open({b[3]}), rows[3]);
  map->close(rows[3], nullptr);
  map->flush();
  map.store->release({b[1]});
  CHECK_EQUAL(map->reclaim(1), 1u);
  const std::vector<BlockId> fresh = take(map, 1);
  // The row that lost its mapping is empty now, whatever block comes first.
  CHECK_EQUAL(map->open({fresh[0]}), rows[1]);
  CHECK_EQUAL(map->open({fresh[0]}), rows[0]);
  map->discard();
  CHECK_EQUAL(map->open({b[0]}), rows[0]);
  map->flush();
  map.check_rows();
  map.close();
}

TEST(flushing_thread_waits_for_the_fence_of_what_it_unmaps) {
  WatchedMap map(MapShape{});
  const std::vector<BlockId> blocks = take(map, 6);
  const std::uint32_t row = map->open({blocks.begin(), blocks.begin() + 3});
  for (std::uint32_t i = 1; i < map.shape.rows; ++i) map->open({});
  map->flush();
  const auto fence = std::make_shared<ManualFence>();
  for (std::uint32_t arena = 0; arena < map.shape.arenas; ++arena) {
    map.watch->protect({map.address(arena, row, 0), 3 * map.page}, fence);
  }
  map->close(row, fence);
  CHECK_EQUAL(map->open({blocks.begin() + 3, blocks.end()}), row);
  std::thread flushing([&] { map->flush(); });
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();
  fence->pass();
  flushing.join();
  map.check_rows();
  map.close();
}

// What a shared prefix saves is less than a step, which the other one would have to wait for.
TEST(row_that_nobody_reads_comes_before_one_with_a_longer_prefix) {
  WatchedMap map(MapShape{});
  const std::vector<BlockId> blocks = take(map, 8);
  const std::vector<BlockId> wanted(blocks.begin(), blocks.begin() + 4);
  const std::uint32_t shorter = map->open({blocks[0], blocks[6]});
  const std::uint32_t longer = map->open({blocks[0], blocks[1], blocks[2], blocks[7]});
  for (std::uint32_t i = 2; i < map.shape.rows; ++i) map->open({});
  map->flush();
  const auto fence = std::make_shared<ManualFence>();
  map->close(shorter, nullptr);
  map->close(longer, fence);
  const std::uint32_t first = map->open(wanted);
  map->close(first, nullptr);
  // Nothing there is replaced by these: no wait either.
  const std::uint32_t second = map->open({blocks[0], blocks[1], blocks[2]});
  map->close(second, nullptr);
  fence->pass();
  CHECK_EQUAL(first, shorter);
  CHECK_EQUAL(second, longer);
  CHECK_EQUAL(map->open(wanted), longer);
  map->flush();
  map.check_rows();
  map.close();
}

TEST(row_that_is_read_is_taken_where_there_is_no_other_or_it_saves_more_than_a_step) {
  MapShape shape;
  shape.positions = 96;
  shape.limit_blocks = 300;
  for (const bool alone : {true, false}) {
    WatchedMap map(shape);
    const std::vector<BlockId> blocks = take(map, 100);
    const std::vector<BlockId> many(blocks.begin(), blocks.begin() + 90);
    const std::uint32_t other = map->open({blocks[95]});
    const std::uint32_t read = map->open(alone ? std::vector<BlockId>{blocks[0], blocks[1]} : many);
    for (std::uint32_t i = 2; i < map.shape.rows; ++i) map->open({});
    map->flush();
    const auto fence = std::make_shared<ManualFence>();
    map->close(other, alone ? fence : nullptr);
    map->close(read, fence);
    // 89 blocks in each of three arenas.
    std::vector<BlockId> wanted(many);
    wanted[alone ? 1 : 89] = blocks[99];
    const std::uint32_t found = map->open(wanted);
    fence->pass();
    CHECK_EQUAL(found, read);
    map.close();
  }
}

TEST(close_waits_for_the_fences_of_rows_without_the_lock) {
  WatchedMap map(MapShape{});
  const std::uint32_t row = map->open(take(map, 3));
  map->flush();
  const auto fence = std::make_shared<test::AskingFence>([&] { map.store->stats(); });
  map.watch->protect({map.address(0, row, 0), 3 * map.page}, fence);
  map->close(row, fence);
  map.close();
  CHECK(fence->passed());
}

TEST(map_that_ends_waits_for_the_fences_of_its_rows_without_the_lock) {
  WatchedMap map(MapShape{});
  const std::uint32_t row = map->open(take(map, 3));
  map->flush();
  const auto fence = std::make_shared<test::AskingFence>([&] { map.store->stats(); });
  map.watch->protect({map.address(0, row, 0), 3 * map.page}, fence);
  map->close(row, fence);
  map.map.reset();
  CHECK(fence->passed());
  map.close();
}

// Both fences count: that of the row's first use, and that of what was trimmed in its second.
TEST(flushing_thread_waits_for_the_fences_of_two_uses) {
  WatchedMap map(MapShape{});
  const std::vector<BlockId> blocks = take(map, 3);
  const std::uint32_t row = map->open(blocks);
  map->flush();
  const auto first = std::make_shared<ManualFence>();
  const auto second = std::make_shared<ManualFence>();
  map.watch->protect({map.address(0, row, 2), map.page}, first);
  map.watch->protect({map.address(0, row, 1), map.page}, second);
  map->close(row, first);
  CHECK_EQUAL(map->open(blocks), row);
  map->flush();
  map->trim(row, 0, 2, second);
  std::thread flushing([&] { map->flush(); });
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();
  second->pass();
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();
  first->pass();
  flushing.join();
  map.check_rows();
  map.close();
}

// The first is inside the driver when the second is staged and planned.
TEST(two_threads_have_batches_in_flight_at_once) {
  WatchedMap map(MapShape{});
  const std::vector<BlockId> blocks = take(map, 4);
  const auto gate = std::make_shared<ManualFence>();
  map.watch->hold(Operation::map, gate);
  const std::uint32_t first = map->open({blocks[0], blocks[1]});
  std::thread flushing([&] { map->flush(); });
  map.watch->wait_for_held();
  const std::uint32_t second = map->open({blocks[2]});
  CHECK(second != first);
  std::thread other([&] { map->flush(); });
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();
  gate->pass();
  flushing.join();
  other.join();
  map.check_rows();
  CHECK_EQUAL(map.watch->mappings().size(), 3u * 3);
  map.close();
}

TEST(row_map_refuses_what_it_does_not_know) {
  WatchedMap map(MapShape{});
  const std::vector<BlockId> blocks = take(map, 2);
  CHECK_THROWS(BlockError, map->open({blocks[0], 1000}));
  CHECK_THROWS(LengthError, map->open(std::vector<BlockId>(13, blocks[0])));
  CHECK_THROWS(RowError, map->extend(0, {blocks[0]}));
  CHECK_THROWS(RowError, map->close(99, nullptr));
  CHECK_THROWS(BlockError, map.store->release({blocks[0], blocks[0]}));
  const std::uint32_t row = map->open({blocks[0]});
  CHECK_THROWS(RowError, map->zero(row, 0, 1, nullptr));
  map.store->release({blocks[0]});
  CHECK_THROWS(BlockError, map->flush());
  map->discard();
  CHECK_THROWS(RowError, map->close(row, nullptr));
  for (std::uint32_t i = 0; i < map.shape.rows; ++i) map->open({blocks[1]});
  CHECK_THROWS(OutOfSlots, map->open({blocks[1]}));
  map->flush();
  map.close();
  CHECK_THROWS(ClosedError, take(map, 1));
}

TEST(rows_are_zeroed_on_request) {
  WatchedMap map(MapShape{});
  const std::vector<BlockId> blocks = take(map, 2);
  CHECK(!map.store->dirty(blocks)[0]);
  const std::uint32_t row = map->open(blocks);
  map->flush();
  CHECK(map.store->dirty(blocks)[0]);
  map.byte(2, row, 0) = 5;
  map.byte(2, row, 1) = 6;
  map->zero(row, 1, 1, nullptr);
  CHECK_EQUAL(unsigned{map.byte(2, row, 0)}, 5u);
  CHECK_EQUAL(unsigned{map.byte(2, row, 1)}, 0u);
  map.close();
}

}  // namespace
}  // namespace pyvattn
