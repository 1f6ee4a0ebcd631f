// SPDX-License-Identifier: Apache-2.0
// Members in processes that are killed at random points, by the thousand.
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <thread>

#include "base/errors.hpp"
#include "ledger/lease.hpp"
#include "tests/ledger_support.hpp"

namespace pyvattn {
namespace {

using ledger::Lease;
using test::LedgerFolder;
using test::Random;

constexpr std::uint32_t kChunks = 32;
constexpr std::size_t kMembers = 3;

// What each process holds, in memory that it shares with the test: raised once the lease has
// granted it, lowered before it goes back.
struct Holdings {
  std::array<std::atomic<std::uint64_t>, kMembers> bytes;
};

class SharedHoldings {
 public:
  SharedHoldings()
      : held_(static_cast<Holdings*>(::mmap(nullptr, sizeof(Holdings), PROT_READ | PROT_WRITE,
                                            MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  ~SharedHoldings() { ::munmap(held_, sizeof(Holdings)); }
  SharedHoldings(const SharedHoldings&) = delete;
  SharedHoldings& operator=(const SharedHoldings&) = delete;

  std::atomic<std::uint64_t>& of(std::size_t member) { return held_->bytes[member]; }
  std::uint64_t sum() const {
    std::uint64_t sum = 0;
    for (const auto& bytes : held_->bytes) sum += bytes;
    return sum;
  }

 private:
  Holdings* const held_;
};

std::unique_ptr<Lease> join(const LedgerFolder& t, const std::string& name) {
  while (true) {
    try {
      return std::make_unique<Lease>(t.file, t.options(name, 4), false);
    } catch (const LedgerBusy&) {
      // One that was joining was stopped there for longer than a second.
    }
  }
}

// Joins and works until it is killed.
[[noreturn]] void work(const LedgerFolder& t, std::atomic<std::uint64_t>& held,
                       std::uint64_t seed) {
  Random random(seed);
  const std::unique_ptr<Lease> joined = join(t, "m" + std::to_string(seed));
  Lease& lease = *joined;
  while (true) {
    const std::uint64_t some = random.between(1, 6 * t.file.chunk_bytes);
    switch (random.below(4)) {
      case 0:
        lease.attend();
        break;
      case 1: {
        const std::uint64_t less = std::min<std::uint64_t>(some, held);
        held -= less;
        lease.give_back(less);
        break;
      }
      default:
        if (lease.take(some)) {
          held += some;
        } else {
          lease.missed(some);
        }
    }
  }
}

pid_t start(const LedgerFolder& t, std::atomic<std::uint64_t>& held, std::uint64_t seed) {
  held = 0;
  const pid_t process = ::fork();
  if (process != 0) return process;
  // Where the test fails they must not live on.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  try {
    work(t, held, seed);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  ::_exit(1);
}

// Each of them stands still: then what they hold at one moment can be read.
void stop(const std::array<pid_t, kMembers>& processes) {
  for (const pid_t process : processes) ::kill(process, SIGSTOP);
  for (const pid_t process : processes) {
    int status = 0;
    CHECK_EQUAL(::waitpid(process, &status, WUNTRACED), process);
    CHECK(WIFSTOPPED(status));
  }
}

void end(pid_t process, std::atomic<std::uint64_t>& held) {
  ::kill(process, SIGKILL);
  int status = 0;
  CHECK_EQUAL(::waitpid(process, &status, 0), process);
  CHECK(WIFSIGNALED(status));
  held = 0;
}

std::uint64_t kills() {
  const char* wanted = std::getenv("PYVATTN_TEST_KILLS");
  return wanted == nullptr ? 60 : std::strtoull(wanted, nullptr, 10);
}

TEST(members_killed_at_random_points_lose_nothing_and_never_hold_more_than_the_budget) {
  const LedgerFolder t(kChunks);
  SharedHoldings held;
  Lease watcher(t.file, t.options("watcher"), false);
  ledger::Table table(t.file);
  Random random(1);
  std::array<pid_t, kMembers> processes{};
  for (std::size_t i = 0; i < kMembers; ++i) processes[i] = start(t, held.of(i), i);
  for (std::uint64_t kill = 0; kill < kills(); ++kill) {
    std::this_thread::sleep_for(std::chrono::microseconds(random.below(3000)));
    stop(processes);
    CHECK(held.sum() <= kChunks * t.file.chunk_bytes);
    test::check_sum(table.snapshot());
    for (const pid_t process : processes) ::kill(process, SIGCONT);
    const std::size_t victim = random.below(kMembers);
    std::this_thread::sleep_for(std::chrono::microseconds(random.below(300)));
    end(processes[victim], held.of(victim));
    watcher.attend();
    processes[victim] = start(t, held.of(victim), kMembers + kill);
  }
  for (std::size_t i = 0; i < kMembers; ++i) end(processes[i], held.of(i));
  for (int round = 0; round < 4; ++round) watcher.attend();
  CHECK(watcher.take(kChunks * t.file.chunk_bytes));
}

}  // namespace
}  // namespace pyvattn
