// The cache: slots of rows, made resident step by step.
//
// Policy alone: who gets which blocks, when, and from whom. What maps and unmaps is
// RowBatch.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "adaptors/limit.hpp"
#include "adaptors/statistics.hpp"
#include "base/mutex.hpp"
#include "blocks/block_pool.hpp"
#include "cache/forecast.hpp"
#include "cache/mapper.hpp"
#include "cache/slot_table.hpp"
#include "rows/row_batch.hpp"
#include "rows/row_table.hpp"

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
  // For finding bugs, where the CPU reaches the memory: after every step, what is mapped past
  // a slot's length is NaN in every dtype, so that who reads there, or reads what was never
  // written, sees it.
  bool strict = false;
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

// A live slot, and the blocks under its row.
struct LiveSlot {
  SlotRef slot;
  std::uint32_t length = 0;
  // The longest length so far.
  std::uint32_t written = 0;
  std::vector<BlockId> blocks;
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
  // acquire() and step() in one, whole or not at all: a slot whose first `tokens` tokens are
  // backed. Throws what they do.
  SlotRef admit(std::int64_t tokens);
  // Ends a request. Its pages stay for the next one until memory is short; they are
  // zeroed once `after` (null: nothing) has passed. Throws SlotError.
  void release(const SlotRef& slot, FencePtr after);
  // On return the first `length` tokens of every slot named are backed. Whole or not
  // at all. Throws SlotError, LengthError, OutOfMemory, DriverError, BusyError.
  void step(const SlotLength* requests, std::size_t count);
  // The same where nothing has to be waited for but driver calls; false, with nothing
  // changed, where blocks would have to be zeroed first, or be let go of by the device or
  // the background. Throws what step() does.
  bool try_step(const SlotLength* requests, std::size_t count);
  // Shortens a slot to `length` tokens, and gives the blocks past it back once `after` has
  // passed and they are zeroed. Throws SlotError, LengthError where it is shorter; after a
  // DriverError it is shortened, and still has its blocks.
  void trim(const SlotRef& slot, std::int64_t length, FencePtr after);
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
  enum class From { foreground, background };
  enum class Keep { needed, expected };
  class Claims;

  // A slot that is to have so many blocks: more than it has.
  struct Target {
    std::uint32_t slot = 0;
    std::uint32_t blocks = 0;
  };
  // Blocks of a slot that are not needed now: all but the first `kept`.
  struct Tail {
    std::uint32_t slot = 0;
    std::uint32_t kept = 0;
  };

  // cache_checks.cpp
  void check_usable() const;
  std::uint32_t check_live(const SlotRef& slot) const REQUIRES(mutex_);
  std::uint32_t check_length(std::int64_t length) const;
  [[noreturn]] void refuse(const SlotLength& request) const REQUIRES(mutex_);
  void next_call() REQUIRES(mutex_);
  std::vector<Target> check_step(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);

  // cache_requests.cpp
  SlotRef take_slot(std::uint32_t tokens) REQUIRES(mutex_);
  void end_request(std::uint32_t slot, FencePtr after) REQUIRES(mutex_);
  std::uint32_t ready_slot(std::uint32_t blocks) REQUIRES(mutex_);
  std::optional<std::uint32_t> choose_slot(std::uint32_t blocks) REQUIRES(mutex_);
  void lock_for_step() ACQUIRE(mutex_);
  void finish_step(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);
  bool store_lengths(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);
  void ask_for_next(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);

  // cache_growth.cpp
  void make_resident(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);
  void claim(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);
  void grow_for(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);
  bool grow_now(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);
  std::vector<Target> growing_slots(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);
  std::uint64_t blocks_needed(const std::vector<Target>& targets) const REQUIRES(mutex_);
  bool try_grow(const std::vector<Target>& targets, std::uint64_t from_pool, From from)
      REQUIRES(mutex_);
  void run(RowBatch& batch, From from) REQUIRES(mutex_);
  void follow(const RowBatch& batch) REQUIRES(mutex_);
  void unmap_tail(const Tail& tail) REQUIRES(mutex_);
  void wait_not_in_flight(std::uint32_t slot) REQUIRES(mutex_);
  [[noreturn]] void throw_out_of_memory(std::uint64_t blocks, const std::string& cause)
      REQUIRES(mutex_);

