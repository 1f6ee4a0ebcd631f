// SPDX-License-Identifier: Apache-2.0
// Who a process is, and whether it is still there: the second sign beside a member's lock,
// which a living process can lose.
#pragma once

#include <cstdint>
#include <string>

namespace pyvattn::ledger {

struct Process {
  std::uint32_t pid = 0;
  // Clock ticks after boot; zero where it is not known.
  std::uint64_t start_time = 0;
  std::uint64_t pid_namespace = 0;

  static Process self();
};

// Of a process in the caller's pid namespace: whether it is gone for certain.
bool is_gone(const Process& process);

std::string boot_id();

}  // namespace pyvattn::ledger
