// SPDX-License-Identifier: Apache-2.0
#include "adaptors/checked.hpp"

#include "base/errors.hpp"

namespace pyvattn {
namespace {

[[noreturn]] void refuse(const char* operation, Address address, std::size_t length,
                         const char* status) {
  throw DriverError(operation, address, length, status);
}

}  // namespace

void CheckedAdaptor::check_aligned(const char* operation, Address address,
                                   std::size_t length) const {
  if (length == 0) refuse(operation, address, length, "empty range");
  if (address % page_size() != 0 || length % page_size() != 0) {
    refuse(operation, address, length, "not aligned to the page size");
  }
}

void CheckedAdaptor::check_reserved(const MapEntry& entry) const {
  auto after = reservations_.upper_bound(entry.address);
  if (after == reservations_.begin()) refuse("map", entry.address, entry.length, "not reserved");
  const auto& [start, bytes] = *--after;
  if (entry.address - start > bytes || entry.length > bytes - (entry.address - start)) {
    refuse("map", entry.address, entry.length, "not reserved");
  }
}

void CheckedAdaptor::check_map_entry(const MapEntry& entry) const {
  check_aligned("map", entry.address, entry.length);
  check_reserved(entry);
  const auto slab = slabs_.find(entry.slab);
  if (slab == slabs_.end()) refuse("map", entry.address, entry.length, "unknown slab");
  if (entry.offset % page_size() != 0 || entry.offset > slab->second ||
      entry.length > slab->second - entry.offset) {
    refuse("map", entry.address, entry.length, "outside the slab");
  }
}

void CheckedAdaptor::insert(Ledger& ledger, const MapEntry& entry) {
  const auto after = ledger.lower_bound(entry.address);
  const bool hits_next = after != ledger.end() && after->first < entry.address + entry.length;
  bool hits_previous = false;
  if (after != ledger.begin()) {
    const auto before = std::prev(after);
    hits_previous = before->first + before->second.length > entry.address;
  }
  if (hits_next || hits_previous) refuse("map", entry.address, entry.length, "already mapped");
  ledger.emplace(entry.address, Mapping{entry.length, entry.slab, entry.offset});
}

// Cuts `entry` out of the mappings that cover it, which must say the same of it.
void CheckedAdaptor::remove(Ledger& ledger, const MapEntry& entry) {
  Address at = entry.address;
  const Address end = entry.address + entry.length;
  while (at < end) {
    auto found = ledger.upper_bound(at);
    if (found == ledger.begin()) refuse("unmap", at, end - at, "not mapped");
    --found;
    const auto [start, mapping] = *found;
    const Address stop = start + mapping.length;
    if (stop <= at) refuse("unmap", at, end - at, "not mapped");
    if (mapping.slab != entry.slab ||
        mapping.offset + (at - start) != entry.offset + (at - entry.address)) {
      refuse("unmap", at, end - at, "mapped to something else");
    }
    ledger.erase(found);
    if (start < at) ledger.emplace(start, Mapping{at - start, mapping.slab, mapping.offset});
    if (stop > end) {
      ledger.emplace(end, Mapping{stop - end, mapping.slab, mapping.offset + (end - start)});
    }
    at = stop < end ? stop : end;
  }
}

bool CheckedAdaptor::is_mapped(const Range& range) const {
  Address at = range.address;
  const Address end = range.address + range.length;
  while (at < end) {
    auto found = ledger_.upper_bound(at);
    if (found == ledger_.begin()) return false;
    --found;
    const Address stop = found->first + found->second.length;
    if (stop <= at) return false;
    at = stop;
  }
  return true;
}

Address CheckedAdaptor::reserve(std::size_t bytes, std::size_t alignment) {
  check_aligned("reserve", 0, bytes);
  const Address address = inner().reserve(bytes, alignment);
  if (address % alignment != 0) refuse("reserve", address, bytes, "driver broke the alignment");
  const std::lock_guard<std::mutex> lock(mutex_);
  reservations_.emplace(address, bytes);
  return address;
}

void CheckedAdaptor::release_reservation(Address address) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = reservations_.find(address);
  if (found == reservations_.end()) refuse("release_reservation", address, 0, "not reserved");
  const auto mapped = ledger_.lower_bound(address);
  if (mapped != ledger_.end() && mapped->first < address + found->second) {
    refuse("release_reservation", mapped->first, mapped->second.length, "still mapped");
  }
  inner().release_reservation(address);
  reservations_.erase(found);
}

SlabId CheckedAdaptor::allocate_slab(std::size_t bytes) {
  check_aligned("allocate_slab", 0, bytes);
  const SlabId slab = inner().allocate_slab(bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  slabs_.emplace(slab, bytes);
  return slab;
}

void CheckedAdaptor::free_slab(SlabId slab) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = slabs_.find(slab);
  if (found == slabs_.end()) refuse("free_slab", 0, 0, "unknown slab");
  for (const auto& [address, mapping] : ledger_) {
    if (mapping.slab == slab) refuse("free_slab", address, mapping.length, "still mapped");
  }
  inner().free_slab(slab);
  slabs_.erase(found);
}

void CheckedAdaptor::map(const std::vector<MapEntry>& batch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Ledger next = ledger_;
  for (const MapEntry& entry : batch) {
    check_map_entry(entry);
    insert(next, entry);
  }
  inner().map(batch);
  ledger_ = std::move(next);
}

void CheckedAdaptor::unmap(const std::vector<MapEntry>& batch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Ledger next = ledger_;
  for (const MapEntry& entry : batch) {
    check_aligned("unmap", entry.address, entry.length);
    remove(next, entry);
  }
  inner().unmap(batch);
  ledger_ = std::move(next);
}

FencePtr CheckedAdaptor::zero(const std::vector<Range>& batch, const FencePtr& after) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Range& range : batch) {
      check_aligned("zero", range.address, range.length);
      if (!is_mapped(range)) refuse("zero", range.address, range.length, "not mapped");
    }
  }
  return inner().zero(batch, after);
}

std::uint64_t CheckedAdaptor::mapped_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::uint64_t bytes = 0;
  for (const auto& [address, mapping] : ledger_) bytes += mapping.length;
  return bytes;
}

std::size_t CheckedAdaptor::live_slabs() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return slabs_.size();
}

std::size_t CheckedAdaptor::live_reservations() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return reservations_.size();
}

}  // namespace pyvattn