  // cache_slots.cpp
  void cut_tail(std::uint32_t slot, std::uint32_t kept, const FencePtr& after) REQUIRES(mutex_);
  void poison(std::uint32_t slot) REQUIRES(mutex_);

  // cache_spare.cpp
  std::uint32_t blocks_kept(std::uint32_t slot) const REQUIRES(mutex_);
  std::uint32_t blocks_expected(std::uint32_t slot, std::uint32_t length) const REQUIRES(mutex_);
  std::vector<Target> with_read_ahead(const std::vector<Target>& targets) const REQUIRES(mutex_);
  std::uint64_t blocks_of(const std::vector<Tail>& tails) const REQUIRES(mutex_);
  std::vector<Tail> spare_tails(std::uint64_t blocks) REQUIRES(mutex_);
  std::vector<Tail> live_tails(Keep keep, std::uint32_t most) REQUIRES(mutex_);
  std::vector<Tail> free_tails(std::uint64_t blocks) REQUIRES(mutex_);
  std::uint64_t spare_blocks() const REQUIRES(mutex_);
  bool can_have(std::uint64_t blocks) const REQUIRES(mutex_);

  // cache_background.cpp
  std::vector<Positions> dirty_positions(std::uint32_t slot) const REQUIRES(mutex_);
  void clean(std::uint32_t slot) REQUIRES(mutex_);
  void settle() REQUIRES(mutex_);
  bool do_background_work();
  bool prefetch_some() REQUIRES(mutex_);
  bool prepare_admission() REQUIRES(mutex_);
  void ask(std::uint32_t slot, std::uint32_t tokens) REQUIRES(mutex_);
  void wake_mapper();
  void nudge_mapper();

  // --- set when the cache is opened ---
  const std::shared_ptr<LimitAdaptor> budget_;
  const std::shared_ptr<StatisticsAdaptor> statistics_;
  const DriverPtr driver_;
  const Geometry geometry_;
  const PageMath math_;
  const bool eager_;
  const std::uint32_t read_ahead_;
  const bool strict_;
  const int fork_generation_;

  // --- without a lock ---
  std::atomic<bool> stepping_{false};
  std::atomic<bool> closed_{false};

  // One close() at a time; taken before mutex_.
  Mutex closing_;

  // Rows in flight are the batch's that named them, also without this.
  mutable Mutex mutex_;
  // A row or slot has settled: it is in flight, or being cleaned, no more.
  Condition settled_;
  RowTable rows_ GUARDED_BY(mutex_);
  std::unique_ptr<BlockPool> pool_ PT_GUARDED_BY(mutex_);
  SlotTable slots_ GUARDED_BY(mutex_);
  // The length asked for in the background, by slot; zero: none.
  std::vector<std::uint32_t> wanted_ GUARDED_BY(mutex_);
  std::vector<std::uint32_t> wanted_slots_ GUARDED_BY(mutex_);
  bool admission_wanted_ GUARDED_BY(mutex_) = false;
  Forecast forecast_ GUARDED_BY(mutex_);

  std::uint32_t call_ GUARDED_BY(mutex_) = 0;
  std::uint64_t tokens_used_ GUARDED_BY(mutex_) = 0;
  std::uint64_t blocks_in_flight_ GUARDED_BY(mutex_) = 0;
  std::uint64_t reclaimed_blocks_ GUARDED_BY(mutex_) = 0;
  std::uint64_t prefetch_failures_ GUARDED_BY(mutex_) = 0;
  double blocking_seconds_ GUARDED_BY(mutex_) = 0;
  double hidden_seconds_ GUARDED_BY(mutex_) = 0;

  // Last, so that the thread ends before what it works on.
  std::unique_ptr<Mapper> mapper_;
};

}  // namespace pyvattn
