// SPDX-License-Identifier: Apache-2.0
// What holders of memory call.
#include "ledger/lease.hpp"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "base/errors.hpp"
#include "base/fork.hpp"
#include "base/text.hpp"
#include "ledger/doorbell.hpp"

namespace pyvattn::ledger {
namespace {

// Chunks that are taken ahead, so that not each of them is asked for alone.
std::uint32_t slack_of(std::uint32_t chunks) { return std::min(4u, chunks / 64); }

constexpr std::chrono::milliseconds kRound(100);
constexpr std::chrono::seconds kPatience(1);

// At least a millisecond, so that nobody waits for no time at all again and again.
std::chrono::milliseconds until(std::chrono::steady_clock::time_point end) {
  const auto left = end - std::chrono::steady_clock::now();
  return std::max(std::chrono::milliseconds(1),
                  std::chrono::duration_cast<std::chrono::milliseconds>(left));
}

}  // namespace

Lease::Lease(const FileOptions& file, const MemberOptions& options, bool attended)
    : member_(std::make_unique<Member>(file, options)),
      chunk_bytes_(member_->table().chunk_bytes()),
      chunks_(member_->table().chunks()),
      slack_(slack_of(chunks_)),
      most_(chunks_ * chunk_bytes_),
      fork_generation_(fork_generation()) {
  {
    const Lock lock(mutex_);
    settle();
  }
  if (attended) thread_ = std::make_unique<std::thread>([this] { run(); });
}

Lease::~Lease() {
  if (inherited()) {
    // The thread does not exist here, and what the parent had locked stays locked.
    static_cast<void>(thread_.release());
    return;
  }
  stop_thread();
}

bool Lease::inherited() const { return fork_generation_ != fork_generation(); }

void Lease::check_open() const {
  if (!member_) throw ClosedError("the lease is closed: join the ledger anew");
  member_->table().check_usable();
}

std::uint32_t Lease::chunks_for(std::uint64_t bytes) const {
  const std::uint64_t chunks = bytes / chunk_bytes_ + (bytes % chunk_bytes_ != 0 ? 1 : 0);
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(chunks, chunks_ + 1));
}

// Where something has happened that may have made the last look too low.
void Lease::look_again() const {
  if (inherited() || lost_) return;
  const Lock lock(mutex_);
  if (!member_ || member_->table().mapping().lost()) return;
  if (member_->table().mapping().words().epoch != epoch_) move_limit();
}

std::uint64_t Lease::limit() const {
  look_again();
  return limit_;
}

std::uint64_t Lease::headroom() const {
  look_again();
  const std::uint64_t granted = granted_;
  const std::uint64_t used = held_;
  return granted > used ? granted - used : 0;
}

void Lease::set_limit(std::uint64_t limit) {
  if (inherited()) throw ForkError("this lease belongs to the parent process");
  const Lock lock(mutex_);
  check_open();
  member_->live().limit = std::min<std::uint64_t>(limit / chunk_bytes_, chunks_) + 1;
  settle();
}

bool Lease::take(std::uint64_t bytes) {
  if (inherited()) throw ForkError("this lease belongs to the parent process");
  const Lock lock(mutex_);
  if (!member_) check_open();
  const std::uint64_t after = held_ + bytes;
  const std::uint32_t needed = chunks_for(after);
  if (needed > member_->lease()) {
    check_open();
    const View view = look(needed);
    const std::uint32_t lacking = needed - member_->lease();
    const std::uint32_t room = takeable(view, needed);
    if (room >= lacking) member_->take(std::min(room, lacking + slack_));
    move_limit();
  } else if (after > granted_) {
    move_limit();
  }
  if (needed > member_->lease() || after > granted_) return false;
  held_ = after;
  // What was missed is there: to go on asking for it would be to ask for as much again.
  missed_ -= std::min(missed_, bytes);
  member_->live().used = after;
  return true;
}

void Lease::give_back(std::uint64_t bytes) noexcept {
  if (inherited()) return;
  const Lock lock(mutex_);
  held_ -= bytes;
  if (!member_) return;
  member_->live().used = held_.load();
  try {
    if (!member_->table().mapping().lost()) settle();
  } catch (const std::exception&) {
    // The next round settles it.
  }
}

void Lease::missed(std::uint64_t bytes) {
  if (inherited()) return;
  const Lock lock(mutex_);
  if (!member_ || member_->table().mapping().lost()) return;
  missed_ = bytes;
  missed_until_ = Clock::now() + kPatience;
  replenish();
}

