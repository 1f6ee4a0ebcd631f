// SPDX-License-Identifier: Apache-2.0
#include "ledger/file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <random>
#include <vector>

#include "base/errors.hpp"
#include "base/text.hpp"
#include "ledger/crc.hpp"
#include "ledger/locks.hpp"
#include "ledger/process.hpp"

namespace pyvattn::ledger {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return value_; }

 private:
  const int value_;
};

std::string named(const std::string& path) { return "ledger " + path + ": "; }

[[noreturn]] void refuse_call(const std::string& path, const char* call, int error) {
  throw LedgerError(named(path) + call + ": " + std::strerror(error));
}

[[noreturn]] void refuse_content(const std::string& path, const std::string& what) {
  throw LedgerCorrupt(named(path) + what + ": end the engines that use it and run " +
                      "`pyvattn ledger reset`");
}

std::uint32_t crc_of(const Header& header) { return crc32c(&header, offsetof(Header, crc)); }

void copy_text(char* to, std::size_t bytes, const std::string& text) {
  std::memcpy(to, text.data(), std::min(text.size(), bytes - 1));
}

Header new_header(const FileOptions& options) {
  const std::uint64_t chunks = options.chunk_bytes == 0 ? 0 : options.budget / options.chunk_bytes;
  if (chunks == 0 || chunks > kMostChunks) {
    throw ConfigError("a shared budget of " + bytes_text(options.budget) + " has " +
                      std::to_string(chunks) + " chunks of " + bytes_text(options.chunk_bytes) +
                      ": give one of 1 to " + std::to_string(kMostChunks));
  }
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.major = kMajor;
  header.minor = kMinor;
  header.slots = kSlots;
  header.slot_bytes = sizeof(Slot);
  header.chunks = static_cast<std::uint32_t>(chunks);
  header.chunk_bytes = options.chunk_bytes;
  std::random_device random;
  for (std::uint64_t& word : header.file_id) word = std::uint64_t{random()} << 32 | random();
  copy_text(header.boot_id, sizeof header.boot_id, boot_id());
  copy_text(header.device, sizeof header.device, options.device);
  header.crc = crc_of(header);
  return header;
}

void write_all(const std::string& path, int file, const void* data, std::size_t bytes,
               std::size_t offset) {
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::pwrite(file, from, bytes, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) refuse_call(path, "write", errno);
    from += done;
    offset += static_cast<std::size_t>(done);
    bytes -= static_cast<std::size_t>(done);
  }
}

// A whole file under another name first: nobody ever sees half of one. Another process that
// makes it at the same time may be faster.
void create(const FileOptions& options) {
  const Header header = new_header(options);
  const std::string draft =
      options.path + ".new-" + std::to_string(::getpid()) + "-" + std::to_string(header.file_id[0]);
  const Descriptor file(::open(draft.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (file.get() < 0) refuse_call(draft, "open", errno);
  struct Unlink {
    const std::string& path;
    ~Unlink() { ::unlink(path.c_str()); }
  } const unlink{draft};
  // A file system that is full would end the process at a later write to the memory.
  const auto bytes = static_cast<off_t>(file_bytes(header.chunks));
  if (const int error = ::posix_fallocate(file.get(), 0, bytes)) {
    refuse_call(options.path, "allocate its bytes", error);
  }
  const Words words(header.file_id);
  std::vector<std::uint64_t> table(header.chunks);
  for (std::uint32_t i = 0; i < header.chunks; ++i) table[i] = words.pack(i, {});
  write_all(options.path, file.get(), table.data(), table.size() * 8, kTableOffset);
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
    const std::uint64_t state = words.pack(kStateIndex + slot, {});
    write_all(options.path, file.get(), &state, sizeof state,
              kSlotsOffset + slot * sizeof(Slot) + offsetof(Slot, state));
  }
  write_all(options.path, file.get(), &header, sizeof header, 0);
  ::fsync(file.get());
  if (::link(draft.c_str(), options.path.c_str()) != 0 && errno != EEXIST) {
    refuse_call(options.path, "link", errno);
  }
}

int open_existing(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (file < 0 && errno != ENOENT) refuse_call(path, "open", errno);
  return file;
}

struct stat checked_status(const std::string& path, int file) {
  struct stat status{};
  if (::fstat(file, &status) != 0) refuse_call(path, "fstat", errno);
  if (!S_ISREG(status.st_mode)) throw LedgerError(named(path) + "it is no ordinary file");
  if (status.st_uid != ::geteuid() || (status.st_mode & 077) != 0) {
    throw LedgerError(named(path) + "it is not this user's alone: its mode must be 0600");
  }
  return status;
}

void check_header(const std::string& path, const Header& header, std::uint64_t size) {
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
    refuse_content(path, "it is no ledger");
  }
  if (header.major != kMajor || header.incompatible != 0) {
    throw LedgerVersion(named(path) + "layout " + std::to_string(header.major) + "." +
                        std::to_string(header.minor) + ", features " +
                        std::to_string(header.incompatible) + ", where this pyvattn knows " +
                        std::to_string(kMajor) + "." + std::to_string(kMinor) +
                        ": run the same release of pyvattn in all engines, or end them and run "
                        "`pyvattn ledger reset`");
  }
  if (header.crc != crc_of(header)) refuse_content(path, "its header is damaged");
  if (header.slots != kSlots || header.slot_bytes != sizeof(Slot) || header.chunks == 0 ||
      header.chunks > kMostChunks || header.chunk_bytes == 0) {
    refuse_content(path, "its header has impossible sizes");
  }
  if (size < file_bytes(header.chunks)) {
    refuse_content(path, "it has " + std::to_string(size) + " of " +
                             std::to_string(file_bytes(header.chunks)) + " bytes");
  }
}

