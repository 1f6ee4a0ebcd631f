// The page pool against a model that knows each page by itself.
#include "blocks/page_pool.hpp"

#include <algorithm>
#include <map>
#include <memory>
#include <set>

#include "adaptors/faults.hpp"
#include "base/errors.hpp"
#include "drivers/accounting.hpp"
#include "tests/harness.hpp"

namespace pyvattn {
namespace {

using test::Random;

constexpr std::size_t kPage = 64 << 10;

// Remembers which slabs there are.
class SlabLedger final : public Adaptor {
 public:
  using Adaptor::Adaptor;

  SlabId allocate_slab(std::size_t bytes) override {
    const SlabId slab = inner().allocate_slab(bytes);
    pages[slab] = bytes / kPage;
    return slab;
  }
  void free_slab(SlabId slab) override {
    inner().free_slab(slab);
    CHECK_EQUAL(pages.erase(slab), 1u);
  }

  std::map<SlabId, std::uint64_t> pages;
};

struct PoolUnderTest {
  explicit PoolUnderTest(std::uint64_t limit_pages, std::uint64_t slab_pages)
      : faults(std::make_shared<FaultAdaptor>(std::make_shared<AccountingDriver>(kPage))),
        ledger(std::make_shared<SlabLedger>(faults)),
        limit(std::make_shared<LimitAdaptor>(ledger, limit_pages * kPage)),
        slab_pages(slab_pages),
        pool(std::make_unique<PagePool>(*limit, *limit, slab_pages * kPage)) {}

  std::vector<Extent> allocate(std::uint32_t count, PageNumber after = PagePool::kAnywhere) {
    std::vector<Extent> extents;
    pool->allocate(count, after, extents);
    return extents;
  }

  const std::shared_ptr<FaultAdaptor> faults;
  const std::shared_ptr<SlabLedger> ledger;
  const std::shared_ptr<LimitAdaptor> limit;
  const std::uint64_t slab_pages;
  std::unique_ptr<PagePool> pool;
};

// Holders of each page, and a random sequence of everything the pool can do.
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
      t_.limit->set_limit(random_.between(0, 300) * kPage);
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
    PageNumber after = PagePool::kAnywhere;
    if (!held_.empty() && random_.one_in(2)) after = random_held().back();
    const bool next_is_free = after != PagePool::kAnywhere && is_free_neighbour(after);
    const bool one_block = after == PagePool::kAnywhere && has_free_run(count);
    const bool enough = count <= t_.pool->pages_available();
    const std::uint64_t allocated = t_.pool->pages_allocated();
    const bool faulty = random_.one_in(5);
    if (faulty) t_.faults->fail_nth(0, random_.one_in(2));

    std::vector<Extent> extents = {{12345, 1}};
    try {
      t_.pool->allocate(count, after, extents);
    } catch (const DriverError&) {
      CHECK(faulty || !enough);
      CHECK_EQUAL(extents.size(), 1u);
      CHECK_EQUAL(t_.pool->pages_allocated(), allocated);
      t_.faults->disarm();
      return;
    }
    t_.faults->disarm();
    CHECK(enough);
    CHECK_EQUAL(extents[0].first, 12345u);
    extents.erase(extents.begin());
    if (next_is_free) CHECK_EQUAL(extents[0].first, after + 1);
    if (one_block) CHECK_EQUAL(extents.size(), 1u);
    take(extents, count);
  }

  void take(const std::vector<Extent>& extents, std::uint32_t count) {
    std::uint32_t taken = 0;
    for (const Extent& extent : extents) {
      std::vector<PageNumber> pages;
      const SlabId slab = t_.pool->slab_of(extent.first);
      CHECK_EQUAL(t_.ledger->pages.count(slab), 1u);
      for (std::uint32_t i = 0; i < extent.count; ++i) {
        const PageNumber page = extent.first + i;
        CHECK_EQUAL(t_.pool->slab_of(page), slab);
        CHECK_EQUAL(t_.pool->offset_of(page), t_.pool->offset_of(extent.first) + i * kPage);
        CHECK(t_.pool->offset_of(page) < t_.ledger->pages[slab] * kPage);
        CHECK_EQUAL(holders_.count(page), 0u);
        holders_[page] = 1;
        pages.push_back(page);
      }
      base_of_[slab] =
          extent.first - static_cast<std::uint32_t>(t_.pool->offset_of(extent.first) / kPage);
      held_.push_back(pages);
      taken += extent.count;
    }
    CHECK_EQUAL(taken, count);
  }

  std::vector<PageNumber>& random_held() { return held_[random_.below(held_.size())]; }

