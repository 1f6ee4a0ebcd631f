// SPDX-License-Identifier: Apache-2.0
// A cache on a driver that is watched: a ledger of every page under every address, calls
// that fail on demand, and fences that a test passes by hand.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "adaptors/checked.hpp"
#include "adaptors/faults.hpp"
#include "adaptors/memory_limit.hpp"
#include "adaptors/statistics.hpp"
#include "cache/cache.hpp"
#include "tests/harness.hpp"

namespace pyvattn::test {

// `host`, and every emulated driver that the registry knows.
std::vector<std::string> testable_drivers();

// Those of them with small pages: tests that open very many caches would spend their time
// on writing zeros over large ones.
std::vector<std::string> fine_drivers();
bool has_fine_pages(const std::string& driver);

// Passes when told to.
class ManualFence final : public Fence {
 public:
  bool passed() override;
  void wait() override;
  void pass();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool passed_ = false;
};

// Passes once a question was answered that it asks on a thread of its own while somebody waits.
// Where they keep the lock that the answer wants, it never does.
class AskingFence final : public Fence {
 public:
  explicit AskingFence(std::function<void()> ask) : ask_(std::move(ask)) {}
  bool passed() override { return answered_; }
  void wait() override;

 private:
  const std::function<void()> ask_;
  std::atomic<bool> answered_{false};
};

// Knows the slab and offset under each page; sees to it that the driver is called by one
// thread at a time and that nothing is unmapped before its fence has passed.
class Watch final : public Adaptor {
 public:
  using Mappings = std::map<Address, std::pair<SlabId, std::size_t>>;
  using Adaptor::Adaptor;

  Address reserve(std::size_t bytes, std::size_t alignment) override;
  void release_reservation(Address address) override;
  SlabId allocate_slab(std::size_t bytes) override;
  void free_slab(SlabId slab) override;
  void map(const std::vector<MapEntry>& batch) override;
  void unmap(const std::vector<MapEntry>& batch) override;
  FencePtr zero(const std::vector<Range>& batch, const FencePtr& after) override;

  // No page of the range may be unmapped before the fence has passed.
  void protect(const Range& range, FencePtr fence);
  // From now on map() or unmap() waits for the fence, on the way in.
  void hold(Operation operation, std::shared_ptr<ManualFence> until);
  // The next map(), unmap() or zero() finds the process out of memory.
  void exhaust(Operation operation);
  // Returns once a thread waits there.
  void wait_for_held();

  Mappings mappings() const;
  // What went wrong, empty where nothing did. Failures cannot be thrown here: the cache
  // would take them for the driver's.
  std::string violation() const;

 private:
  class OneAtATime;
  void check_protected(const std::vector<MapEntry>& batch);
  void violate(const std::string& what);

  void wait_while_held(Operation operation);
  void fail_if_exhausted(Operation operation);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Operation held_operation_ = Operation::unmap;
  std::shared_ptr<ManualFence> hold_;
  bool holding_ = false;
  std::optional<Operation> exhausted_;
  std::atomic<int> inside_{0};
  Mappings mappings_;
  std::vector<std::pair<Range, FencePtr>> protected_;
  std::string violation_;
};

// Everything that a caller, or the device, could tell two states by.
struct Snapshot {
  Watch::Mappings mappings;
  std::vector<std::uint64_t> counts;
  std::vector<std::int64_t> lengths;

  bool operator==(const Snapshot& other) const {
    return mappings == other.mappings && counts == other.counts && lengths == other.lengths;
  }
};

struct CacheShape {
  std::string driver = "host";
  std::uint32_t arenas = 3;
  std::uint32_t slots = 6;
  // The longest request, in pages of each arena.
  std::uint32_t row_pages = 8;
  std::uint32_t tokens_per_page = 4;
  std::uint32_t guard_tokens = 6;
  std::uint64_t limit_pages = 96;
  std::uint64_t slab_pages = 8;
  bool eager = false;
  std::uint32_t read_ahead = 0;
  // Tokens; and pages of each arena in a ring. Zero: none.
  std::uint32_t window = 0;
  std::uint32_t ring_pages = 0;
  // Null: `limit_pages` pages.
  BudgetPtr budget;
};

class WatchedCache {
 public:
  explicit WatchedCache(const CacheShape& shape);

  Cache& operator*() { return *cache; }
  Cache* operator->() { return cache.get(); }

  Snapshot snapshot(const std::vector<SlotRef>& live);
  // Once the background is idle: every page is in one place, what counts as mapped is
  // mapped, nobody broke a rule.
  void check_books();
  // As check_books(), while other threads work.
  void check_rules() const;

  // Whether every page that holds one of the first `tokens` tokens is mapped.
  bool is_backed(const SlotRef& slot, std::uint64_t tokens) const;
  // First byte of a token in one arena.
  unsigned char* token(std::uint32_t arena, const SlotRef& slot, std::uint64_t index) const;
  Range row(std::uint32_t arena, const SlotRef& slot) const;

  // Closes the cache and makes sure that all of it was given back.
  void close();

  const CacheShape shape;
  const std::uint64_t page_size;
  const std::shared_ptr<FaultAdaptor> second_fault;
  const std::shared_ptr<FaultAdaptor> faults;
  const std::shared_ptr<CheckedAdaptor> checked;
  const std::shared_ptr<Watch> watch;
  const BudgetPtr budget;
  std::unique_ptr<Cache> cache;
};

}  // namespace pyvattn::test
