// SPDX-License-Identifier: Apache-2.0
#include "python/gil.hpp"

#include <unistd.h>

#include <atomic>
#include <thread>

namespace pyvattn::python {
namespace {

// The thread that ends the process; no thread before that.
std::atomic<std::thread::id> exiting{std::thread::id()};

[[noreturn]] void wait_for_the_end() {
  while (true) ::pause();
}

}  // namespace

void begin_exit() { exiting = std::this_thread::get_id(); }

bool exits_elsewhere() {
  const std::thread::id thread = exiting;
  return thread != std::thread::id() && thread != std::this_thread::get_id();
}

WithoutGil::~WithoutGil() {
  try {
    PyEval_RestoreThread(state_);
  } catch (...) {
    // The interpreter is gone, and ends the thread by unwinding its stack.
    wait_for_the_end();
  }
}

WithGil::WithGil() {
  try {
    state_ = PyGILState_Ensure();
  } catch (...) {
    wait_for_the_end();
  }
}

}  // namespace pyvattn::python
