// SPDX-License-Identifier: Apache-2.0
#include "drivers/host.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "base/errors.hpp"
#include "drivers/batch.hpp"
#include "drivers/host_fork.hpp"

namespace pyvattn {
namespace {

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

const char* errno_name(int code) {
  const char* name = strerrorname_np(code);
  return name != nullptr ? name : "unknown errno";
}

// What the system lacks, and what helps.
std::string remedy(int code) {
  if (code == EMFILE) return "the process has as many files open as `ulimit -n` allows: raise it";
  if (code == EFBIG) return "a slab is larger than `ulimit -f` lets files be: raise it";
  if (code != ENOMEM) return std::strerror(code);
  if (mappings_used_up()) {
    return "the process has as many mappings as vm.max_map_count allows: raise it with sysctl, or "
           "use larger pages";
  }
  return "the system has no memory left: end other processes, or lower the cache's memory";
}

[[noreturn]] void fail(const char* operation, Address address, std::size_t size, int code) {
  if (code != ENOMEM) throw DriverError(operation, address, size, errno_name(code), remedy(code));
  throw DriverOutOfMemory(operation, address, size, errno_name(code), remedy(code));
}

[[noreturn]] void fail_to_reserve(std::size_t bytes, int code) {
  if (code != ENOMEM || mappings_used_up()) fail("reserve", 0, bytes, code);
  throw DriverOutOfMemory("reserve", 0, bytes, errno_name(code),
                          "the process has no such range of addresses left: lower max_slots or "
                          "max_tokens, or raise `ulimit -v`");
}

// What reserve() makes: private, read-only and never touched, so that every read finds the
// kernel's shared zero page.
void* map_zeros(void* where, std::size_t bytes, int flags) {
  return ::mmap(where, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1,
                0);
}

// Zero, or the errno of the failure.
int put_zeros(Address address, std::size_t bytes) {
  return map_zeros(pointer(address), bytes, MAP_FIXED) != MAP_FAILED ? 0 : errno;
}

int give_back(Address address, std::size_t bytes) {
  return bytes == 0 || ::munmap(pointer(address), bytes) == 0 ? 0 : errno;
}

}  // namespace

// The spare mappings for the length of a call: whatever happens, they are made again at its
// end where that is possible.
class HostDriver::Spares {
 public:
  explicit Spares(HostDriver& driver) : driver_(driver), kept_(keep()) {}
  Spares(const Spares&) = delete;
  Spares& operator=(const Spares&) = delete;
  ~Spares() { keep(); }

  // Whether they were there when the call began.
  bool kept() const { return kept_; }
  bool keep() noexcept { return driver_.spare_to_undo_.keep() && driver_.spare_mappings_.keep(); }

