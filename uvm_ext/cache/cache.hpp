// SPDX-License-Identifier: Apache-2.0
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
#include <unordered_map>
#include <vector>

#include "adaptors/budget.hpp"
#include "adaptors/statistics.hpp"
#include "base/mapper.hpp"
#include "base/mutex.hpp"
#include "blocks/block_pool.hpp"
#include "cache/cache_stats.hpp"
#include "cache/cache_types.hpp"
#include "cache/forecast.hpp"
#include "cache/slot_table.hpp"
#include "rows/row_batch.hpp"
#include "rows/row_table.hpp"

namespace pyvattn {

class Cache {
 public:
  // Throws ConfigError, and what the driver throws.
  Cache(const DriverPtr& driver, const Geometry& geometry, BudgetPtr budget,
        const CacheOptions& options);
  ~Cache();
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  // A free slot: the one whose pages fit `tokens` best, of those whose fence has passed
  // where one will do. Nothing is mapped yet. Throws LengthError, OutOfSlots.
  // That of `row` where one is given, which must not be live: throws SlotError.
  SlotRef acquire(std::int64_t tokens, std::optional<std::uint32_t> row = std::nullopt);
  // acquire() and step() in one, whole or not at all: a slot whose first `tokens` tokens are
  // backed. Throws what they do.
  SlotRef admit(std::int64_t tokens);
  // Backs the first `tokens` tokens of a live slot, as admit() does for a new one: beside a
  // step() of another thread, and with nothing left behind by windows. A few arenas at a time, and
  // the caller may write these tokens there from `parts.mapped` on, which is called without a
  // lock; where all are backed already, once for all arenas. Throws what step() does, but never
  // BusyError, and what `parts.mapped` does.
  void extend(const SlotRef& slot, std::int64_t tokens, const Parts& parts);
  // A new slot that begins with the first `tokens` tokens of a live one, backed: whole blocks
  // are shared, the rest is for the caller to copy, and what lies before a window is left out. A
  // ring is for the caller to copy.
  // Neither slot can be shortened to less than what they share. Whole or not at all. Throws
  // what admit() does, and SlotError. With a `row`, its slot. Where the caller knows that of a ring
  // no more than `written` tokens were written, that counts rather than what steps have backed.
  Fork fork(const SlotRef& slot, std::int64_t tokens,
            std::optional<std::uint32_t> row = std::nullopt,
            std::optional<std::uint64_t> written = std::nullopt);
  // Ends a request. Its pages stay for the next one until memory is short; they are
  // zeroed once `after` (null: nothing) has passed. Throws SlotError.
  void release(const SlotRef& slot, FencePtr after);
  // On return the first `length` tokens of every slot named are backed. Whole or not
  // at all, but that with a window blocks are left behind first which no length that is left to
  // a slot can need. Throws SlotError, LengthError, OutOfMemory, DriverError, BusyError.
  void step(const SlotLength* requests, std::size_t count, const Passage& passage = {});
  // The same where nothing has to be waited for but driver calls; false, with nothing
  // changed, where blocks would have to be zeroed first, or be let go of by the device or
  // the background. Throws what step() does.
  bool try_step(const SlotLength* requests, std::size_t count, const Passage& passage = {});
  // Shortens a slot to `length` tokens, and gives the blocks past it back once `after` has
  // passed and they are zeroed. Throws SlotError, LengthError where it is shorter; after a
  // DriverError it is shortened, and still has its blocks.
  void trim(const SlotRef& slot, std::int64_t length, FencePtr after);
  // Throws what trim() would refuse, and changes nothing.
  void check_trim(const SlotRef& slot, std::int64_t length);
  // Nobody reads a slot's first `tokens` tokens any more once `after` has passed: whole blocks
  // of them go back then, which this does not wait for. Lengths count on from the row's start,
  // and no length falls below, nor to where the next query lacks some of its window. Throws
  // SlotError, LengthError where it is shorter.
  void trim_front(const SlotRef& slot, std::int64_t tokens, FencePtr after);
  // Asks for the same in the background and returns at once; what cannot be mapped is
  // left to step(). Throws SlotError, LengthError.
  void prefetch(const SlotLength* requests, std::size_t count);
  // Whether a request of `tokens` would find a slot and pages now.
  bool can_admit(std::int64_t tokens);
  // Waits until the background has done what it was asked for.
  void drain();

