// SPDX-License-Identifier: Apache-2.0
#include "drivers/nvidia/system.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <thread>

namespace pyvattn {
namespace nvidia {
namespace {

// NVIDIA's modules refuse calls with EAGAIN from the moment at which the system is being
// suspended until it has resumed. The clock stands still while the machine sleeps.
constexpr std::chrono::seconds kResume{30};

class LinuxSystem final : public System {
 public:
  int open(const std::string& path) override {
    const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    return fd >= 0 ? fd : -errno;
  }

  int duplicate(int fd) override {
    const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return copy >= 0 ? copy : -errno;
  }

  void close(int fd) noexcept override { ::close(fd); }

  int ioctl(int fd, unsigned long request, void* argument) noexcept override {
    const auto give_up = std::chrono::steady_clock::now() + kResume;
    while (::ioctl(fd, request, argument) < 0) {
      const int error = errno;
      if (error == EAGAIN && std::chrono::steady_clock::now() < give_up) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      } else if (error != EINTR) {
        return error;
      }
    }
    return 0;
  }

  std::optional<std::string> read(const std::string& path) override {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return std::nullopt;
    std::string text;
    char block[4096];
    ssize_t count = 0;
    while ((count = ::read(fd, block, sizeof block)) > 0) {
      text.append(block, static_cast<std::size_t>(count));
    }
    ::close(fd);
    if (count < 0) return std::nullopt;
    return text;
  }

  bool exists(const std::string& path) override { return ::access(path.c_str(), F_OK) == 0; }

  std::vector<int> descriptors_of(const std::string& path) override {
    std::vector<int> found;
    DIR* directory = ::opendir("/proc/self/fd");
    if (directory == nullptr) return found;
    while (const dirent* entry = ::readdir(directory)) {
      char target[PATH_MAX];
      const ssize_t length = ::readlinkat(::dirfd(directory), entry->d_name, target, sizeof target);
      if (length > 0 && std::string(target, static_cast<std::size_t>(length)) == path) {
        found.push_back(std::atoi(entry->d_name));
      }
    }
    ::closedir(directory);
    std::sort(found.begin(), found.end());
    return found;
  }
};

}  // namespace

System& real_system() {
  static LinuxSystem system;
  return system;
}

}  // namespace nvidia
}  // namespace pyvattn