 private:
  HostDriver& driver_;
  const bool kept_;
};

Capabilities HostDriver::describe() {
  Capabilities capabilities;
  capabilities.name = "host";
  for (std::size_t size = 64u << 10; size <= 2u << 20; size <<= 1) {
    capabilities.page_sizes.push_back(size);
  }
  capabilities.zero_backed = true;
  return capabilities;
}

HostDriver::HostDriver(std::size_t page_size) : page_size_(page_size) {}

HostDriver::~HostDriver() {
  spare_mappings_.give_up();
  for (const auto& [address, bytes] : reservations_) {
    keep_in_children(address);
    ::munmap(pointer(address), bytes);
  }
  for (const auto& [id, slab] : slabs_) ::close(slab.fd);
}

Address HostDriver::reserve(std::size_t bytes, std::size_t alignment) {
  // mmap aligns to 4 KiB only: reserve more, then give back both ends.
  const std::size_t padded = bytes + alignment;
  const Spares spares(*this);
  if (padded < bytes || !spares.kept()) fail_to_reserve(bytes, ENOMEM);
  void* raw = map_zeros(nullptr, padded, 0);
  if (raw == MAP_FAILED) fail_to_reserve(bytes, errno);
  const Address start = reinterpret_cast<Address>(raw);
  const Address aligned = (start + alignment - 1) / alignment * alignment;
  const Address end = aligned + bytes;
  spare_mappings_.make_room_for([&] { return give_back(start, aligned - start); });
  spare_mappings_.make_room_for([&] { return give_back(end, start + padded - end); });
  reservations_.emplace(aligned, bytes);
  forget_in_children({aligned, bytes});
  return aligned;
}

void HostDriver::release_reservation(Address address) {
  const auto found = reservations_.find(address);
  if (found == reservations_.end()) fail("release_reservation", address, 0, EINVAL);
  const std::size_t bytes = found->second;
  keep_in_children(address);
  const Spares spares(*this);
  const int code = spare_mappings_.make_room_for([&] { return give_back(address, bytes); });
  if (code != 0) fail("release_reservation", address, bytes, code);
  reservations_.erase(found);
}

SlabId HostDriver::allocate_slab(std::size_t bytes) {
  const int fd = ::memfd_create("pyvattn-slab", MFD_CLOEXEC);
  if (fd < 0) fail("allocate_slab", 0, bytes, errno);
  if (::ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    const int code = errno;
    ::close(fd);
    fail("allocate_slab", 0, bytes, code);
  }
  slabs_.emplace(next_slab_, Slab{fd, bytes});
  return next_slab_++;
}

void HostDriver::free_slab(SlabId slab) {
  const auto found = slabs_.find(slab);
  if (found == slabs_.end()) fail("free_slab", 0, 0, EINVAL);
  ::close(found->second.fd);
  slabs_.erase(found);
}

int HostDriver::map_one(const MapEntry& entry) const noexcept {
  const auto found = slabs_.find(entry.slab);
  if (found == slabs_.end() || entry.offset > found->second.bytes ||
      entry.length > found->second.bytes - entry.offset) {
    return EINVAL;
  }
  void* mapped = ::mmap(pointer(entry.address), entry.length, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_FIXED, found->second.fd, static_cast<off_t>(entry.offset));
  return mapped == MAP_FAILED ? errno : 0;
}

void HostDriver::undo_map(const MapEntry& entry) noexcept {
  const auto undo = [&] { return put_zeros(entry.address, entry.length); };
  if (spare_to_undo_.make_room_for(undo) != 0) sound_.lose();
}

void HostDriver::redo_map(const MapEntry& entry) noexcept {
  if (spare_to_undo_.make_room_for([&] { return map_one(entry); }) != 0) sound_.lose();
}

void HostDriver::map(const std::vector<MapEntry>& batch) {
  if (batch.empty()) return;
  sound_.require("map", {batch.front().address, batch.front().length});
  const Spares spares(*this);
  if (!spares.kept()) fail("map", batch.front().address, batch.front().length, ENOMEM);
  all_or_nothing(
      batch,
      [this](const MapEntry& entry) {
        const int code = map_one(entry);
        if (code != 0) fail("map", entry.address, entry.length, code);
      },
      [this](const MapEntry& entry) { undo_map(entry); });
}

void HostDriver::unmap(const std::vector<MapEntry>& batch) {
  if (batch.empty()) return;
  Spares spares(*this);
  unmap_all_or_nothing(
      batch,
      [this](const Range& run) {
        const int code =
            spare_mappings_.make_room_for([&] { return put_zeros(run.address, run.length); });
        if (code != 0) fail("unmap", run.address, run.length, code);
      },
      [this](const MapEntry& entry) { redo_map(entry); });
  // A call that used the spare mappings up would leave none to close with.
  if (!spares.kept() || spares.keep()) return;
  for (const MapEntry& entry : batch) redo_map(entry);
  fail("unmap", batch.front().address, batch.front().length, ENOMEM);
}

FencePtr HostDriver::zero(const std::vector<Range>& batch, const FencePtr& after) {
  if (after) after->wait();
  for (const Range& range : batch) std::memset(pointer(range.address), 0, range.length);
  return nullptr;
}

}  // namespace pyvattn
