// SPDX-License-Identifier: Apache-2.0
// Random schedules against a model that knows each row's blocks, with driver calls that
// fail, and from two threads with batches in flight at once.
#include <functional>
#include <map>
#include <optional>
#include <thread>

#include "base/errors.hpp"
#include "tests/row_map_support.hpp"

namespace pyvattn {
namespace {

using test::ManualFence;
using test::MapShape;
using test::Random;
using test::WatchedMap;

class Engine {
 public:
  Engine(WatchedMap& map, Random& random) : map_(map), random_(random) {}

  void one_operation() {
    const std::uint64_t choice = random_.below(16);
    if (choice < 3) {
      allocate();
    } else if (choice < 5) {
      release();
    } else if (choice < 7) {
      open();
    } else if (choice < 9) {
      extend();
    } else if (choice < 11) {
      trim();
    } else if (choice < 12) {
      close();
    } else if (choice < 13) {
      map_->reclaim(random_.below(4));
    } else {
      flush();
    }
    check();
  }

  void finish() {
    flush_whole();
    map_.check_rows();
  }

 private:
  using Rows = std::map<std::uint32_t, std::vector<BlockId>>;

  void allocate() {
    const auto count = static_cast<std::uint32_t>(random_.between(1, 6));
    if (count > map_.store->stats().blocks_available) return;
    const auto blocks = map_.store->allocate(count, BlockPool::kAnywhere);
    for (BlockId block : blocks) CHECK(is_unused(block));
    held_.insert(held_.end(), blocks.begin(), blocks.end());
  }

  // Not one that is staged somewhere: the map wants it held until it is mapped.
  void release() {
    if (held_.empty() || staged_) return;
    const std::size_t index = random_.below(held_.size());
    map_.store->release({held_[index]});
    held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(index));
  }

  std::vector<BlockId> some_blocks(std::size_t most) {
    std::vector<BlockId> blocks;
    const std::uint64_t count = random_.below(most + 1);
    for (std::uint64_t i = 0; i < count && !held_.empty(); ++i) {
      blocks.push_back(held_[random_.below(held_.size())]);
    }
    return blocks;
  }

  void open() {
    if (rows_.size() == map_.shape.rows) return;
    const std::vector<BlockId> blocks = some_blocks(6);
    const std::uint32_t row = map_->open(blocks);
    CHECK_EQUAL(rows_.count(row), 0u);
    rows_[row] = blocks;
    staged_ = true;
  }

  std::optional<std::uint32_t> some_row() {
    if (rows_.empty()) return std::nullopt;
    auto row = rows_.begin();
    std::advance(row, static_cast<std::ptrdiff_t>(random_.below(rows_.size())));
    return row->first;
  }

  void extend() {
    const auto row = some_row();
    if (!row) return;
    std::vector<BlockId>& mine = rows_[*row];
    const std::vector<BlockId> blocks = some_blocks(map_.shape.positions - mine.size());
    map_->extend(*row, blocks);
    mine.insert(mine.end(), blocks.begin(), blocks.end());
    staged_ = true;
  }

  void trim() {
    const auto row = some_row();
    if (!row) return;
    std::vector<BlockId>& mine = rows_[*row];
    std::size_t holes = 0;
    while (holes < mine.size() && mine[holes] == RowTable::kHole) ++holes;
    const std::uint64_t front = random_.below(mine.size() - holes + 1);
    const std::uint64_t tail = random_.below(mine.size() - holes - front + 1);
    map_->trim(*row, static_cast<std::uint32_t>(front), static_cast<std::uint32_t>(tail), nullptr);
    for (std::size_t i = holes; i < holes + front; ++i) mine[i] = RowTable::kHole;
    mine.resize(mine.size() - tail);
    staged_ = true;
  }

  void close() {
    const auto row = some_row();
    if (!row) return;
    map_->close(*row, nullptr);
    rows_.erase(*row);
    staged_ = true;
  }

  void flush() {
    const test::Watch::Mappings before = map_.watch->mappings();
    if (random_.one_in(3)) map_.faults->fail_nth(static_cast<int>(random_.below(2)), false);
    try {
      map_->flush();
    } catch (const DriverError&) {
      map_.faults->disarm();
      CHECK(map_.watch->mappings() == before);
      if (random_.one_in(2)) return discard();
      map_->flush();
    }
    map_.faults->disarm();
    flushed_ = rows_;
    staged_ = false;
    map_.check_rows();
  }

  void flush_whole() {
    map_->flush();
    flushed_ = rows_;
    staged_ = false;
  }

  void discard() {
    map_->discard();
    rows_ = flushed_;
    staged_ = false;
    map_.check_rows();
  }

  bool is_unused(BlockId block) const {
    for (const auto& [row, blocks] : flushed_) {
      if (std::find(blocks.begin(), blocks.end(), block) != blocks.end()) return false;
    }
    return std::find(held_.begin(), held_.end(), block) == held_.end();
  }

  void check() {
    CHECK_EQUAL(map_.watch->violation(), "");
    for (const auto& [row, blocks] : rows_) CHECK(map_->blocks(row) == blocks);
    CHECK_EQUAL(map_->open_rows().size(), rows_.size());
    CHECK_EQUAL(map_.checked->mapped_bytes(), map_.watch->mappings().size() * map_.page);
  }