  // --- for caches that share a budget, and act as one ---

  // Ends a request that came to nothing.
  void cancel(const SlotRef& slot);
  // What the slots of a step are now, and that they are so again: blocks that the step brought
  // stay spare. Throws SlotError.
  std::vector<SlotMark> marks(const SlotLength* requests, std::size_t count);
  void restore(const std::vector<SlotMark>& marks);
  bool has_free_slot();
  // What a request of `tokens` needs that the cache has not got: neither free nor spare.
  std::uint64_t bytes_lacking(std::int64_t tokens);
  std::uint64_t bytes_for(std::int64_t tokens) const;
  // Gives back what is spare until the budget has room for `bytes`, or nothing is. What the
  // background was asked for is forgotten.
  void reclaim(std::uint64_t bytes);
  // What live slots hold and cannot spare.
  std::uint64_t bytes_needed();
  // Gives back what is spare until the budget holds no more than `limit`, or nothing is; returns
  // the bytes that stay allocated.
  std::uint64_t shrink(std::uint64_t limit);

  // Moves the budget's limit; returns the bytes that the cache has allocated afterwards.
  // Throws LimitError where live slots hold more.
  std::uint64_t resize(std::uint64_t memory_limit);
  // Gives back what the budget, whose limit has fallen, no longer has room for, as far as
  // live slots can spare it; returns the bytes that stay allocated. The background does the
  // same when it next has something to do.
  std::uint64_t give_back();
  // Unmaps and frees everything. Tensors keep their addresses reserved. Idempotent.
  void close();
  // For the end of the process: ends the thread and refuses further calls. Memory stays
  // where it is, because threads may still use tensors.
  void retire();

  CacheStats stats();
  std::int64_t length(const SlotRef& slot);
  // Tokens of a live slot that nobody reads any more: see trim_front().
  std::int64_t front(const SlotRef& slot);
  // The least length at which the next query finds its window.
  std::int64_t least_length(const SlotRef& slot);
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

  // Blocks of a live slot, from its front to `end`, that are to go once the fence has passed.
  struct Behind {
    std::uint32_t end = 0;
    FencePtr after;
  };

  // Blocks that are counted more than once, of live slots and of released ones.
  struct Doubles {
    std::uint64_t live = 0;
    std::uint64_t released = 0;
  };

  // cache.cpp
  void give_back_past(std::uint64_t limit) REQUIRES(mutex_);
  void wait_for_readers() REQUIRES(mutex_);
  std::uint64_t blocks_needed_live() REQUIRES(mutex_);

  // cache_sharing.cpp
  std::uint32_t share(const SlotRef& from, std::uint32_t to, std::uint32_t length,
                      std::optional<std::uint64_t> written) REQUIRES(mutex_);
  std::uint32_t cleanable_slot() REQUIRES(mutex_);
  std::vector<Positions> own_dirty_positions(const Positions& among) const REQUIRES(mutex_);
  void raise_lowest(std::uint32_t slot, std::uint32_t tokens) REQUIRES(mutex_);
  void clean_out(std::uint32_t slot) REQUIRES(mutex_);
  void mark_written(std::uint32_t slot, std::uint32_t first, std::uint32_t end) REQUIRES(mutex_);
  void zero_own_blocks(const Positions& positions) REQUIRES(mutex_);
  Doubles doubles() const REQUIRES(mutex_);

