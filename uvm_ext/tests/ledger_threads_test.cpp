// SPDX-License-Identifier: Apache-2.0
// Many members at once, each a thread with a file of its own, as processes have.
#include <atomic>
#include <thread>
#include <vector>

#include "tests/ledger_support.hpp"

namespace pyvattn {
namespace {

using ledger::Member;
using test::LedgerFolder;
using test::Random;

constexpr std::uint32_t kChunks = 24;

// What all hold at one moment: added once words name the member, taken off before they cease
// to.
struct Held {
  std::atomic<std::int64_t> chunks{0};
  std::atomic<bool> exceeded{false};

  void add(std::int64_t more) {
    if (chunks.fetch_add(more) + more > kChunks) exceeded = true;
  }
};

void live_and_die(const LedgerFolder& t, Held& held, std::uint64_t seed) {
  Random random(seed);
  std::unique_ptr<Member> member;
  for (int i = 0; i < 400; ++i) {
    if (!member) {
      member = t.join_mortal("m" + std::to_string(seed), 2);
      held.add(member->lease());
    }
    const std::uint32_t before = member->lease();
    const auto some = static_cast<std::uint32_t>(random.between(1, 4));
    switch (random.below(5)) {
      case 0:
      case 1:
        held.add(member->take(some));
        break;
      case 2: {
        const std::uint32_t given = std::min(some, before);
        held.add(-std::int64_t{given});
        held.add(given - member->give(given));
        break;
      }
      case 3: {
        const ledger::Snapshot all = member->table().snapshot();
        const ledger::Party& other = all.parties[random.below(all.parties.size())];
        if (other.slot == member->slot() || before == 0) break;
        held.add(-1);
        held.add(1 - std::int64_t{member->give_to(other, 1)});
        break;
      }
      default:
        member->show_life();
        held.add(std::int64_t{member->lease()} - before);
        member->sweep();
    }
    if (random.one_in(12)) {
      held.add(-std::int64_t{member->lease()});
      test::kill(member);
    }
  }
  if (member) held.add(-std::int64_t{member->lease()});
}

TEST(members_in_threads_live_and_die_and_never_hold_more_than_the_budget) {
  test::with_seeds(3, [](std::uint64_t seed) {
    const LedgerFolder t(kChunks);
    const auto watcher = t.join("watcher");
    Held held;
    std::vector<std::thread> threads;
    for (std::uint64_t i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] { live_and_die(t, held, seed * 100 + i); });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(!held.exceeded);
    CHECK_EQUAL(held.chunks.load(), 0);
    for (int i = 0; i < 4; ++i) {
      watcher->show_life();
      watcher->sweep();
    }
    // It was handed some as well.
    watcher->give(watcher->lease());
    CHECK_EQUAL(watcher->table().snapshot().free, kChunks);
  });
}

TEST(ledgers_made_by_several_threads_at_once_are_one) {
  const LedgerFolder t(kChunks);
  std::vector<std::unique_ptr<Member>> members(4);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < members.size(); ++i) {
    threads.emplace_back([&, i] { members[i] = t.join("m", 6); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& member : members) CHECK_EQUAL(member->lease(), 6u);
  CHECK_EQUAL(members[0]->table().snapshot().free, 0u);
}

}  // namespace
}  // namespace pyvattn
