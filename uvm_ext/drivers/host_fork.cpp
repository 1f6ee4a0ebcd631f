// SPDX-License-Identifier: Apache-2.0
#include "drivers/host_fork.hpp"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <vector>

namespace pyvattn {
namespace {

struct Ranges {
  std::mutex mutex;
  std::vector<Range> list;
};

// Never destroyed: threads may fork until the process is gone.
Ranges& ranges() {
  static auto* const all = new Ranges;
  return *all;
}

// fork() copies the calling thread only: no other may be changing the list.
void before_fork() { ranges().mutex.lock(); }
void after_fork_in_parent() { ranges().mutex.unlock(); }

// Only system calls: whatever else other threads were at stays half done here.
void after_fork_in_child() {
  for (const Range& range : ranges().list) {
    void* where = reinterpret_cast<void*>(range.address);
    // First, because a process with all the mappings it may have gets no other in their place.
    ::munmap(where, range.length);
    ::mmap(where, range.length, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  }
  // From here on they are as any other memory of the child, also when it forks.
  ranges().list.clear();
  ranges().mutex.unlock();
}

}  // namespace

void forget_in_children(const Range& range) {
  static const int registered =
      ::pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  static_cast<void>(registered);
  const std::lock_guard<std::mutex> lock(ranges().mutex);
  ranges().list.push_back(range);
}

void keep_in_children(Address address) noexcept {
  const std::lock_guard<std::mutex> lock(ranges().mutex);
  std::vector<Range>& list = ranges().list;
  list.erase(std::remove_if(list.begin(), list.end(),
                            [&](const Range& range) { return range.address == address; }),
             list.end());
}

}  // namespace pyvattn
