// SPDX-License-Identifier: Apache-2.0
// The block pool against a model that knows each block by itself.
#include "blocks/block_pool.hpp"

#include <algorithm>
#include <map>
#include <memory>
#include <set>

#include "adaptors/faults.hpp"
#include "adaptors/limit.hpp"
#include "adaptors/memory_limit.hpp"
#include "base/errors.hpp"
#include "drivers/accounting.hpp"
#include "tests/harness.hpp"

namespace pyvattn {
namespace {

using test::Random;

constexpr std::size_t kPage = 64 << 10;
constexpr std::uint32_t kArenas = 3;
constexpr std::size_t kBlock = kArenas * kPage;

// Remembers which slabs there are.
class SlabLedger final : public Adaptor {
 public:
  using Adaptor::Adaptor;

  SlabId allocate_slab(std::size_t bytes) override {
    const SlabId slab = inner().allocate_slab(bytes);
    blocks[slab] = bytes / kBlock;
    return slab;
  }
  void free_slab(SlabId slab) override {
    inner().free_slab(slab);
    CHECK_EQUAL(blocks.erase(slab), 1u);
  }

  std::map<SlabId, std::uint64_t> blocks;
};

struct PoolUnderTest {
  explicit PoolUnderTest(std::uint64_t limit_blocks, std::uint64_t slab_blocks)
      : faults(std::make_shared<FaultAdaptor>(std::make_shared<AccountingDriver>(kPage))),
        ledger(std::make_shared<SlabLedger>(faults)),
        limit(std::make_shared<MemoryLimit>(limit_blocks * kBlock)),
        driver(std::make_shared<LimitAdaptor>(ledger, limit)),
        slab_blocks(slab_blocks),
        pool(std::make_unique<BlockPool>(*driver, *limit, kArenas,
                                         static_cast<std::uint32_t>(slab_blocks))) {}

  std::vector<BlockRun> allocate(std::uint32_t count, BlockId after = BlockPool::kAnywhere) {
    std::vector<BlockRun> runs;
    pool->allocate(count, after, runs);
    return runs;
  }

  const std::shared_ptr<FaultAdaptor> faults;
  const std::shared_ptr<SlabLedger> ledger;
  const std::shared_ptr<MemoryLimit> limit;
  const DriverPtr driver;
  const std::uint64_t slab_blocks;
  std::unique_ptr<BlockPool> pool;
};

// Holders of each block, and a random sequence of everything the pool can do.
class Model {
 public:
  Model(PoolUnderTest& under_test, Random& random) : t_(under_test), random_(random) {}

  void one_operation() {
    const std::uint64_t choice = random_.below(10);
    if (choice < 4) {
      allocate();
    } else if (choice < 7) {
      release();
    } else if (choice < 8) {
      retain();
    } else if (choice < 9) {
      trim();
    } else {
      t_.limit->set_limit(random_.between(0, 300) * kBlock);
    }
    check_books();
  }

  void release_everything() {
    while (!held_.empty()) release();
    check_books();
  }

 private:
  void allocate() {
    const auto count = static_cast<std::uint32_t>(random_.between(1, 80));
    BlockId after = BlockPool::kAnywhere;
    if (!held_.empty() && random_.one_in(2)) after = random_held().back();
    const bool next_is_free = after != BlockPool::kAnywhere && is_free_neighbour(after);
    const bool one_run = after == BlockPool::kAnywhere && has_free_run(count);
    const bool enough = count <= t_.pool->blocks_available();
    const std::uint64_t allocated = t_.pool->blocks_allocated();
    const bool faulty = random_.one_in(5);
    if (faulty) t_.faults->fail_nth(0, random_.one_in(2));

    std::vector<BlockRun> runs = {{12345, 1}};
    try {
      t_.pool->allocate(count, after, runs);
    } catch (const DriverError&) {
      CHECK(faulty || !enough);
      CHECK_EQUAL(runs.size(), 1u);
      CHECK_EQUAL(t_.pool->blocks_allocated(), allocated);
      t_.faults->disarm();
      return;
    }
    t_.faults->disarm();
    CHECK(enough);
    CHECK_EQUAL(runs[0].first, 12345u);
    runs.erase(runs.begin());
    if (next_is_free) CHECK_EQUAL(runs[0].first, after + 1);
    if (one_run) CHECK_EQUAL(runs.size(), 1u);
    take(runs, count);
  }

