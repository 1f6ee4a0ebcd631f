// SPDX-License-Identifier: Apache-2.0
// Joining, taking, giving, leaving.
#include "ledger/member.hpp"

#include <algorithm>
#include <cstring>
#include <random>

#include "base/errors.hpp"
#include "base/text.hpp"
#include "ledger/doorbell.hpp"
#include "ledger/locks.hpp"

namespace pyvattn::ledger {
namespace {

std::uint32_t chunks_for(std::uint64_t bytes, std::uint64_t chunk_bytes) {
  const std::uint64_t chunks = bytes / chunk_bytes + (bytes % chunk_bytes != 0 ? 1 : 0);
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(chunks, kMostChunks + 1));
}

void copy_text(char* to, std::size_t bytes, const std::string& text) {
  std::memcpy(to, text.data(), std::min(text.size(), bytes - 1));
}

}  // namespace

Member::Member(const FileOptions& file, const MemberOptions& options)
    : table_(file),
      options_(options),
      process_(options.process.value_or(Process::self())),
      guarantee_(chunks_for(options.guarantee, table_.chunk_bytes())),
      mine_(table_.chunks()) {
  join();
  take(guarantee_);
  table_.announce();
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
    if (slot != slot_ && table_.has_process(slot)) ring(table_.mapping().slot(slot).doorbell);
  }
}

// Only joining looks at several words at once, because guarantees must fit together; those who
// run never wait for those who join.
void Member::join() {
  Mapping& mapping = table_.mapping();
  table_.settle_doubts();
  const JoinLock joining(mapping.descriptor(), table_.path().c_str());
  if (!mapping.is_in_place()) {
    throw LedgerLost("ledger " + table_.path() + " was reset at this moment: try again");
  }
  check_guarantees(table_.snapshot());
  const auto slot = free_slot();
  if (!slot) {
    throw LedgerFull("ledger " + table_.path() + ": all " + std::to_string(kSlots) +
                     " slots are taken: end a member, `pyvattn top` names them");
  }
  slot_ = *slot;
  table_.set_own(slot_);
  const auto former = table_.generation(slot_);
  generation_ = (former ? *former + 1 : std::random_device()()) % kGenerations;
  me_ = owner_of(slot_, generation_);
  fold_leftovers(slot_);
  Slot& own = live();
  for (SharedWord* word : {&own.wanted, &own.used, &own.target, &own.audit, &own.limit}) *word = 0;
  own.demand = guarantee_;
  table_.set_identity(slot_, own_identity());
  table_.set_process(slot_, generation_, true);
}

void Member::check_guarantees(const Snapshot& snapshot) const {
  std::uint64_t promised = 0;
  std::string names;
  for (const Party& party : snapshot.parties) {
    promised += party.readable ? party.guarantee : party.lease;
    names += (names.empty() ? "" : ", ") + party.name;
  }
  const std::uint64_t all = snapshot.chunks - std::min(snapshot.chunks, snapshot.not_ours);
  if (promised + guarantee_ <= all) return;
  throw LedgerFull("ledger " + table_.path() + ": a guarantee of " +
                   bytes_text(options_.guarantee) + " does not fit beside the " +
                   bytes_text(promised * table_.chunk_bytes()) + " guaranteed to others (" + names +
                   "), the budget is " + bytes_text(all * table_.chunk_bytes()) +
                   ": ask for less, or end a member");
}

// One whose lock is free and whose last process is gone. Takes the lock.
std::optional<std::uint32_t> Member::free_slot() {
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
    if (table_.is_dead(slot) && try_lock(table_.mapping().descriptor(), slot)) return slot;
  }
  return std::nullopt;
}

// What the slot's former process left behind cools as the words of any dead one.
void Member::fold_leftovers(std::uint32_t slot) {
  for (std::uint32_t chunk = 0; chunk < table_.chunks(); ++chunk) {
    const std::uint64_t word = table_.word(chunk);
    const auto owner = table_.owner_in(chunk, word);
    if (!owner || owner->owner != slot + 1) continue;
    table_.change(chunk, word, cooled(*owner));
  }
}

Identity Member::own_identity() const {
  Identity identity{};
  copy_text(identity.name, sizeof identity.name, options_.name);
  copy_text(identity.version, sizeof identity.version, options_.version);
  identity.guarantee = guarantee_;
  identity.weight = options_.weight;
  identity.pid = process_.pid;
  identity.start_time = process_.start_time;
  identity.pid_namespace = process_.pid_namespace;
  identity.generation = generation_;
  return identity;
}

std::uint32_t Member::take(std::uint32_t chunks) {
  std::uint32_t taken = 0;
  // Members begin at different places, so as not to compete for the same word.
  const std::uint64_t first = std::uint64_t{slot_} * table_.chunks() / kSlots;
  for (std::uint32_t i = 0; i < table_.chunks() && taken < chunks; ++i) {
    const auto chunk = static_cast<std::uint32_t>((first + i) % table_.chunks());
    const std::uint64_t word = table_.word(chunk);
    const auto owner = table_.owner_in(chunk, word);
    if (!owner || owner->owner != kFree || mine_[chunk]) continue;
    if (!table_.change(chunk, word, me_)) continue;
    mine_[chunk] = true;
    ++lease_;
    ++taken;
  }
  return taken;
}

std::uint32_t Member::give(std::uint32_t chunks) {
  const std::uint32_t given = give_as(chunks, {});
  if (given > 0) table_.announce();
  return given;
}

std::uint32_t Member::give_to(const Party& party, std::uint32_t chunks) {
  // It may be another process by now, or gone: then the word is that of a dead one.
  const std::uint32_t given = give_as(chunks, owner_of(party.slot, party.generation));
  if (given > 0) {
    ring(table_.mapping().slot(party.slot).doorbell);
    table_.announce();
  }
  return given;
}

std::uint32_t Member::give_as(std::uint32_t chunks, const Owner& to) {
  std::uint32_t given = 0;
  for (std::uint32_t chunk = table_.chunks(); chunk-- > 0 && given < chunks;) {
    if (!mine_[chunk]) continue;
    const std::uint64_t word = table_.word(chunk);
    // Where it is garbage, show_life() puts it right first.
    if (table_.owner_in(chunk, word) != me_ || !table_.change(chunk, word, to)) continue;
    mine_[chunk] = false;
    --lease_;
    ++given;
  }
  return given;
}

Member::~Member() {
  Mapping& mapping = table_.mapping();
  if (mapping.inherited() || mapping.lost()) return;
  give(lease_);
  table_.set_process(slot_, generation_, false);
  // The descriptor may have been closed by others: what is under its number is not ours then.
  if (mapping.reopen()) unlock(mapping.descriptor(), slot_);
  table_.announce();
}

}  // namespace pyvattn::ledger
