// SPDX-License-Identifier: Apache-2.0
// The mapper thread: does work in the background while the caller computes.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace pyvattn {

class Mapper {
 public:
  // `work` does one piece of work and returns true, or returns false where there is
  // none. It runs on the mapper's thread only and must not throw. The thread begins with
  // start(), or with the first wake().
  explicit Mapper(std::function<bool()> work);
  ~Mapper();
  Mapper(const Mapper&) = delete;
  Mapper& operator=(const Mapper&) = delete;

  // Throws std::system_error where no thread can be had.
  void start();
  // There is work: look at once. Throws what start() throws.
  void wake();
  // There is work that can wait a millisecond: costs the caller no system call where the
  // thread has lately been at work.
  void nudge();
  // Returns when everything asked for before this call is done.
  void drain();
  // Ends the thread, for good, after the piece of work it is at. One caller at a time.
  void stop();
  // Forgets the thread without ending it: in a forked child it does not exist.
  void abandon();

 private:
  void start_locked();
  void run();
  void wait_for_work(std::unique_lock<std::mutex>& lock);

  const std::function<bool()> work_;
  // Guards what follows; the two atomics are also read, and wanted_ set, without it.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> wanted_{false};
  // It looks again only when it is told to, not by itself.
  std::atomic<bool> asleep_{false};
  bool busy_ = false;
  bool stopping_ = false;
  std::unique_ptr<std::thread> thread_;
};

}  // namespace pyvattn
