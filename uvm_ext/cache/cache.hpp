// The cache: slots of arenas, made resident step by step.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "adaptors/limit.hpp"
#include "adaptors/statistics.hpp"
#include "blocks/page_pool.hpp"
#include "cache/forecast.hpp"
#include "cache/growth.hpp"
#include "cache/mapper.hpp"
#include "cache/slot_table.hpp"
#include "rows/arena.hpp"
#include "rows/geometry.hpp"

namespace pyvattn {

struct CacheOptions {
  std::uint64_t memory_limit = 0;
  // Zero: chosen from the limit.
  std::size_t slab_bytes = 0;
  // Map the next decode step's pages, and those of the next admission, in the
  // background; clean released slots there as well.
  bool eager = true;
  // Where the page pool has room, growing slots get pages for so many more tokens than
  // they need now, as far as requests tend to grow. No slot gives up pages for it, and
  // slots that need pages may take them back. Zero: none.
  std::uint32_t read_ahead = 0;
};

// A slot as it was acquired: the generation tells a slot from its later uses.
struct SlotRef {
  // Any request that is live in the row: for callers who keep track of rows themselves.
  static constexpr std::uint32_t kCurrent = 0;

  std::uint32_t index = 0;
  std::uint32_t generation = kCurrent;
};

struct SlotLength {
  SlotRef slot;
  std::int64_t length = 0;
};

struct LiveSlot {
  SlotRef slot;
  std::uint32_t length = 0;
  // The longest length so far.
  std::uint32_t written = 0;
};

struct CacheStats {
  std::uint64_t pages_allocated = 0;
  std::uint64_t pages_free = 0;
  std::uint64_t pages_mapped = 0;
  std::uint64_t pages_quarantined = 0;
  std::uint64_t pages_live = 0;
  std::uint64_t pages_retained = 0;
  std::uint64_t pages_ahead = 0;
  std::uint64_t page_size = 0;
  std::uint64_t slabs = 0;
  std::uint64_t slots_live = 0;
  std::uint64_t memory_limit = 0;
  std::uint64_t bytes_used = 0;
  std::uint64_t bytes_reserved = 0;
  std::uint64_t map_calls = 0;
  std::uint64_t map_batches = 0;
  std::uint64_t map_bytes = 0;
  std::uint64_t unmap_calls = 0;
  std::uint64_t driver_failures = 0;
  std::uint64_t prefetch_failures = 0;
  std::uint64_t reclaimed_pages = 0;
  std::uint64_t zeroed_bytes = 0;
  double map_seconds_blocking = 0;
  double map_seconds_hidden = 0;
  double zero_seconds = 0;
  std::uint64_t bookkeeping_bytes = 0;
};

class Cache {
 public:
  Cache(const DriverPtr& driver, const Geometry& geometry, const CacheOptions& options);
  ~Cache();
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  // A free slot: the one whose pages fit `tokens` best, of those whose fence has passed
  // where one will do. Nothing is mapped yet. Throws LengthError, OutOfSlots.
  SlotRef acquire(std::int64_t tokens);
  // Ends a request. Its pages stay for the next one until memory is short; they are
  // zeroed once `after` (null: nothing) has passed. Throws SlotError.
  void release(const SlotRef& slot, FencePtr after);
  // On return the first `length` tokens of every slot named are backed. Whole or not
  // at all. Throws SlotError, LengthError, OutOfMemory, DriverError, BusyError.
  void step(const SlotLength* requests, std::size_t count);
  // Asks for the same in the background and returns at once; what cannot be mapped is
  // left to step(). Throws SlotError, LengthError.
  void prefetch(const SlotLength* requests, std::size_t count);
  // Whether a request of `tokens` would find a slot and pages now.
  bool can_admit(std::int64_t tokens);
  // Waits until the background has done what it was asked for.
  void drain();

  // Moves the memory limit; returns the bytes allocated afterwards. Throws LimitError
  // where live slots hold more.
  std::uint64_t resize(std::uint64_t memory_limit);
  // Unmaps and frees everything. Tensors keep their addresses reserved. Idempotent.
  void close();
  // For the end of the process: ends the thread and refuses further calls. Memory stays
  // where it is, because threads may still use tensors.
  void retire();

