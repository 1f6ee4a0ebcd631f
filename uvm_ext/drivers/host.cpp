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

// Puts back what reserve() made: private, read-only and never touched, so that
// every read finds the kernel's shared zero page.
void* map_zeros(void* where, std::size_t bytes, int flags) {
  return ::mmap(where, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1,
                0);
}

}  // namespace

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
  for (const auto& [address, bytes] : reservations_) {
    keep_in_children(address);
    ::munmap(pointer(address), bytes);
  }
  for (const auto& [id, slab] : slabs_) ::close(slab.fd);
}

Address HostDriver::reserve(std::size_t bytes, std::size_t alignment) {
  // mmap aligns to 4 KiB only: reserve more, then give back both ends.
  const std::size_t padded = bytes + alignment;
  if (padded < bytes) fail_to_reserve(bytes, ENOMEM);
  void* raw = map_zeros(nullptr, padded, 0);
  if (raw == MAP_FAILED) fail_to_reserve(bytes, errno);
  const Address start = reinterpret_cast<Address>(raw);
  const Address aligned = (start + alignment - 1) / alignment * alignment;
  const Address end = start + padded;
  if (aligned > start) ::munmap(raw, aligned - start);
  if (end > aligned + bytes) ::munmap(pointer(aligned + bytes), end - (aligned + bytes));
  reservations_.emplace(aligned, bytes);
  forget_in_children({aligned, bytes});
  return aligned;
}

void HostDriver::release_reservation(Address address) {
  const auto found = reservations_.find(address);
  if (found == reservations_.end()) fail("release_reservation", address, 0, EINVAL);
  keep_in_children(address);
  if (::munmap(pointer(address), found->second) != 0) {
    fail("release_reservation", address, found->second, errno);
  }
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

// Where the process has too many mappings, those in reserve make room.
int HostDriver::unmap_range(const Range& range) noexcept {
  if (map_zeros(pointer(range.address), range.length, MAP_FIXED) != MAP_FAILED) return 0;
  const int code = errno;
  if (code != ENOMEM || !spare_mappings_.give_up()) return code;
  return map_zeros(pointer(range.address), range.length, MAP_FIXED) != MAP_FAILED ? 0 : errno;
}

void HostDriver::map(const std::vector<MapEntry>& batch) {
  if (!batch.empty() && !spare_mappings_.keep()) {
    fail("map", batch.front().address, batch.front().length, ENOMEM);
  }
  all_or_nothing(
      batch,
      [this](const MapEntry& entry) {
        const int code = map_one(entry);
        if (code != 0) fail("map", entry.address, entry.length, code);
      },
      [this](const MapEntry& entry) { unmap_range({entry.address, entry.length}); });
}

void HostDriver::unmap(const std::vector<MapEntry>& batch) {
  unmap_all_or_nothing(
      batch,
      [this](const Range& range) {
        const int code = unmap_range(range);
        if (code != 0) fail("unmap", range.address, range.length, code);
      },
      [this](const MapEntry& entry) { map_one(entry); });
}

FencePtr HostDriver::zero(const std::vector<Range>& batch, const FencePtr& after) {
  if (after) after->wait();
  for (const Range& range : batch) std::memset(pointer(range.address), 0, range.length);
  return nullptr;
}

}  // namespace pyvattn
