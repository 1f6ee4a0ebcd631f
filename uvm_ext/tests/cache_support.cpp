// SPDX-License-Identifier: Apache-2.0
#include "tests/cache_support.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <set>
#include <thread>

#include "drivers/registry.hpp"

namespace pyvattn::test {
namespace {

bool overlap(const Range& range, const MapEntry& entry) {
  return entry.address < range.address + range.length &&
         range.address < entry.address + entry.length;
}

std::uint64_t smallest_page(const std::string& driver) {
  return driver_capabilities(driver, 0).page_sizes.front();
}

Geometry geometry_of(const CacheShape& shape, std::uint64_t page_size) {
  Geometry geometry;
  geometry.arenas = shape.arenas;
  geometry.slots = shape.slots;
  geometry.max_tokens = shape.row_pages * shape.tokens_per_page;
  geometry.guard_tokens = shape.guard_tokens;
  geometry.token_bytes = page_size / shape.tokens_per_page;
  geometry.page_size = page_size;
  geometry.ring_tokens = shape.ring_pages * shape.tokens_per_page;
  return geometry;
}

CacheOptions options_of(const CacheShape& shape, std::uint64_t page_size) {
  CacheOptions options;
  options.slab_bytes = shape.slab_pages * page_size;
  options.eager = shape.eager;
  options.read_ahead = shape.read_ahead;
  options.window = shape.window;
  return options;
}

}  // namespace

std::vector<std::string> testable_drivers() {
  std::vector<std::string> names = {"host"};
  for (const std::string& name : driver_names()) {
    if (!emulated_driver(name).empty()) names.push_back(name);
  }
  return names;
}

bool has_fine_pages(const std::string& driver) { return smallest_page(driver) <= 64 << 10; }

std::vector<std::string> fine_drivers() {
  std::vector<std::string> names = testable_drivers();
  names.erase(std::remove_if(names.begin(), names.end(),
                             [](const std::string& name) { return !has_fine_pages(name); }),
              names.end());
  return names;
}

// --- fences ---

bool ManualFence::passed() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return passed_;
}

void ManualFence::wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return passed_; });
}

void AskingFence::wait() {
  if (answered_) return;
  std::thread(ask_).join();
  answered_ = true;
}

void ManualFence::pass() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    passed_ = true;
  }
  changed_.notify_all();
}

// --- the watch ---

class Watch::OneAtATime {
 public:
  explicit OneAtATime(Watch& watch) : watch_(watch) {
    if (++watch_.inside_ > 1) watch_.violate("two threads were inside the driver");
  }
  OneAtATime(const OneAtATime&) = delete;
  OneAtATime& operator=(const OneAtATime&) = delete;
  ~OneAtATime() { --watch_.inside_; }

 private:
  Watch& watch_;
};

void Watch::violate(const std::string& what) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (violation_.empty()) violation_ = what;
}

std::string Watch::violation() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return violation_;
}

Watch::Mappings Watch::mappings() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return mappings_;
}

void Watch::protect(const Range& range, FencePtr fence) {
  const std::lock_guard<std::mutex> lock(mutex_);
  protected_.erase(std::remove_if(protected_.begin(), protected_.end(),
                                  [](const auto& each) { return each.second->passed(); }),
                   protected_.end());
  protected_.emplace_back(range, std::move(fence));
}

void Watch::hold(Operation operation, std::shared_ptr<ManualFence> until) {
  const std::lock_guard<std::mutex> lock(mutex_);
  held_operation_ = operation;
  hold_ = std::move(until);
  holding_ = false;
}

void Watch::exhaust(Operation operation) {
  const std::lock_guard<std::mutex> lock(mutex_);
  exhausted_ = operation;
}

void Watch::fail_if_exhausted(Operation operation) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (exhausted_ != operation) return;
  exhausted_.reset();
  throw std::bad_alloc();
}

void Watch::wait_for_held() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return holding_; });
}

void Watch::wait_while_held(Operation operation) {
  std::shared_ptr<ManualFence> hold;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (operation == held_operation_) hold = hold_;
    holding_ = hold != nullptr;
  }
  changed_.notify_all();
  if (hold) hold->wait();
}

void Watch::check_protected(const std::vector<MapEntry>& batch) {
  bool broken = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [range, fence] : protected_) {
      for (const MapEntry& entry : batch) {
        broken = broken || (overlap(range, entry) && !fence->passed());
      }
    }
  }
  if (broken) violate("a page was unmapped before its fence had passed");
}

Address Watch::reserve(std::size_t bytes, std::size_t alignment) {
  const OneAtATime one(*this);
  return inner().reserve(bytes, alignment);
}

void Watch::release_reservation(Address address) {
  const OneAtATime one(*this);
  inner().release_reservation(address);
}

SlabId Watch::allocate_slab(std::size_t bytes) {
  const OneAtATime one(*this);
  return inner().allocate_slab(bytes);
}

