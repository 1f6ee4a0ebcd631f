// SPDX-License-Identifier: Apache-2.0
// Budgets that are leased from a ledger, and the policy by which they take and give.
#include <thread>
#include <vector>

#include "base/errors.hpp"
#include "ledger/lease.hpp"
#include "tests/ledger_support.hpp"

namespace pyvattn {
namespace {

using ledger::Lease;
using ledger::Party;
using ledger::Snapshot;
using test::LedgerFolder;
using test::Random;

struct Wish {
  std::uint32_t guarantee;
  std::uint32_t demand;
  std::uint32_t weight = 1000;
  std::uint32_t limit = 100;
};

std::vector<std::uint32_t> parts(std::uint32_t chunks, const std::vector<Wish>& wishes) {
  Snapshot all;
  all.chunks = chunks;
  for (const Wish& wish : wishes) {
    Party party;
    party.slot = static_cast<std::uint32_t>(all.parties.size());
    party.guarantee = wish.guarantee;
    party.demand = wish.demand;
    party.weight = wish.weight;
    party.limit = wish.limit;
    party.readable = true;
    all.parties.push_back(party);
  }
  return ledger::targets(all);
}

using Parts = std::vector<std::uint32_t>;
using Pairs = std::vector<std::pair<std::uint32_t, std::uint32_t>>;

TEST(everybody_gets_what_it_wants_of_a_ledger_where_there_is_enough) {
  CHECK(parts(100, {{0, 30}, {0, 60}}) == Parts({30, 60}));
  CHECK(parts(100, {{20, 30}, {20, 5}}) == Parts({30, 20}));
}

TEST(a_ledger_that_is_short_is_divided_to_one_level_above_the_guarantees) {
  CHECK(parts(100, {{0, 100}, {0, 100}}) == Parts({50, 50}));
  CHECK(parts(100, {{40, 100}, {0, 100}}) == Parts({70, 30}));
  CHECK(parts(90, {{0, 10}, {0, 100}, {0, 100}}) == Parts({10, 40, 40}));
  CHECK(parts(100, {{50, 0}, {0, 100}}) == Parts({50, 50}));
}

TEST(weights_divide_a_ledger_and_nothing_is_left_over) {
  CHECK(parts(90, {{0, 100, 2000}, {0, 100, 1000}}) == Parts({60, 30}));
  const Parts odd = parts(10, {{0, 100}, {0, 100}, {0, 100}});
  CHECK_EQUAL(odd[0] + odd[1] + odd[2], 10u);
  CHECK(parts(7, {{0, 100, 0}, {0, 100, 0}}) == Parts({4, 3}));
}

TEST(an_operator_s_limit_is_below_a_guarantee_too) {
  CHECK(parts(100, {{50, 100, 1000, 20}, {0, 100}}) == Parts({20, 80}));
}

TEST(members_above_their_parts_owe_what_one_below_its_guarantee_lacks) {
  Snapshot all;
  all.chunks = 12;
  for (const auto& [lease, guarantee] : Pairs{{8, 0}, {4, 0}, {0, 6}}) {
    Party party;
    party.slot = static_cast<std::uint32_t>(all.parties.size());
    party.lease = lease;
    party.guarantee = guarantee;
    party.demand = party.limit = all.chunks;
    party.readable = true;
    all.parties.push_back(party);
  }
  // Parts of 2, 2 and 8: six are lacking, of which those that have 6 and 2 above theirs owe three
  // and one quarter, rounded up.
  all.parties[2].demand = 8;
  CHECK_EQUAL(ledger::owed_by(0, all), 5u);
  CHECK_EQUAL(ledger::owed_by(1, all), 2u);
  CHECK_EQUAL(ledger::owed_by(2, all), 0u);
  all.parties[0].lease = 4;
  all.free = 4;
  CHECK_EQUAL(ledger::owed_by(0, all), 1u);
  // What one only wants does not end requests of others.
  all.parties[2].guarantee = 0;
  CHECK_EQUAL(ledger::owed_by(0, all), 0u);
}

TEST(parts_of_a_ledger_never_sum_to_more_than_it_has) {
  Random random(7);
  for (int i = 0; i < 2000; ++i) {
    const auto chunks = static_cast<std::uint32_t>(random.between(1, 200));
    std::uint32_t left = chunks;
    std::vector<Wish> wishes(random.between(1, 6));
    std::uint64_t demand = 0;
    for (Wish& wish : wishes) {
      wish.guarantee = static_cast<std::uint32_t>(random.below(left + 1));
      left -= wish.guarantee;
      wish.demand = static_cast<std::uint32_t>(random.below(chunks + 1));
      wish.weight = static_cast<std::uint32_t>(random.below(5000));
      wish.limit = chunks;
      demand += std::max(wish.demand, wish.guarantee);
    }
    const Parts result = parts(chunks, wishes);
    std::uint64_t sum = 0;
    for (std::size_t k = 0; k < result.size(); ++k) {
      sum += result[k];
      CHECK(result[k] >= wishes[k].guarantee);
      CHECK(result[k] <= std::max(wishes[k].guarantee, wishes[k].demand));
    }
    CHECK_EQUAL(sum, std::min<std::uint64_t>(chunks, demand));
  }
}

// Leases that do nothing by themselves, in chunks.
struct Engines {
  explicit Engines(std::uint32_t chunks) : folder(chunks), chunk(folder.file.chunk_bytes) {}

