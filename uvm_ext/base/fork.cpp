// SPDX-License-Identifier: Apache-2.0
#include "base/fork.hpp"

#include <pthread.h>

#include <atomic>

namespace pyvattn {
namespace {

std::atomic<int> generation{0};

void count_child() { ++generation; }

}  // namespace

int fork_generation() {
  static const int registered = ::pthread_atfork(nullptr, nullptr, count_child);
  static_cast<void>(registered);
  return generation;
}

}  // namespace pyvattn
