// SPDX-License-Identifier: Apache-2.0
// The helpers that make a batch whole or nothing, with every entry failing in turn.
#include "drivers/batch.hpp"

#include <set>

#include "tests/harness.hpp"

namespace pyvattn {
namespace {

constexpr std::size_t kPage = 64 << 10;

struct Refused {};

// Three runs: two pages, one page, three pages.
std::vector<MapEntry> three_runs() {
  std::vector<MapEntry> batch;
  for (const std::uint64_t page : {10, 11, 20, 30, 31, 32}) {
    batch.push_back({page * kPage, kPage, 1, page * kPage});
  }
  return batch;
}

TEST(batch_acts_on_every_entry_once) {
  std::vector<Address> acted;
  all_or_nothing(
      three_runs(), [&](const MapEntry& entry) { acted.push_back(entry.address); },
      [](const MapEntry&) { throw Refused(); });
  CHECK_EQUAL(acted.size(), 6u);
  CHECK_EQUAL(acted.back(), 32 * kPage);
}

TEST(batch_undoes_what_was_done_before_each_failure) {
  const auto batch = three_runs();
  for (std::size_t failing = 0; failing < batch.size(); ++failing) {
    std::vector<Address> done;
    std::size_t calls = 0;
    const auto act = [&](const MapEntry& entry) {
      if (calls++ == failing) throw Refused();
      done.push_back(entry.address);
    };
    const auto undo = [&](const MapEntry& entry) {
      CHECK_EQUAL(done.back(), entry.address);
      done.pop_back();
    };
    CHECK_THROWS(Refused, all_or_nothing(batch, act, undo));
    CHECK(done.empty());
  }
}

TEST(batch_joins_neighbours_to_one_unmap) {
  const auto batch = three_runs();
  CHECK_EQUAL(count_runs(batch), 3u);
  std::vector<Range> unmapped;
  unmap_all_or_nothing(
      batch, [&](const Range& range) { unmapped.push_back(range); }, [](const MapEntry&) {});
  CHECK_EQUAL(unmapped.size(), 3u);
  CHECK_EQUAL(unmapped[0].address, 10 * kPage);
  CHECK_EQUAL(unmapped[0].length, 2 * kPage);
  CHECK_EQUAL(unmapped[1].length, kPage);
  CHECK_EQUAL(unmapped[2].length, 3 * kPage);
}

TEST(batch_maps_again_what_was_unmapped_before_each_failure) {
  const auto batch = three_runs();
  for (std::size_t failing = 0; failing < 3; ++failing) {
    std::set<Address> mapped;
    for (const MapEntry& entry : batch) mapped.insert(entry.address);
    const auto before = mapped;
    std::size_t calls = 0;
    const auto unmap = [&](const Range& range) {
      if (calls++ == failing) throw Refused();
      for (std::size_t at = 0; at < range.length; at += kPage) mapped.erase(range.address + at);
    };
    const auto map = [&](const MapEntry& entry) { mapped.insert(entry.address); };
    CHECK_THROWS(Refused, unmap_all_or_nothing(batch, unmap, map));
    CHECK(mapped == before);
  }
}

TEST(batch_joins_ranges_in_the_order_given) {
  const auto runs = contiguous_runs({{kPage, kPage}, {2 * kPage, kPage}, {0, kPage}});
  CHECK_EQUAL(runs.size(), 2u);
  CHECK_EQUAL(runs[0].length, 2 * kPage);
  CHECK_EQUAL(runs[1].address, 0u);
  CHECK(contiguous_runs({}).empty());
}

}  // namespace
}  // namespace pyvattn
