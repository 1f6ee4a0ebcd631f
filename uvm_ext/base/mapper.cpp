// SPDX-License-Identifier: Apache-2.0
#include "base/mapper.hpp"

#include <chrono>
#include <utility>

namespace pyvattn {

Mapper::Mapper(std::function<bool()> work) : work_(std::move(work)) {}

Mapper::~Mapper() { stop(); }

void Mapper::start_locked() {
  if (thread_ || stopping_) return;
  thread_ = std::make_unique<std::thread>([this] { run(); });
}

void Mapper::start() {
  const std::lock_guard<std::mutex> lock(mutex_);
  start_locked();
}

void Mapper::wake() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    start_locked();
    wanted_ = true;
  }
  changed_.notify_all();
}

void Mapper::nudge() {
  // It has not begun to look since it was last told to: what there is now it will see.
  if (wanted_) return;
  wanted_ = true;
  if (asleep_) wake();
}

void Mapper::drain() {
  std::unique_lock<std::mutex> lock(mutex_);
  // It may nap.
  changed_.notify_all();
  changed_.wait(lock, [this] { return stopping_ || (!wanted_ && !busy_); });
}

void Mapper::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  // Nobody starts one any more.
  if (!thread_) return;
  thread_->join();
  thread_.reset();
}

void Mapper::abandon() { static_cast<void>(thread_.release()); }

// Naps before it sleeps: while it naps, a nudge need not wake it.
void Mapper::wait_for_work(std::unique_lock<std::mutex>& lock) {
  constexpr auto kNap = std::chrono::milliseconds(1);
  constexpr int kNaps = 20;
  const auto told = [this] { return stopping_ || wanted_; };
  for (int naps = 0; naps < kNaps; ++naps) {
    if (changed_.wait_for(lock, kNap, told)) return;
  }
  // Said before it looks once more: a nudge sees it, or it sees the nudge.
  asleep_ = true;
  changed_.wait(lock, told);
  asleep_ = false;
}

void Mapper::run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    wait_for_work(lock);
    if (stopping_) return;
    wanted_ = false;
    busy_ = true;
    bool more = true;
    while (more && !stopping_) {
      lock.unlock();
      more = work_();
      lock.lock();
    }
    busy_ = false;
    changed_.notify_all();
  }
}

}  // namespace pyvattn