  void take(const std::vector<BlockRun>& runs, std::uint32_t count) {
    std::uint32_t taken = 0;
    for (const BlockRun& run : runs) {
      std::vector<BlockId> blocks;
      const SlabId slab = t_.pool->place_of(run.first).slab;
      CHECK_EQUAL(t_.ledger->blocks.count(slab), 1u);
      for (std::uint32_t i = 0; i < run.count; ++i) {
        const BlockId block = run.first + i;
        CHECK_EQUAL(t_.pool->place_of(block).slab, slab);
        CHECK_EQUAL(t_.pool->place_of(block).offset,
                    t_.pool->place_of(run.first).offset + i * kPage);
        CHECK(t_.pool->place_of(block).offset < t_.ledger->blocks[slab] * kPage);
        CHECK_EQUAL(holders_.count(block), 0u);
        holders_[block] = 1;
        blocks.push_back(block);
      }
      base_of_[slab] =
          run.first - static_cast<std::uint32_t>(t_.pool->place_of(run.first).offset / kPage);
      held_.push_back(blocks);
      taken += run.count;
    }
    CHECK_EQUAL(taken, count);
  }

  std::vector<BlockId>& random_held() { return held_[random_.below(held_.size())]; }

  // One holder fewer of a run in the middle of something held.
  void release() {
    if (held_.empty()) return;
    const std::size_t index = random_.below(held_.size());
    std::vector<BlockId> blocks = held_[index];
    held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(index));
    const std::size_t first = random_.below(blocks.size());
    const std::size_t count = random_.between(1, blocks.size() - first);
    t_.pool->release({blocks[first], static_cast<std::uint32_t>(count)});
    for (std::size_t i = first; i < first + count; ++i) {
      if (--holders_[blocks[i]] == 0) holders_.erase(blocks[i]);
    }
    const auto at = [&](std::size_t i) { return blocks.begin() + static_cast<std::ptrdiff_t>(i); };
    if (first > 0) held_.emplace_back(at(0), at(first));
    if (first + count < blocks.size()) held_.emplace_back(at(first + count), blocks.end());
  }

  void retain() {
    if (held_.empty()) return;
    const std::vector<BlockId> blocks = random_held();
    t_.pool->retain({blocks.front(), static_cast<std::uint32_t>(blocks.size())});
    for (BlockId block : blocks) ++holders_[block];
    held_.push_back(blocks);
  }

  void trim() {
    const std::uint64_t target = random_.below(t_.limit->held() + 1);
    const std::size_t slabs = t_.pool->slabs();
    const std::size_t returned = t_.pool->trim(target);
    CHECK_EQUAL(t_.pool->slabs() + returned, slabs);
    // Nothing that could be given back stays above the target.
    if (t_.limit->held() <= target) return;
    std::set<SlabId> used;
    for (const auto& [block, holders] : holders_) used.insert(t_.pool->place_of(block).slab);
    CHECK_EQUAL(t_.pool->slabs(), used.size());
  }

  void check_books() {
    std::uint64_t allocated = 0;
    for (const auto& [slab, blocks] : t_.ledger->blocks) allocated += blocks;
    CHECK_EQUAL(t_.pool->blocks_allocated(), allocated);
    CHECK_EQUAL(t_.limit->held(), allocated * kBlock);
    CHECK_EQUAL(t_.pool->slabs(), t_.ledger->blocks.size());
    CHECK_EQUAL(t_.pool->blocks_free() + holders_.size(), allocated);
    std::uint64_t further = 0;
    for (const auto& [block, holders] : holders_) further += holders - 1;
    CHECK_EQUAL(t_.pool->further_holders(), further);
  }