  WatchedMap& map_;
  Random& random_;
  std::vector<BlockId> held_;
  // As staged, and as the last flush left them.
  Rows rows_;
  Rows flushed_;
  bool staged_ = false;
};

TEST(row_map_agrees_with_a_model_under_random_schedules) {
  for (const std::string& driver : test::testable_drivers()) {
    const bool fine = test::has_fine_pages(driver);
    test::with_seeds(fine ? 10 : 2, [&](std::uint64_t seed) {
      Random random(seed);
      MapShape shape;
      shape.driver = driver;
      shape.arenas = fine ? static_cast<std::uint32_t>(random.between(1, 4)) : 1;
      shape.slab_blocks = std::uint64_t{1} << random.below(5);
      shape.ring = random.one_in(2);
      WatchedMap map(shape);
      Engine engine(map, random);
      for (int i = 0; i < 200; ++i) engine.one_operation();
      engine.finish();
      map.close();
    });
  }
}

// One thread's rows and blocks are its own; what is staged is carried out by the thread that
// flushes first.
TEST(row_map_serves_several_threads_at_once) {
  test::with_seeds(10, [](std::uint64_t seed) {
    MapShape shape;
    shape.rows = 9;
    shape.limit_blocks = 64;
    WatchedMap map(shape);
    std::vector<std::string> failures(3);
    std::vector<std::thread> threads;
    for (std::uint64_t t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        try {
          Random random(seed * 10 + t);
          for (int i = 0; i < 60; ++i) {
            const auto blocks = map.store->allocate(
                static_cast<std::uint32_t>(random.between(1, 6)), BlockPool::kAnywhere);
            const std::uint32_t row = map->open({blocks.front()});
            map->flush();
            map->extend(row, {blocks.begin() + 1, blocks.end()});
            map->flush();
            for (std::uint32_t p = 0; p < blocks.size(); ++p) {
              map.byte(0, row, p) = static_cast<unsigned char>(t + 1);
            }
            map->trim(row, 0, static_cast<std::uint32_t>(random.below(blocks.size())), nullptr);
            map->flush();
            CHECK_EQUAL(unsigned{map.byte(0, row, 0)}, static_cast<unsigned>(t + 1));
            map->close(row, nullptr);
            map->flush();
            map.store->release(blocks);
            map->reclaim(2);
          }
        } catch (const std::exception& error) {
          failures[t] = error.what();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const std::string& failure : failures) CHECK_EQUAL(failure, "");
    map.check_rows();
    map.close();
  });
}

struct Scenario {
  const char* name;
  std::function<void(WatchedMap&)> prepare;
  std::function<void(WatchedMap&)> stage;
};

std::vector<Scenario> scenarios() {
  const auto take = [](WatchedMap& map, std::uint32_t count) {
    return map.store->allocate(count, BlockPool::kAnywhere);
  };
  const auto two_rows = [take](WatchedMap& map) {
    map->open(take(map, 5));
    map->open(take(map, 4));
    map->flush();
  };
  return {{"open and extend", two_rows,
           [take](WatchedMap& map) {
             map->extend(0, take(map, 3));
             map->open(take(map, 5));
           }},
          {"replace what a closed row has",
           [two_rows](WatchedMap& map) {
             two_rows(map);
             map->close(0, nullptr);
             for (std::uint32_t i = 2; i < map.shape.rows; ++i) map->open({});
             map->flush();
           },
           [take](WatchedMap& map) { map->open(take(map, 7)); }},
          {"trim and extend", two_rows, [take](WatchedMap& map) {
             map->trim(0, 2, 1, nullptr);
             map->trim(1, 0, 3, nullptr);
             map->extend(1, take(map, 2));
           }}};
}

// False once a flush has no Nth driver call.
bool fail_one_call(const Scenario& scenario, const std::string& driver, bool ring, int nth) {
  MapShape shape;
  shape.driver = driver;
  shape.ring = ring;
  if (!test::has_fine_pages(driver)) shape.arenas = 1;
  WatchedMap map(shape);
  scenario.prepare(map);
  scenario.stage(map);
  const test::Watch::Mappings before = map.watch->mappings();
  const std::uint64_t free = map.store->stats().blocks_free;
  map.faults->fail_nth(nth, false);
  bool failed = false;
  try {
    map->flush();
  } catch (const DriverError&) {
    failed = true;
  }
  const bool reached = !map.faults->armed();
  map.faults->disarm();
  CHECK_EQUAL(failed, reached);
  if (failed) {
    CHECK(map.watch->mappings() == before);
    CHECK_EQUAL(map.store->stats().blocks_free, free);
    map->flush();
  }
  map.check_rows();
  map.close();
  return reached;
}

void fail_every_call(bool ring) {
  for (const std::string& driver : test::testable_drivers()) {
    for (const Scenario& scenario : scenarios()) {
      int nth = 0;
      try {
        while (fail_one_call(scenario, driver, ring, nth)) CHECK(++nth < 10);
      } catch (const std::exception& error) {
        throw test::Failure(driver + ", " + scenario.name + ", call " + std::to_string(nth) + ": " +
                            error.what());
      }
      CHECK(nth > 0);
    }
  }
}

TEST(flush_is_whole_or_not_at_all_whichever_call_fails) { fail_every_call(false); }

TEST(flush_of_rings_is_whole_or_not_at_all_whichever_call_fails) { fail_every_call(true); }

}  // namespace
}  // namespace pyvattn
