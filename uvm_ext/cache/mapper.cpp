#include "cache/mapper.hpp"

#include <utility>

namespace pyvattn {

Mapper::Mapper(std::function<bool()> work)
    : work_(std::move(work)), thread_(std::make_unique<std::thread>([this] { run(); })) {}

Mapper::~Mapper() { stop(); }

void Mapper::wake() {
  // It has not begun to look since it was last told to: what there is now it will see.
  if (wanted_) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    wanted_ = true;
  }
  changed_.notify_all();
}

void Mapper::drain() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return stopping_ || (!wanted_ && !busy_); });
}

void Mapper::stop() {
  if (!thread_) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_->join();
  thread_.reset();
}

void Mapper::abandon() { static_cast<void>(thread_.release()); }

void Mapper::run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || wanted_; });
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