  bool is_free_neighbour(BlockId after) {
    const std::uint64_t next = t_.pool->place_of(after).offset / kPage + 1;
    return next < t_.ledger->blocks[t_.pool->place_of(after).slab] &&
           holders_.count(after + 1) == 0;
  }

  // Whether so many blocks in a row are free in a slab whose place is known.
  bool has_free_run(std::uint32_t count) {
    for (const auto& [slab, blocks] : t_.ledger->blocks) {
      const auto base = base_of_.find(slab);
      if (base == base_of_.end()) continue;
      const BlockId end = base->second + static_cast<BlockId>(blocks);
      BlockId free_from = base->second;
      for (auto held = holders_.lower_bound(free_from); held != holders_.end() && held->first < end;
           ++held) {
        if (held->first - free_from >= count) return true;
        free_from = held->first + 1;
      }
      if (end - free_from >= count) return true;
    }
    return false;
  }

  PoolUnderTest& t_;
  Random& random_;
  std::map<BlockId, unsigned> holders_;
  std::vector<std::vector<BlockId>> held_;
  std::map<SlabId, BlockId> base_of_;
};

TEST(pool_agrees_with_a_model_under_random_operations) {
  test::with_seeds(40, [](std::uint64_t seed) {
    Random random(seed);
    PoolUnderTest t(random.between(1, 300), std::uint64_t{1} << random.below(8));
    Model model(t, random);
    for (int i = 0; i < 800; ++i) model.one_operation();
    model.release_everything();
    CHECK_EQUAL(t.pool->blocks_free(), t.pool->blocks_allocated());
    t.pool->trim(0);
    CHECK(t.ledger->blocks.empty());
  });
}

TEST(pool_joins_single_blocks_to_a_whole_slab_again) {
  PoolUnderTest t(64, 64);
  std::vector<BlockId> blocks;
  for (int i = 0; i < 64; ++i) blocks.push_back(t.allocate(1)[0].first);
  Random random(7);
  while (!blocks.empty()) {
    std::swap(blocks[random.below(blocks.size())], blocks.back());
    t.pool->release({blocks.back(), 1});
    blocks.pop_back();
  }
  CHECK_EQUAL(t.allocate(64).size(), 1u);
}

// Blocks 0 to 63 of one slab, all held, of which `runs` are given back.
struct Holes {
  explicit Holes(const std::vector<BlockRun>& runs) : t(64, 64) {
    base = t.allocate(64)[0].first;
    for (const BlockRun& run : runs) t.pool->release(at(run.first, run.count));
  }
  BlockRun at(std::uint32_t first, std::uint32_t count) const { return {base + first, count}; }

