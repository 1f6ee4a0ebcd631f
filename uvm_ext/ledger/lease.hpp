// SPDX-License-Identifier: Apache-2.0
// A budget that is leased from a ledger: what may be held is what words of its table name.
//
// Takes chunks when something is to be allocated and gives them back when neighbours ask, down
// to the level that everybody computes alike: see snapshot.hpp. A thread answers neighbours
// while the engine is idle or inside a step.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <thread>

#include "adaptors/budget.hpp"
#include "base/mutex.hpp"
#include "ledger/member.hpp"

namespace pyvattn::ledger {

class Lease final : public Budget {
 public:
  // Joins; see Member. Without `attended` nothing happens by itself: callers call attend().
  Lease(const FileOptions& file, const MemberOptions& options, bool attended = true);
  ~Lease() override;
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  // What the lease holds and could take from what is free. Where neighbours ask, what is left
  // if they get all that its holders can spare.
  std::uint64_t limit() const override;
  // What take() grants: also of what neighbours ask for, up to the member's part.
  std::uint64_t headroom() const override;
  std::uint64_t held() const override { return held_; }
  std::uint64_t most() const override { return most_; }
  // Holds no more than so much, guarantee or not. Operators move the same limit.
  void set_limit(std::uint64_t limit) override;
  // Throws LedgerLost where it would have to take from a ledger that is lost, ClosedError.
  bool take(std::uint64_t bytes) override;
  void give_back(std::uint64_t bytes) noexcept override;
  void missed(std::uint64_t bytes) override;
  Watch watch(std::function<void()> give_back) override;
  void unwatch(Watch watch) override;

  // Bytes beyond those held that waiting requests need, until it is called again.
  void want(std::uint64_t bytes);
  // Asks for so many bytes and waits until take() would grant them. Where it gives up, or once
  // they are taken, it asks no more.
  bool wait(std::uint64_t bytes, std::chrono::milliseconds most);
  // Waits until neighbours ask for more than can be given without the holders; says whether.
  bool wait_asked(std::chrono::milliseconds most);
  // Bytes in use beyond what is left to the member once those below their guarantees have theirs:
  // for these alone running requests end. What is not in use goes by itself.
  std::uint64_t owed() const;
  // Most bytes that the member can come to hold.
  std::uint64_t reach() const;
  // One round of what the thread does.
  void attend();
  // Leaves the ledger. Throws BusyError while something is held.
  void close();

  // For tests: as if the process had been killed.
  void abandon();

  struct Status {
    std::string name;
    std::string path;
    std::uint64_t chunk_bytes = 0;
    std::uint64_t leased = 0;
    std::uint64_t target = 0;
    bool lost = false;
    bool closed = false;
  };
  Status status() const;
  bool inherited() const;

 private:
  using Clock = std::chrono::steady_clock;

  // What the policy says at one moment.
  struct View {
    Snapshot all;
    std::uint32_t target = 0;
    std::uint32_t limit = 0;
    std::uint32_t floor = 0;
    bool tight = false;
  };

  void check_open() const REQUIRES(mutex_);
  std::uint32_t chunks_for(std::uint64_t bytes) const;
  std::uint32_t demand() const REQUIRES(mutex_);
  View look(std::uint32_t demand) const REQUIRES(mutex_);
  std::uint32_t takeable(const View& view, std::uint32_t demand) const REQUIRES(mutex_);
  bool is_hungry() const REQUIRES(mutex_);
  std::uint32_t due(const View& view, bool hungry) const REQUIRES(mutex_);
  void ask(const View& view) REQUIRES(mutex_);
  void hand_out(const View& view, std::uint32_t chunks) REQUIRES(mutex_);
  void replenish() REQUIRES(mutex_);
  void settle() REQUIRES(mutex_);
  void refill_pool(const View& view) REQUIRES(mutex_);
  void move_limit() const REQUIRES(mutex_);
  void look_again() const;
  void care() REQUIRES(mutex_);
  void run();
  void stop_thread();

  mutable Mutex mutex_;
  std::unique_ptr<Member> member_ GUARDED_BY(mutex_);
  std::atomic<std::uint64_t> held_{0};
  std::uint64_t wanted_ GUARDED_BY(mutex_) = 0;
  // What there was no room for lately: no caller says when it is no longer needed.
  std::uint64_t missed_ GUARDED_BY(mutex_) = 0;
  Clock::time_point missed_until_ GUARDED_BY(mutex_){};
  Clock::time_point checked_ GUARDED_BY(mutex_){};
  // Since when it has leased more than it needs.
  Clock::time_point needed_ GUARDED_BY(mutex_){};

  const std::uint64_t chunk_bytes_;
  const std::uint32_t chunks_;
  const std::uint32_t slack_;
  const std::uint64_t most_;
  const int fork_generation_;
  // Of the last look, and the ledger's epoch then.
  mutable std::atomic<std::uint64_t> limit_{0};
  mutable std::atomic<std::uint64_t> granted_{0};
  mutable std::atomic<std::uint32_t> epoch_{0};
  std::atomic<bool> lost_{false};

  Mutex watches_mutex_;
  std::map<Watch, std::function<void()>> watches_ GUARDED_BY(watches_mutex_);
  Watch last_watch_ GUARDED_BY(watches_mutex_) = 0;

  std::atomic<bool> stopping_{false};
  std::unique_ptr<std::thread> thread_;
};

}  // namespace pyvattn::ledger
