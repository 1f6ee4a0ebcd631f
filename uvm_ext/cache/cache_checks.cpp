// SPDX-License-Identifier: Apache-2.0
// What a cache refuses, before anything changes.
#include "cache/cache.hpp"

#include <string>

#include "base/errors.hpp"
#include "base/fork.hpp"

namespace pyvattn {

bool Cache::inherited() const { return fork_generation_ != fork_generation(); }

void Cache::check_usable() const {
  if (inherited()) {
    throw ForkError(
        "this cache belongs to the parent process: open one cache in each process, after fork(); "
        "CUDA does not survive fork(), for a GPU start worker processes with the method 'spawn'");
  }
  if (closed_) throw ClosedError("the cache is closed: open a new one");
}

std::uint32_t Cache::check_live(const SlotRef& slot) const {
  if (slot.index >= slots_.size()) {
    throw SlotError("slot " + std::to_string(slot.index) + " is not one of this cache's " +
                    std::to_string(slots_.size()) + ": use what acquire() returned");
  }
  const SlotHead& head = slots_.head(slot.index);
  if (head.state != SlotState::live ||
      (slot.generation != head.generation && slot.generation != SlotRef::kCurrent)) {
    throw SlotError("slot " + std::to_string(slot.index) +
                    " was released: acquire() one for the new request");
  }
  return slot.index;
}

std::uint32_t Cache::check_length(std::int64_t length) const {
  if (length < 0 || length > geometry_.max_tokens) {
    throw LengthError("a length of " + std::to_string(length) + " tokens is outside 0.." +
                      std::to_string(geometry_.max_tokens) +
                      ": open the cache with a larger max_tokens, or cut the request");
  }
  return static_cast<std::uint32_t>(length);
}

// A slot that got shorter than what it shares, or than what is gone, would write there next.
void Cache::check_lowest(std::uint32_t slot, std::uint32_t length) const {
  const std::uint32_t lowest = slots_.head(slot).lowest;
  if (length >= lowest) return;
  if (window_ > 0 && length < gone_below(slot)) {
    throw LengthError("slot " + std::to_string(slot) + " has layers that keep " +
                      std::to_string(window_) + " tokens, which its last steps left behind from " +
                      "a length of " + std::to_string(length) +
                      ": pass rollback= to step() where " + "lengths may fall below " +
                      std::to_string(gone_below(slot)));
  }
  if (length < slots_.trimmed(slot)) {
    throw LengthError("the first " + std::to_string(slots_.trimmed(slot)) + " tokens of slot " +
                      std::to_string(slot) + " were trimmed, so its length cannot be " +
                      std::to_string(length) + ": trim() less while lengths may still fall");
  }
  if (geometry_.is_ring()) {
    throw LengthError("slot " + std::to_string(slot) + " has a ring of " +
                      std::to_string(geometry_.ring_tokens) +
                      " tokens, in which newer ones took the place of those that a length of " +
                      std::to_string(length) + " needs: make the ring longer, or step in smaller " +
                      "chunks, for lengths below " + std::to_string(lowest));
  }
  throw LengthError("slot " + std::to_string(slot) + " shares its first " + std::to_string(lowest) +
                    " tokens with a fork and cannot have a length of " + std::to_string(length) +
                    ": release() it, and acquire() another");
}

// Says what is wrong with a request that check_step() will not have.
void Cache::refuse(const SlotLength& request) const {
  check_live(request.slot);
  const std::uint32_t length = check_length(request.length);
  check_lowest(request.slot.index, length);
  throw SlotError("slot " + std::to_string(request.slot.index) + " is named twice in one call");
}

void Cache::next_call() {
  if (++call_ != 0) return;
  // Once in four billion calls: no slot may seem to have been named in this one.
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) slots_.head(slot).stamp = 0;
  call_ = 1;
}

// Validates every request and returns those that need blocks. One look at each slot:
// a step of thousands of slots that need nothing is nothing but this.
std::vector<Cache::Target> Cache::check_step(const SlotLength* requests, std::size_t count) {
  check_usable();
  next_call();
  std::vector<Target> growing;
  SlotHead* const heads = slots_.heads();
  const std::uint32_t slots = slots_.size();
  const std::uint64_t max_tokens = geometry_.max_tokens;
  const std::uint32_t call = call_;
  for (std::size_t i = 0; i < count; ++i) {
    const SlotLength& request = requests[i];
    if (request.slot.index >= slots) refuse(request);
    SlotHead& head = heads[request.slot.index];
    const bool current =
        request.slot.generation == head.generation || request.slot.generation == SlotRef::kCurrent;
    if (!current || head.state != SlotState::live || head.stamp == call ||
        static_cast<std::uint64_t>(request.length) > max_tokens || request.length < head.lowest) {
      refuse(request);
    }
    head.stamp = call;
    const auto length = static_cast<std::uint32_t>(request.length);
    if (length > head.capacity) growing.push_back({request.slot.index, math_.pages_for(length)});
  }
  return growing;
}

}  // namespace pyvattn
