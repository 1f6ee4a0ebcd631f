// SPDX-License-Identifier: Apache-2.0
// Caches of one model, one for each group of layers that are alike, that act as one.
//
// They share a driver and a budget, so memory moves from one to another by being free: what
// one has to spare is given back where another lacks it. A request has the same row in all of
// them. What one cannot do none does: lengths are put back where a step fails further on.
// One group is a plain cache, call for call.
//
// A state is a row of one token, which a request has from its first token on: lengths above one
// are one to such a group.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cache/cache.hpp"

namespace pyvattn {

// What the caches of a model do not have in common.
struct LayerGroup {
  std::uint32_t arenas = 0;
  std::uint64_t token_bytes = 0;
  std::uint32_t guard_tokens = 0;
  // Zero: every token is kept.
  std::uint32_t window = 0;
  // Of layers with a window: rows are rings of so many tokens. Zero: they are not.
  std::uint32_t ring_tokens = 0;
  // Rows are states of so many `token_bytes`, whatever the length of a request: zeros at first,
  // and the callers' to write from then on. Such groups stand behind all others.
  bool state = false;
};

class GroupedCache {
 public:
  // Throws what Cache does. `options` but for its window are those of every group.
  GroupedCache(const DriverPtr& driver, const std::vector<LayerGroup>& groups, std::uint32_t slots,
               std::uint32_t max_tokens, BudgetPtr budget, const CacheOptions& options);

  // Each of these is the call of the same name in Cache.
  SlotRef acquire(std::int64_t tokens);
  SlotRef admit(std::int64_t tokens);
  // One group after the other, each by parts of so many arenas, numbered within the group. A slot
  // for which this fails may have got longer in some groups: it is to be released.
  using Mapped = std::function<FencePtr(std::size_t group, std::uint32_t first, std::uint32_t end)>;
  void extend(const SlotRef& slot, std::int64_t tokens, std::uint32_t arenas, const Mapped& mapped);
  // One for each group. A state is that of the whole length, so with states a fork is made of all
  // tokens, or of none.
  std::vector<Fork> fork(const SlotRef& slot, std::int64_t tokens);
  // A fork at `tokens` of a slot that may have more, whose states have seen these and no others,
  // and whose rings were written as far as `written`: how far a prompt is computed the caller alone
  // knows.
  std::vector<Fork> snapshot(const SlotRef& slot, std::int64_t tokens, std::uint64_t written);
  void release(const SlotRef& slot, const FencePtr& after);
  void step(const SlotLength* requests, std::size_t count, const Passage& passage);
  bool try_step(const SlotLength* requests, std::size_t count, const Passage& passage);
  void trim(const SlotRef& slot, std::int64_t length, const FencePtr& after);
  void trim_front(const SlotRef& slot, std::int64_t tokens, const FencePtr& after);
  // The same with a number of tokens for each group that keeps tokens.
  void trim_fronts(const SlotRef& slot, const std::vector<std::int64_t>& tokens,
                   const FencePtr& after);
  void prefetch(const SlotLength* requests, std::size_t count);
  // With several groups, what earlier requests have left is given back where that may help.
  bool can_admit(std::int64_t tokens);
  void drain();
  std::uint64_t resize(std::uint64_t memory_limit);
  std::uint64_t give_back();
  void close();
  void retire();

  CacheStats stats();
  std::int64_t length(const SlotRef& slot) { return leader().length(slot); }
  // Of every group that keeps tokens.
  std::vector<std::int64_t> fronts(const SlotRef& slot);
  // The least length at which the next query finds its window in every group.
  std::int64_t least_length(const SlotRef& slot);
  std::vector<LiveSlot> live_slots() { return leader().live_slots(); }
  // Every live slot, and the pages under its row in all arenas of all groups.
  std::vector<std::pair<LiveSlot, std::size_t>> live_pages();
  bool closed() const { return caches_.front()->closed(); }
  bool inherited() const { return caches_.front()->inherited(); }
  std::uint32_t slots() const { return caches_.front()->geometry().slots; }
  // Of all arenas, group by group.
  ArenaPtr arena(std::uint32_t index);

 private:
  // The group that chooses rows; the others follow.
  Cache& leader() { return *caches_.front(); }
  bool alone() const { return caches_.size() == 1; }
  // A request's tokens, as a group counts them.
  std::int64_t tokens_in(std::size_t group, std::int64_t tokens) const;
  std::vector<SlotLength> rows_in(std::size_t group, const SlotLength* requests,
                                  std::size_t count) const;
  void check_fork(const SlotRef& slot, std::int64_t tokens);
  std::vector<Fork> fork_all(const SlotRef& slot, std::int64_t tokens,
                             std::optional<std::uint64_t> written = std::nullopt);
  void cancel(const SlotRef& slot, std::size_t groups);
  SlotRef take(std::int64_t tokens);
  void step_all(const SlotLength* requests, std::size_t count, const Passage& passage);
  template <typename Call>
  void with_room(std::size_t group, const Call& call);

  const BudgetPtr budget_;
  // Taken before the locks of the caches. What concerns several of them is one call at a time.
  Mutex mutex_;
  std::atomic<bool> stepping_{false};
  std::vector<std::unique_ptr<Cache>> caches_;
  // How many of them keep tokens; the others keep states.
  std::size_t token_groups_ = 0;
};

}  // namespace pyvattn
