// SPDX-License-Identifier: Apache-2.0
#include "ledger/process.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <sstream>

namespace pyvattn::ledger {
namespace {

struct Status {
  char state = '?';
  long threads = 0;
  std::uint64_t start_time = 0;
};

// By plain calls: a stream throws where the process goes between open and read.
std::string read_file(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return {};
  char text[1024];
  const ssize_t bytes = ::read(file, text, sizeof text);
  ::close(file);
  return {text, bytes > 0 ? static_cast<std::size_t>(bytes) : 0};
}

// Fields 3, 20 and 22 of /proc/PID/stat; the second is the command, in parentheses, and may
// hold anything.
bool read_status(std::uint32_t pid, Status& status) {
  const std::string text = read_file("/proc/" + std::to_string(pid) + "/stat");
  const std::size_t end = text.rfind(')');
  if (end == std::string::npos) return false;
  std::istringstream rest(text.substr(end + 1));
  std::string skipped;
  rest >> status.state;
  for (int field = 4; field < 20; ++field) rest >> skipped;
  rest >> status.threads >> skipped >> status.start_time;
  return !rest.fail();
}

}  // namespace

Process Process::self() {
  Process self;
  self.pid = static_cast<std::uint32_t>(::getpid());
  Status status;
  if (read_status(self.pid, status)) self.start_time = status.start_time;
  struct stat space{};
  if (::stat("/proc/self/ns/pid", &space) == 0) self.pid_namespace = space.st_ino;
  return self;
}

bool is_gone(const Process& process) {
  struct stat there{};
  // Without /proc nothing is known.
  if (::stat("/proc/self/stat", &there) != 0) return false;
  Status status;
  if (!read_status(process.pid, status)) {
    // It may also be this process that can open no more files.
    return ::stat(("/proc/" + std::to_string(process.pid)).c_str(), &there) != 0 && errno == ENOENT;
  }
  if (status.start_time != process.start_time) return true;
  // A zombie has given back its memory and its files; one whose threads live on has not.
  return (status.state == 'Z' || status.state == 'X') && status.threads <= 1;
}

std::string boot_id() {
  const std::string id = read_file("/proc/sys/kernel/random/boot_id");
  return id.substr(0, id.find('\n'));
}

}  // namespace pyvattn::ledger
