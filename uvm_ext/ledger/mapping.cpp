// SPDX-License-Identifier: Apache-2.0
#include "ledger/mapping.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/errors.hpp"
#include "base/fork.hpp"

namespace pyvattn::ledger {

// What a signal handler and a forked child must find without a lock.
struct Mapping::Entry {
  std::atomic<bool> taken{false};
  std::atomic<bool> lost{false};
  std::atomic<int> descriptor{-1};
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::size_t> bytes{0};
};

namespace {

constexpr std::size_t kMostMappings = 256;
struct sigaction former_handler;

[[noreturn]] void refuse(const std::string& path, const std::string& call) {
  throw LedgerError("ledger " + path + ": " + call + ": " + std::strerror(errno));
}

// The kernel closes a dying process's descriptors in ascending order, and the one that holds a
// member's lock should outlive those that hold its memory.
int copied_high(int descriptor) {
  rlimit limit{};
  const bool known = ::getrlimit(RLIMIT_NOFILE, &limit) == 0;
  const auto most = static_cast<int>(known ? std::min<rlim_t>(limit.rlim_cur, 1024) : 256);
  const int high = ::fcntl(descriptor, F_DUPFD_CLOEXEC, most * 7 / 8);
  return high >= 0 ? high : ::fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
}

void pass_on(int signal, siginfo_t* info, void* context) {
  const bool was_sent = info->si_code <= 0;
  if ((former_handler.sa_flags & SA_SIGINFO) != 0) {
    former_handler.sa_sigaction(signal, info, context);
  } else if (former_handler.sa_handler == SIG_IGN && was_sent) {
    return;
  } else if (former_handler.sa_handler == SIG_DFL || former_handler.sa_handler == SIG_IGN) {
    // The instruction is run again and meets the default, as the kernel has it for one that
    // is ignored.
    ::signal(signal, SIG_DFL);
    if (was_sent) ::raise(signal);
  } else {
    former_handler.sa_handler(signal);
  }
}

}  // namespace

Mapping::Entry* Mapping::entries() {
  static Entry all[kMostMappings];
  return all;
}

Mapping::Entry& Mapping::unused_entry() {
  for (Entry* entry = entries(); entry != entries() + kMostMappings; ++entry) {
    if (!entry->taken.exchange(true)) return *entry;
  }
  throw LedgerError("this process has " + std::to_string(kMostMappings) +
                    " ledgers open: close some");
}

int Mapping::current_fork() { return fork_generation(); }

// OFD locks are inherited: a child that kept the descriptor would keep a dead parent's lease.
void Mapping::close_in_child() {
  for (Entry* entry = entries(); entry != entries() + kMostMappings; ++entry) {
    const int descriptor = entry->descriptor.exchange(-1);
    if (descriptor >= 0) ::close(descriptor);
    entry->begin = 0;
  }
}

void Mapping::install_handlers() {
  static std::once_flag once;
  std::call_once(once, [] {
    entries();
    ::pthread_atfork(nullptr, nullptr, close_in_child);
    struct sigaction action{};
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    ::sigemptyset(&action.sa_mask);
    action.sa_sigaction = [](int signal, siginfo_t* info, void* context) {
      const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
      for (Entry* entry = entries(); entry != entries() + kMostMappings; ++entry) {
        const std::uintptr_t begin = entry->begin;
        if (begin == 0 || address < begin || address >= begin + entry->bytes) continue;
        entry->lost = true;
        ::mmap(reinterpret_cast<void*>(begin), entry->bytes, PROT_READ | PROT_WRITE,
               MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return;
      }
      pass_on(signal, info, context);
    };
    ::sigaction(SIGBUS, &action, &former_handler);
  });
}

Mapping::Mapping(std::string path, int descriptor, std::size_t bytes)
    : path_(std::move(path)),
      bytes_(bytes),
      fork_generation_(current_fork()),
      entry_(unused_entry()) {
  install_handlers();
  entry_.lost = false;
  entry_.bytes = bytes;
  const int copy = copied_high(descriptor);
  struct stat status{};
  const bool is_open = copy >= 0 && ::fstat(copy, &status) == 0;
  memory_ =
      is_open ? ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, copy, 0) : MAP_FAILED;
  if (memory_ == MAP_FAILED) {
    const int error = errno;
    if (copy >= 0) ::close(copy);
    entry_.taken = false;
    errno = error;
    refuse(path_, is_open ? "mmap" : "dup");
  }
  entry_.descriptor = copy;
  ::madvise(memory_, bytes, MADV_DONTFORK);
  device_ = status.st_dev;
  inode_ = status.st_ino;
  entry_.begin = reinterpret_cast<std::uintptr_t>(memory_);
}

Mapping::~Mapping() {
  if (inherited()) return;
  entry_.begin = 0;
  ::munmap(memory_, bytes_);
  const int open = entry_.descriptor.exchange(-1);
  // Somebody may have closed it, and have another file under its number by now.
  struct stat status{};
  if (open >= 0 && ::fstat(open, &status) == 0 && status.st_ino == inode_ &&
      status.st_dev == device_) {
    ::close(open);
  }
  entry_.taken = false;
}

int Mapping::descriptor() const { return entry_.descriptor; }

bool Mapping::is_in_place() const {
  struct stat file{};
  return ::stat(path_.c_str(), &file) == 0 && file.st_ino == inode_ && file.st_dev == device_ &&
         static_cast<std::size_t>(file.st_size) >= bytes_;
}

bool Mapping::reopen() {
  struct stat status{};
  const auto is_ours = [&] { return status.st_ino == inode_ && status.st_dev == device_; };
  if (::fstat(entry_.descriptor, &status) == 0 && is_ours()) return true;
  const int open = ::open(path_.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (open < 0) return false;
  if (::fstat(open, &status) != 0 || !is_ours()) {
    ::close(open);
    return false;
  }
  entry_.descriptor = copied_high(open);
  ::close(open);
  return entry_.descriptor >= 0;
}

bool Mapping::lost() const { return entry_.lost; }
void Mapping::lose() { entry_.lost = true; }

}  // namespace pyvattn::ledger