  CacheStats stats();
  std::int64_t length(const SlotRef& slot);
  std::vector<LiveSlot> live_slots();
  bool closed() const { return closed_; }
  // True in a child process that got the cache through fork().
  bool inherited() const;

  const Geometry& geometry() const { return geometry_; }
  ArenaPtr arena(std::uint32_t index);

 private:
  using Lock = std::unique_lock<std::mutex>;
  enum class From { foreground, background };
  class Claims;

  Growth new_growth() { return {*driver_, *limit_, *pool_, slots_, arenas_, geometry_}; }
  void check_usable() const;
  Lock lock_usable();
  std::uint32_t check_live(const SlotRef& slot) const;
  std::uint32_t check_length(std::int64_t length) const;
  [[noreturn]] void refuse(const SlotLength& request) const;
  void next_call();
  std::vector<GrowthTarget> check_step(const SlotLength* requests, std::size_t count);

  std::uint32_t ready_slot(Lock& lock, std::uint32_t row_pages);
  std::optional<std::uint32_t> choose_slot(std::uint32_t row_pages) const;

  bool store_lengths(const SlotLength* requests, std::size_t count);
  void ask_for_next(const SlotLength* requests, std::size_t count);
  std::vector<GrowthTarget> growing_slots(Lock& lock, const SlotLength* requests,
                                          std::size_t count);
  void make_resident(Lock& lock, const SlotLength* requests, std::size_t count);
  void claim(const SlotLength* requests, std::size_t count);
  void grow_for(Lock& lock, const SlotLength* requests, std::size_t count);
  bool try_grow(Lock& lock, const std::vector<GrowthTarget>& targets, std::uint64_t from_pool,
                From from);
  void settle(Lock& lock);
  void wait_not_in_flight(Lock& lock, std::uint32_t slot);
  std::uint32_t row_pages_kept(std::uint32_t slot) const;
  std::uint32_t row_pages_expected(std::uint32_t slot, std::uint32_t length) const;
  std::vector<GrowthTarget> with_read_ahead(const std::vector<GrowthTarget>& targets) const;
  std::vector<SpareTail> spare_tails(std::uint64_t pages) const;
  std::vector<SpareTail> free_tails() const;
  enum class Keep { needed, expected };
  std::vector<SpareTail> live_tails(Keep keep) const;
  std::uint64_t pages_of(const std::vector<SpareTail>& tails) const;
  std::uint64_t spare_pages() const;
  [[noreturn]] void throw_out_of_memory(std::uint64_t pages, const std::string& cause) const;

  std::vector<Range> dirty_ranges(std::uint32_t slot) const;
  void clean(Lock& lock, std::uint32_t slot);

  bool do_background_work();
  bool prefetch_some(Lock& lock);
  bool prepare_admission(Lock& lock);
  void ask(std::uint32_t slot, std::uint32_t tokens);
  void wake_mapper();
  void unmap_tail(const SpareTail& tail);

  const std::shared_ptr<LimitAdaptor> limit_;
  const std::shared_ptr<StatisticsAdaptor> statistics_;
  const DriverPtr driver_;
  const Geometry geometry_;
  const PageMath math_;
  const bool eager_;
  const std::uint32_t read_ahead_;
  const int fork_generation_;

  std::mutex mutex_;
  std::condition_variable settled_;
  std::mutex closing_;
  std::atomic<bool> stepping_{false};
  std::atomic<bool> closed_{false};

  std::vector<ArenaPtr> arenas_;
  std::unique_ptr<PagePool> pool_;
  SlotTable slots_;
  // The length asked for in the background, by slot; zero: none.
  std::vector<std::uint32_t> wanted_;
  std::vector<std::uint32_t> wanted_slots_;
  bool admission_wanted_ = false;
  Forecast forecast_;

  std::uint32_t call_ = 0;
  std::uint64_t releases_ = 0;
  std::uint64_t tokens_used_ = 0;
  std::uint64_t pages_in_flight_ = 0;
  std::uint64_t reclaimed_pages_ = 0;
  std::uint64_t prefetch_failures_ = 0;
  double blocking_seconds_ = 0;
  double hidden_seconds_ = 0;

  // Last, so that the thread ends before what it works on.
  std::unique_ptr<Mapper> mapper_;
};

}  // namespace pyvattn