  // cache_checks.cpp
  void check_usable() const;
  std::uint32_t check_live(const SlotRef& slot) const REQUIRES(mutex_);
  std::uint32_t check_length(std::int64_t length) const;
  void check_lowest(std::uint32_t slot, std::uint32_t length) const REQUIRES(mutex_);
  [[noreturn]] void refuse(const SlotLength& request) const REQUIRES(mutex_);
  void next_call() REQUIRES(mutex_);
  std::vector<Target> check_step(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);

  // cache_requests.cpp
  SlotRef take_slot(std::uint32_t tokens) REQUIRES(mutex_);
  SlotRef take_row(std::uint32_t row, std::uint32_t tokens) REQUIRES(mutex_);
  SlotRef begin_request(std::uint32_t slot, std::uint32_t tokens) REQUIRES(mutex_);
  void abandon(const SlotRef& slot) REQUIRES(mutex_);
  void clean_soon(std::uint32_t slot) REQUIRES(mutex_);
  void end_request(std::uint32_t slot, FencePtr after) REQUIRES(mutex_);
  std::uint32_t ready_slot(std::uint32_t blocks) REQUIRES(mutex_);
  std::optional<std::uint32_t> choose_slot(std::uint32_t blocks) REQUIRES(mutex_);
  void lock_for_step() ACQUIRE(mutex_);
  void finish_step(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);
  bool store_lengths(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);
  void ask_for_next(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);

  // cache_growth.cpp
  bool make_resident(const SlotLength* requests, std::size_t count, const Parts* parts = nullptr)
      REQUIRES(mutex_);
  void claim(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);
  bool grow_for(const SlotLength* requests, std::size_t count, const Parts* parts) REQUIRES(mutex_);
  bool grow_now(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);
  std::vector<Target> growing_slots(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);
  std::uint64_t blocks_needed(const std::vector<Target>& targets) const REQUIRES(mutex_);
  bool try_grow(const std::vector<Target>& targets, std::uint64_t from_pool, From from,
                const Parts* parts = nullptr) REQUIRES(mutex_);
  void run(RowBatch& batch, From from, std::uint64_t& in_flight, const Parts* parts = nullptr)
      REQUIRES(mutex_);
  void follow(const RowBatch& batch) REQUIRES(mutex_);
  void unmap_tail(const Tail& tail, From from) REQUIRES(mutex_);
  void wait_not_in_flight(std::uint32_t slot) REQUIRES(mutex_);
  [[noreturn]] void throw_out_of_memory(std::uint64_t blocks, const std::string& cause)
      REQUIRES(mutex_);

  // cache_slots.cpp
  void poison(std::uint32_t slot) REQUIRES(mutex_);

  // cache_trim.cpp
  std::uint32_t check_trim_locked(const SlotRef& slot, std::uint32_t length) REQUIRES(mutex_);
  void pass_on(const SlotLength* requests, std::size_t count, const Passage& passage)
      REQUIRES(mutex_);
  void leave_behind(std::uint32_t slot, std::uint32_t front, const FencePtr& after)
      REQUIRES(mutex_);
  void drop_passed(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);
  std::uint32_t gone_below(std::uint32_t slot) const REQUIRES(mutex_);
  std::uint32_t before_window(std::uint32_t length) const;
  void cut_tail(std::uint32_t slot, std::uint32_t kept, const FencePtr& after) REQUIRES(mutex_);
  std::uint32_t whole_blocks(std::uint32_t tokens) const;
  std::uint32_t behind_end(std::uint32_t slot) const REQUIRES(mutex_);
  std::uint32_t passed_end(std::uint32_t slot) const REQUIRES(mutex_);
  void front_is_gone(std::uint32_t slot, std::uint32_t end) REQUIRES(mutex_);
  void drop_front(std::uint32_t slot) REQUIRES(mutex_);
  bool drop_some_front() REQUIRES(mutex_);
  void drop_fronts() REQUIRES(mutex_);
  std::uint64_t blocks_behind() const REQUIRES(mutex_);
  std::vector<std::uint32_t> own_fronts(const std::vector<Target>& targets) const REQUIRES(mutex_);
  void plan_move(RowBatch& batch, std::uint32_t slot, std::uint32_t count) REQUIRES(mutex_);
  void moved_front(std::uint32_t slot, std::uint32_t end, std::uint32_t count) REQUIRES(mutex_);
  void poison_front(std::uint32_t slot) REQUIRES(mutex_);

