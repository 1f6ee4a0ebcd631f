// SPDX-License-Identifier: Apache-2.0
// Locks on single bytes of a file that belong to an open file, not to a process: the kernel
// drops them when the last descriptor of that open file goes, at whatever instruction.
#pragma once

#include <cstdint>

namespace pyvattn::ledger {

// False where another open file has it.
bool try_lock(int descriptor, std::uint32_t byte);
void unlock(int descriptor, std::uint32_t byte);
// Whether another open file has it; takes nothing. Where the kernel does not answer: yes.
bool is_locked_by_other(int descriptor, std::uint32_t byte);

// The byte of a process that is joining; those before it are members'.
constexpr std::uint32_t kJoinByte = 64;

class JoinLock {
 public:
  // Tries for a second: a process stopped inside holds up those that join, and no others.
  // Throws LedgerBusy.
  JoinLock(int descriptor, const char* path);
  ~JoinLock() { unlock(descriptor_, kJoinByte); }
  JoinLock(const JoinLock&) = delete;
  JoinLock& operator=(const JoinLock&) = delete;

 private:
  const int descriptor_;
};

}  // namespace pyvattn::ledger