void Watch::free_slab(SlabId slab) {
  const OneAtATime one(*this);
  inner().free_slab(slab);
}

void Watch::map(const std::vector<MapEntry>& batch) {
  const OneAtATime one(*this);
  wait_while_held(Operation::map);
  fail_if_exhausted(Operation::map);
  inner().map(batch);
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const MapEntry& entry : batch) {
    for (std::size_t at = 0; at < entry.length; at += page_size()) {
      mappings_[entry.address + at] = {entry.slab, entry.offset + at};
    }
  }
}

void Watch::unmap(const std::vector<MapEntry>& batch) {
  const OneAtATime one(*this);
  wait_while_held(Operation::unmap);
  fail_if_exhausted(Operation::unmap);
  check_protected(batch);
  inner().unmap(batch);
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const MapEntry& entry : batch) {
    for (std::size_t at = 0; at < entry.length; at += page_size()) {
      mappings_.erase(entry.address + at);
    }
  }
}

FencePtr Watch::zero(const std::vector<Range>& batch, const FencePtr& after) {
  fail_if_exhausted(Operation::zero);
  return inner().zero(batch, after);
}

// --- the cache ---

WatchedCache::WatchedCache(const CacheShape& wanted)
    : shape(wanted),
      page_size(smallest_page(wanted.driver)),
      second_fault(std::make_shared<FaultAdaptor>(make_driver({wanted.driver, page_size, 0}))),
      faults(std::make_shared<FaultAdaptor>(second_fault)),
      checked(std::make_shared<CheckedAdaptor>(faults)),
      watch(std::make_shared<Watch>(checked)),
      budget(wanted.budget != nullptr
                 ? wanted.budget
                 : std::make_shared<MemoryLimit>(shape.limit_pages * page_size)),
      cache(std::make_unique<Cache>(watch, geometry_of(shape, page_size), budget,
                                    options_of(shape, page_size))) {}

Snapshot WatchedCache::snapshot(const std::vector<SlotRef>& live) {
  const CacheStats s = cache->stats();
  Snapshot snapshot;
  snapshot.mappings = watch->mappings();
  snapshot.counts = {s.pages_allocated, s.pages_free,     s.pages_mapped,  s.pages_quarantined,
                     s.pages_live,      s.pages_retained, s.slabs,         s.slots_live,
                     s.memory_limit,    s.bytes_used,     s.bytes_reserved};
  for (const SlotRef& slot : live) snapshot.lengths.push_back(cache->length(slot));
  return snapshot;
}

void WatchedCache::check_rules() const { CHECK_EQUAL(watch->violation(), ""); }

void WatchedCache::check_books() {
  // What the background is in the middle of is in the driver's books and not yet in ours.
  cache->drain();
  check_rules();
  const CacheStats s = cache->stats();
  CHECK_EQUAL(s.pages_free + s.pages_mapped + s.pages_quarantined, s.pages_allocated);
  CHECK_EQUAL(s.pages_live + s.pages_retained, s.pages_mapped);
  const Watch::Mappings mappings = watch->mappings();
  // Forks map a page at several addresses.
  std::set<std::pair<SlabId, std::size_t>> pages;
  for (const auto& [address, page] : mappings) pages.insert(page);
  CHECK_EQUAL(pages.size(), s.pages_mapped + s.pages_quarantined);
  CHECK_EQUAL(checked->mapped_bytes(), mappings.size() * page_size);
  CHECK_EQUAL(checked->live_slabs(), s.slabs);
}

bool WatchedCache::is_backed(const SlotRef& slot, std::uint64_t tokens) const {
  const Watch::Mappings mappings = watch->mappings();
  const std::uint64_t bytes = tokens * cache->geometry().token_bytes;
  for (std::uint32_t arena = 0; arena < shape.arenas; ++arena) {
    for (std::uint64_t at = 0; at < bytes; at += page_size) {
      if (mappings.count(row(arena, slot).address + at) == 0) return false;
    }
  }
  return true;
}

unsigned char* WatchedCache::token(std::uint32_t arena, const SlotRef& slot,
                                   std::uint64_t index) const {
  const Address address = row(arena, slot).address + index * cache->geometry().token_bytes;
  return reinterpret_cast<unsigned char*>(address);
}

Range WatchedCache::row(std::uint32_t arena, const SlotRef& slot) const {
  const std::uint64_t bytes = cache->geometry().row_bytes();
  return {cache->arena(arena)->address() + slot.index * bytes, bytes};
}

void WatchedCache::close() {
  faults->disarm();
  second_fault->disarm();
  cache->close();
  check_rules();
  CHECK(watch->mappings().empty());
  CHECK_EQUAL(checked->mapped_bytes(), 0u);
  CHECK_EQUAL(checked->live_slabs(), 0u);
  CHECK_EQUAL(checked->live_reservations(), 0u);
}

}  // namespace pyvattn::test