  Lease& join(const std::string& name, std::uint64_t guarantee = 0) {
    all.push_back(std::make_unique<Lease>(folder.file, folder.options(name, guarantee), false));
    return *all.back();
  }
  void attend(int rounds = 3) {
    for (int i = 0; i < rounds; ++i) {
      for (const auto& lease : all) lease->attend();
    }
  }
  std::uint64_t leased(const Lease& lease) const { return lease.status().leased / chunk; }

  const LedgerFolder folder;
  const std::uint64_t chunk;
  std::vector<std::unique_ptr<Lease>> all;
};

TEST(a_lease_grants_what_is_free_and_no_more) {
  Engines t(8);
  Lease& one = t.join("one", 2);
  Lease& two = t.join("two");
  CHECK_EQUAL(one.limit(), 8 * t.chunk);
  CHECK_EQUAL(two.limit(), 6 * t.chunk);
  CHECK(two.take(5 * t.chunk + 1));
  CHECK_EQUAL(t.leased(two), 6u);
  CHECK(!one.take(2 * t.chunk + 1));
  CHECK(one.take(2 * t.chunk));
  CHECK_EQUAL(one.headroom(), 0u);
  CHECK(two.take(t.chunk - 1));
  CHECK(!two.take(1));
  two.give_back(6 * t.chunk);
  two.close();
  CHECK_EQUAL(one.headroom(), 6 * t.chunk);
  CHECK_THROWS(BusyError, one.close());
  CHECK_THROWS(ClosedError, two.take(1));
}

TEST(a_lease_gives_what_it_does_not_use_to_who_asks_down_to_its_part) {
  Engines t(8);
  Lease& one = t.join("one", 2);
  Lease& two = t.join("two");
  CHECK(one.take(8 * t.chunk));
  one.give_back(7 * t.chunk);
  CHECK_EQUAL(t.leased(one), 8u);
  CHECK(!two.take(4 * t.chunk));
  two.missed(4 * t.chunk);
  one.attend();
  CHECK_EQUAL(t.leased(one), 4u);
  CHECK(two.take(4 * t.chunk));
  two.missed(8 * t.chunk);
  one.attend();
  // Its guarantee stays, used or not.
  CHECK_EQUAL(t.leased(one), 2u);
}

TEST(a_lease_that_has_what_it_waited_for_asks_for_no_more) {
  Engines t(8);
  Lease& one = t.join("one");
  Lease& two = t.join("two");
  CHECK(one.take(8 * t.chunk));
  two.missed(2 * t.chunk);
  one.give_back(2 * t.chunk);
  CHECK(two.wait(2 * t.chunk, std::chrono::milliseconds(0)));
  CHECK(two.take(2 * t.chunk));
  two.attend();
  one.give_back(4 * t.chunk);
  CHECK_EQUAL(t.leased(one), 6u);
}

TEST(a_lease_that_waited_in_vain_asks_for_no_more) {
  Engines t(8);
  Lease& one = t.join("one");
  Lease& two = t.join("two");
  CHECK(one.take(8 * t.chunk));
  CHECK(!two.wait(4 * t.chunk, std::chrono::milliseconds(0)));
  one.give_back(8 * t.chunk);
  CHECK_EQUAL(t.leased(one), 8u);
  // What waits beyond the call says want().
  two.want(4 * t.chunk);
  CHECK(!two.wait(4 * t.chunk, std::chrono::milliseconds(0)));
  one.attend();
  CHECK_EQUAL(t.leased(one), 4u);
}

TEST(a_holder_waits_until_it_is_asked) {
  Engines t(8);
  Lease& one = t.join("one", 2);
  Lease& two = t.join("two");
  CHECK(one.take(6 * t.chunk));
  two.missed(2 * t.chunk);
  // It can give that without its holders.
  CHECK(!one.wait_asked(std::chrono::milliseconds(0)));
  CHECK(two.take(2 * t.chunk));
  CHECK(!one.wait_asked(std::chrono::milliseconds(0)));
  std::thread asker([&] { two.want(4 * t.chunk); });
  // Only a machine that stands still for a minute fails this.
  const bool asked = one.wait_asked(std::chrono::minutes(1));
  asker.join();
  CHECK(asked);
  one.give_back(4 * t.chunk);
  CHECK(!one.wait_asked(std::chrono::milliseconds(0)));
  one.give_back(2 * t.chunk);
  one.close();
  CHECK_THROWS(ClosedError, one.wait_asked(std::chrono::milliseconds(0)));
}

TEST(what_is_in_use_is_asked_back_from_those_who_hold_it) {
  Engines t(8);
  Lease& one = t.join("one");
  Lease& two = t.join("two");
  CHECK(one.take(8 * t.chunk));
  std::uint64_t spare = 3 * t.chunk;
  int calls = 0;
  const Watch watch = one.watch([&] {
    ++calls;
    one.give_back(spare);
    spare = 0;
  });
  one.attend();
  CHECK_EQUAL(calls, 0);
  two.missed(8 * t.chunk);
  one.attend();
  CHECK_EQUAL(calls, 1);
  CHECK_EQUAL(t.leased(one), 5u);
  // Of what it uses it keeps its part, if it wants that.
  CHECK_EQUAL(one.limit(), 0u);
  CHECK_EQUAL(one.headroom(), 0u);
  one.give_back(2 * t.chunk);
  CHECK(one.take(t.chunk));
  CHECK(!one.take(t.chunk));
  CHECK(two.take(4 * t.chunk));
  CHECK(!two.take(t.chunk));
  one.attend();
  one.unwatch(watch);
  one.attend();
  CHECK_EQUAL(calls, 2);
}

TEST(who_lacks_its_guarantee_is_handed_chunks_before_anybody_else) {
  Engines t(8);
  Lease& one = t.join("one");
  CHECK(one.take(8 * t.chunk));
  Lease& two = t.join("two", 3);
  Lease& three = t.join("three");
  three.missed(8 * t.chunk);
  one.give_back(2 * t.chunk);
  CHECK(!three.take(t.chunk));
  two.attend();
  CHECK(two.take(2 * t.chunk));
  one.give_back(2 * t.chunk);
  two.attend();
  CHECK_EQUAL(t.leased(two), 3u);
  CHECK(three.take(t.chunk));
}

TEST(a_lease_says_what_running_requests_must_leave_to_one_below_its_guarantee) {
  Engines t(8);
  Lease& one = t.join("one");
  CHECK(one.take(8 * t.chunk));
  CHECK_EQUAL(one.owed(), 0u);
  CHECK_EQUAL(one.reach(), 8 * t.chunk);
  Lease& two = t.join("two", 3);
  CHECK_EQUAL(one.reach(), 5 * t.chunk);
  CHECK_EQUAL(two.reach(), 8 * t.chunk);
  CHECK_EQUAL(one.owed(), 3 * t.chunk);
  CHECK_EQUAL(two.owed(), 0u);
  one.give_back(3 * t.chunk);
  CHECK_EQUAL(one.owed(), 0u);
  two.attend();
  CHECK_EQUAL(t.leased(two), 3u);
  // It only wants more: no reason to end what runs.
  two.missed(2 * t.chunk);
  CHECK_EQUAL(one.owed(), 0u);
}

TEST(two_hungry_leases_above_their_guarantees_come_to_rest) {
  Engines t(32);
  Lease& one = t.join("one", 2);
  Lease& two = t.join("two", 2);
  CHECK(one.take(30 * t.chunk));
  one.want(32 * t.chunk);
  two.want(32 * t.chunk);
  one.give_back(28 * t.chunk);
  const auto both = [&] { return std::make_pair(t.leased(one), t.leased(two)); };
  t.attend();
  const auto level = both();
  CHECK_EQUAL(level.first, 16u);
  CHECK_EQUAL(level.second, 16u);
  for (int i = 0; i < 50; ++i) {
    t.attend(1);
    CHECK(both() == level);
  }
  // And each can use what it has.
  CHECK(one.take(14 * t.chunk));
  CHECK(two.take(16 * t.chunk));
}

TEST(a_limit_on_a_lease_lets_others_have_the_rest) {
  Engines t(8);
  Lease& one = t.join("one", 6);
  Lease& two = t.join("two");
  CHECK(!two.take(5 * t.chunk));
  one.set_limit(3 * t.chunk);
  CHECK_EQUAL(t.leased(one), 3u);
  CHECK_EQUAL(one.limit(), 3 * t.chunk);
  CHECK(two.take(5 * t.chunk));
  CHECK(!one.take(3 * t.chunk + 1));
  CHECK(one.take(3 * t.chunk));
}

TEST(a_lease_on_a_ledger_that_is_lost_keeps_what_it_has) {
  Engines t(8);
  Lease& one = t.join("one", 4);
  CHECK(one.take(2 * t.chunk));
  ::unlink(t.folder.file.path.c_str());
  one.attend();
  CHECK(one.status().lost);
  CHECK(one.take(2 * t.chunk));
  CHECK_THROWS(LedgerLost, one.take(1));
  CHECK_THROWS(LedgerLost, one.want(1));
  one.give_back(4 * t.chunk);
  one.close();
}

TEST(leases_in_threads_under_load_never_hold_more_than_the_budget_together) {
  test::with_seeds(2, [](std::uint64_t seed) {
    const LedgerFolder folder(32);
    const std::uint64_t all = folder.file.budget;
    std::atomic<std::uint64_t> held{0};
    std::atomic<bool> exceeded{false};
    const auto work = [&](std::uint64_t number) {
      Random random(seed * 10 + number);
      Lease lease(folder.file, folder.options("m" + std::to_string(number), 4));
      std::uint64_t own = 0;
      for (int i = 0; i < 300; ++i) {
        const std::uint64_t bytes = random.between(1, all / 8);
        if (random.one_in(3) && own >= bytes) {
          held -= bytes;
          lease.give_back(bytes);
          own -= bytes;
        } else if (lease.take(bytes)) {
          if (held.fetch_add(bytes) + bytes > all) exceeded = true;
          own += bytes;
        } else {
          lease.missed(bytes);
        }
      }
      held -= own;
      lease.give_back(own);
    };
    std::vector<std::thread> threads;
    for (std::uint64_t i = 0; i < 3; ++i) threads.emplace_back(work, i);
    for (std::thread& thread : threads) thread.join();
    CHECK(!exceeded);
    const auto last = folder.join("last");
    // What was given by name to one who left at that moment is a dead one's until it is swept.
    std::uint32_t taken = last->take(32);
    while (taken < 32) {
      last->sweep();
      taken += last->take(32 - taken);
    }
    CHECK_EQUAL(taken, 32u);
  });
}

TEST(a_thread_that_waits_for_a_lease_gets_what_another_gives) {
  const LedgerFolder folder(8);
  Lease one(folder.file, folder.options("one"));
  Lease two(folder.file, folder.options("two"));
  const std::uint64_t chunk = folder.file.chunk_bytes;
  CHECK(one.take(8 * chunk));
  CHECK(!two.wait(chunk, std::chrono::milliseconds(0)));
  std::thread giver([&] { one.give_back(2 * chunk); });
  // Only a machine that stands still for a minute fails this.
  CHECK(two.wait(2 * chunk, std::chrono::minutes(1)));
  giver.join();
  CHECK(two.take(2 * chunk));
}

}  // namespace
}  // namespace pyvattn