  // One holder fewer of a run in the middle of something held.
  void release() {
    if (held_.empty()) return;
    const std::size_t index = random_.below(held_.size());
    std::vector<PageNumber> pages = held_[index];
    held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(index));
    const std::size_t first = random_.below(pages.size());
    const std::size_t count = random_.between(1, pages.size() - first);
    t_.pool->release({pages[first], static_cast<std::uint32_t>(count)});
    for (std::size_t i = first; i < first + count; ++i) {
      if (--holders_[pages[i]] == 0) holders_.erase(pages[i]);
    }
    const auto at = [&](std::size_t i) { return pages.begin() + static_cast<std::ptrdiff_t>(i); };
    if (first > 0) held_.emplace_back(at(0), at(first));
    if (first + count < pages.size()) held_.emplace_back(at(first + count), pages.end());
  }

  void retain() {
    if (held_.empty()) return;
    const std::vector<PageNumber> pages = random_held();
    t_.pool->retain({pages.front(), static_cast<std::uint32_t>(pages.size())});
    for (PageNumber page : pages) ++holders_[page];
    held_.push_back(pages);
  }

  void trim() {
    const std::uint64_t target = random_.below(t_.limit->allocated() + 1);
    const std::size_t slabs = t_.pool->slabs();
    const std::size_t returned = t_.pool->trim(target);
    CHECK_EQUAL(t_.pool->slabs() + returned, slabs);
    // Nothing that could be given back stays above the target.
    if (t_.limit->allocated() <= target) return;
    std::set<SlabId> used;
    for (const auto& [page, holders] : holders_) used.insert(t_.pool->slab_of(page));
    CHECK_EQUAL(t_.pool->slabs(), used.size());
  }

  void check_books() {
    std::uint64_t allocated = 0;
    for (const auto& [slab, pages] : t_.ledger->pages) allocated += pages;
    CHECK_EQUAL(t_.pool->pages_allocated(), allocated);
    CHECK_EQUAL(t_.limit->allocated(), allocated * kPage);
    CHECK_EQUAL(t_.pool->slabs(), t_.ledger->pages.size());
    CHECK_EQUAL(t_.pool->pages_free() + holders_.size(), allocated);
  }

  bool is_free_neighbour(PageNumber after) {
    const std::uint64_t next = t_.pool->offset_of(after) / kPage + 1;
    return next < t_.ledger->pages[t_.pool->slab_of(after)] && holders_.count(after + 1) == 0;
  }

  // Whether so many pages in a row are free in a slab whose place is known.
  bool has_free_run(std::uint32_t count) {
    for (const auto& [slab, pages] : t_.ledger->pages) {
      const auto base = base_of_.find(slab);
      if (base == base_of_.end()) continue;
      const PageNumber end = base->second + static_cast<PageNumber>(pages);
      PageNumber free_from = base->second;
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
  std::map<PageNumber, unsigned> holders_;
  std::vector<std::vector<PageNumber>> held_;
  std::map<SlabId, PageNumber> base_of_;
};

TEST(pool_agrees_with_a_model_under_random_operations) {
  test::with_seeds(40, [](std::uint64_t seed) {
    Random random(seed);
    PoolUnderTest t(random.between(1, 300), std::uint64_t{1} << random.below(8));
    Model model(t, random);
    for (int i = 0; i < 800; ++i) model.one_operation();
    model.release_everything();
    CHECK_EQUAL(t.pool->pages_free(), t.pool->pages_allocated());
    t.pool->trim(0);
    CHECK(t.ledger->pages.empty());
  });
}

TEST(pool_joins_single_pages_to_a_whole_slab_again) {
  PoolUnderTest t(64, 64);
  std::vector<PageNumber> pages;
  for (int i = 0; i < 64; ++i) pages.push_back(t.allocate(1)[0].first);
  Random random(7);
  while (!pages.empty()) {
    std::swap(pages[random.below(pages.size())], pages.back());
    t.pool->release({pages.back(), 1});
    pages.pop_back();
  }
  CHECK_EQUAL(t.allocate(64).size(), 1u);
}

// Pages 0 to 63 of one slab, all held, of which `runs` are given back.
struct Holes {
  explicit Holes(const std::vector<Extent>& runs) : t(64, 64) {
    base = t.allocate(64)[0].first;
    for (const Extent& run : runs) t.pool->release(at(run.first, run.count));
  }
  Extent at(std::uint32_t first, std::uint32_t count) const { return {base + first, count}; }

  PoolUnderTest t;
  PageNumber base = 0;
};

TEST(pool_takes_the_shortest_run_that_has_room) {
  Holes holes({{3, 20}, {30, 6}, {40, 10}});
  const auto extents = holes.t.allocate(6);
  CHECK_EQUAL(extents.size(), 1u);
  CHECK_EQUAL(extents[0].first, holes.base + 30);
}

TEST(pool_joins_runs_wherever_they_lie) {
  Holes holes({{3, 5}, {13, 7}});
  holes.t.pool->release(holes.at(8, 5));
  const auto extents = holes.t.allocate(17);
  CHECK_EQUAL(extents.size(), 1u);
  CHECK_EQUAL(extents[0].first, holes.base + 3);
}

TEST(pool_takes_back_exactly_the_free_pages_of_an_extent) {
  Holes holes({{4, 30}});
  const auto taken = holes.t.allocate(10);
  CHECK_EQUAL(taken[0].first, holes.base + 4);
  std::vector<Extent> out;
  holes.t.pool->retake(holes.at(8, 16), out);
  CHECK_EQUAL(out.size(), 1u);
  CHECK_EQUAL(out[0].first, holes.base + 14);
  CHECK_EQUAL(out[0].count, 10u);
  CHECK_EQUAL(holes.t.pool->pages_free(), 10u);
  const auto rest = holes.t.allocate(10);
  CHECK_EQUAL(rest[0].first, holes.base + 24);
}

TEST(pool_splits_a_request_over_slabs_that_are_smaller) {
  PoolUnderTest t(64, 16);
  const auto extents = t.allocate(50);
  CHECK_EQUAL(extents.size(), 4u);
  CHECK_EQUAL(t.pool->pages_free(), 14u);
}

TEST(pool_uses_the_last_of_the_limit_in_a_smaller_slab) {
  PoolUnderTest t(21, 16);
  t.allocate(21);
  CHECK_EQUAL(t.pool->pages_allocated(), 21u);
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
  CHECK_EQUAL(t.ledger->pages.size(), 4u);
  t.pool.reset();
  CHECK(t.ledger->pages.empty());
}

}  // namespace
}  // namespace pyvattn