  PoolUnderTest t;
  BlockId base = 0;
};

TEST(pool_takes_the_shortest_run_that_has_room) {
  Holes holes({{3, 20}, {30, 6}, {40, 10}});
  const auto runs = holes.t.allocate(6);
  CHECK_EQUAL(runs.size(), 1u);
  CHECK_EQUAL(runs[0].first, holes.base + 30);
}

TEST(pool_joins_runs_wherever_they_lie) {
  Holes holes({{3, 5}, {13, 7}});
  holes.t.pool->release(holes.at(8, 5));
  const auto runs = holes.t.allocate(17);
  CHECK_EQUAL(runs.size(), 1u);
  CHECK_EQUAL(runs[0].first, holes.base + 3);
}

TEST(pool_takes_back_exactly_the_free_blocks_of_a_run) {
  Holes holes({{4, 30}});
  const auto taken = holes.t.allocate(10);
  CHECK_EQUAL(taken[0].first, holes.base + 4);
  std::vector<BlockRun> out;
  holes.t.pool->retake(holes.at(8, 16), out);
  CHECK_EQUAL(out.size(), 1u);
  CHECK_EQUAL(out[0].first, holes.base + 14);
  CHECK_EQUAL(out[0].count, 10u);
  CHECK_EQUAL(holes.t.pool->blocks_free(), 10u);
  const auto rest = holes.t.allocate(10);
  CHECK_EQUAL(rest[0].first, holes.base + 24);
}

TEST(pool_splits_a_request_over_slabs_that_are_smaller) {
  PoolUnderTest t(64, 16);
  const auto runs = t.allocate(50);
  CHECK_EQUAL(runs.size(), 4u);
  CHECK_EQUAL(t.pool->blocks_free(), 14u);
}

TEST(pool_uses_the_last_of_the_limit_in_a_smaller_slab) {
  PoolUnderTest t(21, 16);
  t.allocate(21);
  CHECK_EQUAL(t.pool->blocks_allocated(), 21u);
  CHECK_THROWS(DriverOutOfMemory, t.allocate(1));
}

TEST(pool_takes_pieces_where_the_device_has_no_more) {
  PoolUnderTest t(64, 8);
  const auto whole = t.allocate(8);
  t.pool->release({whole[0].first, 1});
  t.pool->release({whole[0].first + 3, 1});
  t.faults->fail_nth(0, true);
  const auto pieces = t.allocate(2);
  CHECK_EQUAL(pieces.size(), 2u);
  CHECK_EQUAL(t.pool->slabs(), 1u);
}

TEST(pool_gives_every_slab_back_when_it_goes) {
  PoolUnderTest t(64, 8);
  t.allocate(30);
  CHECK_EQUAL(t.ledger->blocks.size(), 4u);
  t.pool.reset();
  CHECK(t.ledger->blocks.empty());
}

TEST(pool_puts_consecutive_blocks_side_by_side_in_every_arena) {
  PoolUnderTest t(64, 16);
  const BlockRun run = t.allocate(5)[0];
  for (std::uint32_t i = 0; i < run.count; ++i) {
    const BlockPool::Place first = t.pool->place_of(run.first);
    const BlockPool::Place place = t.pool->place_of(run.first + i);
    CHECK_EQUAL(place.slab, first.slab);
    for (std::uint32_t arena = 0; arena < kArenas; ++arena) {
      CHECK_EQUAL(place.offset + arena * place.stride,
                  first.offset + arena * first.stride + i * kPage);
      // Within the arena's part of the slab.
      CHECK(place.offset < place.stride);
      CHECK((arena + 1) * place.stride <= t.ledger->blocks[place.slab] * kBlock);
    }
  }
}

// A block stays dirty through every holder and while it is free; a new slab is clean.
TEST(pool_remembers_which_blocks_are_dirty) {
  PoolUnderTest t(16, 8);
  const BlockRun run = t.allocate(8)[0];
  t.pool->mark_dirty({run.first + 2, 3});
  t.pool->retain({run.first + 3, 1});
  t.pool->release(run);
  t.pool->release({run.first + 3, 1});
  CHECK_EQUAL(t.pool->blocks_free(), 8u);
  const BlockRun again = t.allocate(8)[0];
  for (std::uint32_t i = 0; i < 8; ++i) {
    CHECK_EQUAL(t.pool->is_dirty(again.first + i), i >= 2 && i < 5);
    CHECK_EQUAL(t.pool->holders(again.first + i), 1u);
  }
  t.pool->mark_clean({again.first + 2, 2});
  CHECK(!t.pool->is_dirty(again.first + 3));
  CHECK(t.pool->is_dirty(again.first + 4));
  t.pool->release(again);
  t.pool->trim(0);
  const BlockRun fresh = t.allocate(8)[0];
  CHECK(!t.pool->is_dirty(fresh.first + 4));
}

TEST(pool_keeps_its_books_in_16_bytes_a_block) {
  PoolUnderTest t(1 << 16, 64);
  t.allocate(1 << 15);
  CHECK(t.pool->bookkeeping_bytes() <= (std::size_t{16} << 15));
}

}  // namespace
}  // namespace pyvattn