// Locks do not reach from one kernel to another, and to take a living member for dead is the
// one thing that must not happen.
void check_kernel(const std::string& path, const Header& header, int file) {
  if (header.boot_id != boot_id()) {
    throw LedgerError(named(path) +
                      "it was made by another kernel or before a reboot: keep it on a file "
                      "system of this machine, and run `pyvattn ledger reset`");
  }
  const Descriptor other(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (other.get() < 0) refuse_call(path, "open", errno);
  constexpr std::uint32_t kTestByte = kJoinByte + 1;
  bool seen = false;
  if (try_lock(other.get(), kTestByte)) {
    seen = is_locked_by_other(file, kTestByte);
    unlock(other.get(), kTestByte);
  } else {
    // Another process tests at this moment.
    seen = errno == EAGAIN || errno == EACCES;
  }
  if (!seen) {
    throw LedgerError(named(path) +
                      "the kernel's file locks do not work here: set PYVATTN_RUNTIME_DIR to a "
                      "folder on tmpfs");
  }
}

void check_asked(const FileOptions& options, const Header& header) {
  if (!options.device.empty() && options.device != header.device) {
    throw ConfigError(named(options.path) + "it is about device '" + header.device + "', not '" +
                      options.device + "'");
  }
  const std::uint64_t budget = std::uint64_t{header.chunks} * header.chunk_bytes;
  if (options.budget != 0 && options.budget / header.chunk_bytes != header.chunks) {
    throw ConfigError(named(options.path) + "it shares " + bytes_text(budget) + ", not " +
                      bytes_text(options.budget) +
                      ": leave the budget out, or end the engines and run `pyvattn ledger reset`");
  }
}

}  // namespace

OpenFile open_file(const FileOptions& options) {
  Descriptor file(open_existing(options.path));
  if (file.get() < 0) {
    if (options.budget == 0) {
      throw LedgerError(named(options.path) +
                        "there is none: the first engine gives the budget that is shared");
    }
    create(options);
    return open_file(options);
  }
  const struct stat status = checked_status(options.path, file.get());
  OpenFile open;
  if (::pread(file.get(), &open.header, sizeof open.header, 0) != sizeof open.header) {
    refuse_content(options.path, "it is cut off");
  }
  check_header(options.path, open.header, static_cast<std::uint64_t>(status.st_size));
  check_kernel(options.path, open.header, file.get());
  check_asked(options, open.header);
  open.mapping =
      std::make_unique<Mapping>(options.path, file.get(), file_bytes(open.header.chunks));
  return open;
}

void remove_file(const std::string& path) {
  const Descriptor file(open_existing(path));
  if (file.get() < 0) throw LedgerError(named(path) + "there is none");
  checked_status(path, file.get());
  const JoinLock joining(file.get(), path.c_str());
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
    if (is_locked_by_other(file.get(), slot)) {
      throw LedgerBusy(named(path) + "a member in slot " + std::to_string(slot) +
                       " is alive: end it first, `pyvattn top` names it");
    }
  }
  if (::unlink(path.c_str()) != 0) refuse_call(path, "unlink", errno);
}

}  // namespace pyvattn::ledger
