// SPDX-License-Identifier: Apache-2.0
// The seam to the operating system: everything that the NVIDIA drivers open, read or
// call goes through it. emulation/nvidia_machine.hpp stands behind it in tests.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace pyvattn {
namespace nvidia {

class System {
 public:
  virtual ~System() = default;

  // A descriptor that is closed on exec, or minus the errno.
  virtual int open(const std::string& path) = 0;
  // Another descriptor of the same open file, or minus the errno.
  virtual int duplicate(int fd) = 0;
  virtual void close(int fd) noexcept = 0;
  // Zero, or the errno. A call that was interrupted, or refused because the system is being
  // suspended, is made again; the latter for half a minute.
  virtual int ioctl(int fd, unsigned long request, void* argument) noexcept = 0;

  // A small text file, or nothing where it cannot be read.
  virtual std::optional<std::string> read(const std::string& path) = 0;
  virtual bool exists(const std::string& path) = 0;
  // This process's descriptors of the file at `path`, ascending.
  virtual std::vector<int> descriptors_of(const std::string& path) = 0;
};

// Linux itself.
System& real_system();

// Closes its descriptor at the end.
class File {
 public:
  File(System& system, int fd) : system_(&system), fd_(fd) {}
  File(File&& other) noexcept : system_(other.system_), fd_(other.fd_) { other.fd_ = -1; }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  File& operator=(File&&) = delete;
  ~File() {
    if (fd_ >= 0) system_->close(fd_);
  }

  int get() const { return fd_; }

 private:
  System* system_;
  int fd_;
};

}  // namespace nvidia
}  // namespace pyvattn