void Lease::want(std::uint64_t bytes) {
  if (inherited()) throw ForkError("this lease belongs to the parent process");
  const Lock lock(mutex_);
  check_open();
  wanted_ = bytes;
  replenish();
}

bool Lease::wait(std::uint64_t bytes, std::chrono::milliseconds most) {
  if (inherited()) throw ForkError("this lease belongs to the parent process");
  const auto end = Clock::now() + most;
  while (true) {
    SharedHalf* epoch = nullptr;
    std::uint32_t seen = 0;
    {
      const Lock lock(mutex_);
      check_open();
      epoch = &member_->table().mapping().words().epoch;
      seen = *epoch;
      missed_ = bytes;
      missed_until_ = Clock::now() + kPatience;
      replenish();
      const std::uint64_t after = held_ + bytes;
      if (chunks_for(after) <= member_->lease() && after <= granted_) return true;
      if (Clock::now() >= end) {
        missed_ = 0;
        replenish();
        return false;
      }
    }
    wait_while(*epoch, seen, std::min(until(end), kRound));
  }
}

bool Lease::wait_asked(std::chrono::milliseconds most) {
  if (inherited()) throw ForkError("this lease belongs to the parent process");
  const auto end = Clock::now() + most;
  while (true) {
    SharedHalf* bell = nullptr;
    std::uint32_t seen = 0;
    {
      const Lock lock(mutex_);
      check_open();
      bell = &member_->live().doorbell;
      seen = *bell;
      settle();
      if (held_ > limit_) return true;
    }
    if (Clock::now() >= end) return false;
    wait_while(*bell, seen, until(end));
  }
}

Watch Lease::watch(std::function<void()> give_back) {
  const Lock lock(watches_mutex_);
  watches_.emplace(++last_watch_, std::move(give_back));
  return last_watch_;
}

void Lease::unwatch(Watch watch) {
  if (inherited()) return;
  // Waits for a call that is under way.
  const Lock lock(watches_mutex_);
  watches_.erase(watch);
}

void Lease::attend() {
  if (inherited()) return;
  {
    const Lock lock(mutex_);
    if (!member_) return;
    care();
    if (lost_ || held_ <= limit_) return;
  }
  const Lock lock(watches_mutex_);
  for (const auto& [watch, give_back] : watches_) {
    try {
      give_back();
    } catch (const std::exception&) {
      // Its owner meets the same at its own next call.
    }
  }
}

void Lease::run() {
  SharedHalf* bell = nullptr;
  {
    const Lock lock(mutex_);
    bell = &member_->live().doorbell;
  }
  while (!stopping_ && !lost_) {
    const std::uint32_t seen = *bell;
    try {
      attend();
    } catch (const std::exception&) {
      // Without memory for its lists, say. An error here would end the process: the next
      // round tries again, and callers meet what lasts.
    }
    if (!stopping_ && !lost_) wait_while(*bell, seen, kRound);
  }
}

void Lease::stop_thread() {
  if (!thread_) return;
  stopping_ = true;
  {
    const Lock lock(mutex_);
    if (member_) ring(member_->live().doorbell);
  }
  thread_->join();
  thread_.reset();
}

void Lease::close() {
  if (inherited()) throw ForkError("this lease belongs to the parent process");
  if (held_ > 0) {
    throw BusyError("the lease holds " + bytes_text(held_) +
                    ": close the caches and pools under it first");
  }
  stop_thread();
  const Lock lock(mutex_);
  member_.reset();
  limit_ = 0;
  granted_ = 0;
}

void Lease::abandon() {
  stop_thread();
  const Lock lock(mutex_);
  if (member_) member_->table().mapping().lose();
  member_.reset();
  limit_ = 0;
  granted_ = 0;
}

Lease::Status Lease::status() const {
  Status status;
  status.chunk_bytes = chunk_bytes_;
  if (inherited()) return status;
  const Lock lock(mutex_);
  status.closed = !member_;
  if (!member_) return status;
  status.name = member_->name();
  status.path = member_->table().path();
  status.leased = member_->lease() * chunk_bytes_;
  status.target = member_->live().target * chunk_bytes_;
  status.lost = member_->table().mapping().lost();
  return status;
}

}  // namespace pyvattn::ledger
