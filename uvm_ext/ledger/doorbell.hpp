// SPDX-License-Identifier: Apache-2.0
// Waiting for a word in shared memory to move. Works between processes and between containers;
// a wake-up that is lost is a delay, since nobody waits for long.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <cstdint>

#include "ledger/layout.hpp"

namespace pyvattn::ledger {

inline void ring(SharedHalf& bell) {
  bell.fetch_add(1);
  ::syscall(SYS_futex, &bell, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// Returns when the word is not `seen` any more, or after the time, or early.
inline void wait_while(SharedHalf& bell, std::uint32_t seen, std::chrono::milliseconds most) {
  timespec time{};
  time.tv_sec = most.count() / 1000;
  time.tv_nsec = (most.count() % 1000) * 1000000;
  ::syscall(SYS_futex, &bell, FUTEX_WAIT, seen, &time, nullptr, 0);
}

}  // namespace pyvattn::ledger
