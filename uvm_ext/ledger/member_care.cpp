// SPDX-License-Identifier: Apache-2.0
// What members do for themselves and for each other between allocations.
#include <algorithm>

#include "ledger/doorbell.hpp"
#include "ledger/locks.hpp"
#include "ledger/member.hpp"

namespace pyvattn::ledger {

void Member::show_life() {
  Slot& own = live();
  ++own.beat;
  table_.set_process(slot_, generation_, true);
  table_.set_identity(slot_, own_identity());
  for (std::uint32_t chunk = 0; chunk < table_.chunks(); ++chunk) {
    const std::uint64_t word = table_.word(chunk);
    const auto owner = table_.owner_in(chunk, word);
    if (owner == me_ && !mine_[chunk]) {
      mine_[chunk] = true;
      ++lease_;
    } else if (mine_[chunk] && !owner) {
      table_.change(chunk, word, me_);
    } else if (mine_[chunk] && owner != me_) {
      // Somebody wrote over it what looks right: it is gone.
      mine_[chunk] = false;
      --lease_;
    }
  }
  ++own.audit;
}

void Member::check_lock() {
  Mapping& mapping = table_.mapping();
  const auto generation = table_.generation(slot_);
  // Where its descriptor was closed the memory keeps the lock, and the file that is opened
  // anew finds it taken. One who had taken the slot would have changed the generation.
  const bool kept =
      mapping.is_in_place() && mapping.reopen() &&
      (try_lock(mapping.descriptor(), slot_) || is_locked_by_other(mapping.descriptor(), slot_)) &&
      (!generation || *generation == generation_);
  if (!kept) mapping.lose();
}

Member::Watched& Member::watched(std::uint32_t chunk, std::uint64_t word) {
  Watched& seen = watched_[chunk];
  if (seen.word == word && seen.since != Clock::time_point{}) return seen;
  seen.word = word;
  seen.since = Clock::now();
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
    seen.audits[slot] = table_.mapping().slot(slot).audit;
  }
  return seen;
}

// Every member that lives has twice looked through its words since, and left this one.
bool Member::nobody_claims(const Watched& seen, const std::array<bool, kSlots>& dead) const {
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
    if (!dead[slot] && table_.mapping().slot(slot).audit - seen.audits[slot] < 2) return false;
  }
  return true;
}

// Sees that a process is dead, reads a word of its, and changes it if it is still the same:
// another process in between, or being stopped in between, does no harm, since the word names
// the process too.
void Member::sweep() {
  std::array<bool, kSlots> dead{};
  std::array<std::optional<std::uint32_t>, kSlots> last;
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
    // Before the look at its lock: the slot's next process may have come by the time that a
    // word is read.
    last[slot] = table_.generation(slot);
    dead[slot] = table_.is_dead(slot);
    // For those who look only once, and cannot see its process.
    if (dead[slot] && last[slot]) table_.set_left(slot, *last[slot]);
  }
  bool freed = false;
  for (std::uint32_t chunk = 0; chunk < table_.chunks(); ++chunk) {
    const std::uint64_t word = table_.word(chunk);
    const auto owner = table_.owner_in(chunk, word);
    if (owner && owner->owner == kCooling) {
      if (Clock::now() - watched(chunk, word).since < options_.cooling) continue;
      freed = table_.change(chunk, word, {}) || freed;
      watched_.erase(chunk);
    } else if (!owner) {
      if (!nobody_claims(watched(chunk, word), dead)) continue;
      table_.change(chunk, word, cooled({}));
      watched_.erase(chunk);
    } else if (owner->owner != kFree && owner->owner != kNotOurs) {
      const std::uint32_t slot = owner->owner - 1u;
      const bool is_known = slot < kSlots;
      const auto current = is_known ? table_.generation(slot) : std::nullopt;
      const bool is_former = current && *current != owner->generation;
      const bool is_dead = is_known && dead[slot] && last[slot] == owner->generation;
      if (!is_known || is_dead || is_former) {
        table_.change(chunk, word, cooled(*owner));
      }
    }
  }
  if (freed) table_.announce();
}

}  // namespace pyvattn::ledger