  // cache_rings.cpp
  void check_ring_fits() const;
  std::uint32_t lowest_after(std::uint64_t length) const;
  void check_rings(const SlotLength* requests, std::size_t count, std::uint32_t rollback) const
      REQUIRES(mutex_);
  void keep_above_overwritten(const SlotLength* requests, std::size_t count) REQUIRES(mutex_);
  void poison_ring(std::uint32_t slot) REQUIRES(mutex_);

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
  std::uint32_t blocks_written(std::uint32_t slot) const REQUIRES(mutex_);
  std::vector<Positions> dirty_positions(std::uint32_t slot) const REQUIRES(mutex_);
  void clean(std::uint32_t slot) REQUIRES(mutex_);
  void settle() REQUIRES(mutex_);
  bool do_background_work();
  bool prefetch_some() REQUIRES(mutex_);
  bool give_back_some() REQUIRES(mutex_);
  bool prepare_admission() REQUIRES(mutex_);
  void ask(std::uint32_t slot, std::uint32_t tokens) REQUIRES(mutex_);
  void wake_mapper();
  void nudge_mapper();

  // --- set when the cache is opened ---
  const BudgetPtr budget_;
  Watch watch_ = 0;
  const std::shared_ptr<StatisticsAdaptor> statistics_;
  const DriverPtr driver_;
  const Geometry geometry_;
  const PageMath math_;
  const bool eager_;
  const std::uint32_t read_ahead_;
  const bool strict_;
  const std::uint32_t window_;
  const bool rewritten_;
  const int fork_generation_;

  // --- without a lock ---
  std::atomic<bool> stepping_{false};
  std::atomic<bool> closed_{false};

  // One close() at a time; taken before mutex_.
  Mutex closing_;

  // One fork() at a time; taken before mutex_.
  Mutex forking_;

  // Rows in flight are the batch's that named them, also without this.
  mutable Mutex mutex_;
  // A row or slot has settled: it is in flight, or being cleaned, no more.
  Condition settled_;
  RowTable rows_ GUARDED_BY(mutex_);
  std::unique_ptr<BlockPool> pool_ PT_GUARDED_BY(mutex_);
  SlotTable slots_ GUARDED_BY(mutex_);
  // Slots with a length that the background was asked for.
  std::vector<std::uint32_t> wanted_slots_ GUARDED_BY(mutex_);
  // Of live slots, in the order in which they were trimmed.
  std::unordered_map<std::uint32_t, std::vector<Behind>> behind_ GUARDED_BY(mutex_);
  bool admission_wanted_ GUARDED_BY(mutex_) = false;
  Forecast forecast_ GUARDED_BY(mutex_);

  std::uint32_t call_ GUARDED_BY(mutex_) = 0;
  std::uint64_t tokens_used_ GUARDED_BY(mutex_) = 0;
  // Blocks that have left the pool and are in no row yet: of slots that grow, and of free
  // ones that are made ready for a request.
  std::uint64_t live_in_flight_ GUARDED_BY(mutex_) = 0;
  std::uint64_t free_in_flight_ GUARDED_BY(mutex_) = 0;
  std::uint64_t reclaimed_blocks_ GUARDED_BY(mutex_) = 0;
  std::uint64_t prefetch_failures_ GUARDED_BY(mutex_) = 0;
  double blocking_seconds_ GUARDED_BY(mutex_) = 0;
  double hidden_seconds_ GUARDED_BY(mutex_) = 0;

  // Last, so that the thread ends before what it works on.
  std::unique_ptr<Mapper> mapper_;
};

}  // namespace pyvattn
