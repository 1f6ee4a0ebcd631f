// SPDX-License-Identifier: Apache-2.0
#include "ledger/locks.hpp"

#include <fcntl.h>

#include <chrono>
#include <string>
#include <thread>

#include "base/errors.hpp"

#ifndef F_OFD_GETLK
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#endif

namespace pyvattn::ledger {
namespace {

struct flock one_byte(short type, std::uint32_t byte) {
  struct flock lock{};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return lock;
}

}  // namespace

bool try_lock(int descriptor, std::uint32_t byte) {
  struct flock lock = one_byte(F_WRLCK, byte);
  return ::fcntl(descriptor, F_OFD_SETLK, &lock) == 0;
}

void unlock(int descriptor, std::uint32_t byte) {
  struct flock lock = one_byte(F_UNLCK, byte);
  ::fcntl(descriptor, F_OFD_SETLK, &lock);
}

bool is_locked_by_other(int descriptor, std::uint32_t byte) {
  struct flock lock = one_byte(F_WRLCK, byte);
  return ::fcntl(descriptor, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

JoinLock::JoinLock(int descriptor, const char* path) : descriptor_(descriptor) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::seconds(1);
  while (!try_lock(descriptor, kJoinByte)) {
    if (Clock::now() > end) {
      throw LedgerBusy("ledger " + std::string(path) +
                       ": another process has been joining for a second: is one stopped? "
                       "Continue or end it, and try again");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace pyvattn::ledger
