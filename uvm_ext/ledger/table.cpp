// SPDX-License-Identifier: Apache-2.0
#include "ledger/table.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <thread>
#include <utility>

#include "base/errors.hpp"
#include "ledger/crc.hpp"
#include "ledger/doorbell.hpp"
#include "ledger/locks.hpp"

namespace pyvattn::ledger {
namespace {

// The owner in a slot's state word; zero where there was never a process.
constexpr std::uint8_t kPresent = 1;
constexpr std::uint8_t kLeft = 2;

constexpr std::chrono::milliseconds kStill(500);

std::uint32_t crc_of(const Identity& identity) {
  return crc32c(&identity, offsetof(Identity, crc));
}

std::string text_of(const char* text, std::size_t most) { return {text, ::strnlen(text, most)}; }

}  // namespace

Table::Table(const FileOptions& options) : Table(open_file(options)) {}

Table::Table(OpenFile file)
    : header_(file.header),
      mapping_(std::move(file.mapping)),
      words_(header_.file_id),
      device_(text_of(header_.device, sizeof header_.device)),
      seen_(kSlots) {}

void Table::check_usable() const {
  if (mapping_->inherited()) {
    throw ForkError(
        "this lease belongs to the parent process: join the ledger in each process, "
        "after fork()");
  }
  if (mapping_->lost()) {
    throw LedgerLost("ledger " + path() +
                     " was truncated, replaced or reset while in use, or its lock was closed: "
                     "memory that is held stays, no more is leased; restart this engine");
  }
}

bool Table::change(std::uint32_t chunk, std::uint64_t from, const Owner& to) {
  return mapping_->chunk(chunk).compare_exchange_strong(from, words_.pack(chunk, to));
}

std::optional<std::uint32_t> Table::generation(std::uint32_t slot) const {
  const std::uint64_t word = mapping_->slot(slot).state;
  const auto state = words_.unpack(kStateIndex + slot, word);
  if (!state) return std::nullopt;
  return state->generation;
}

bool Table::has_process(std::uint32_t slot) const {
  const std::uint64_t word = mapping_->slot(slot).state;
  const auto state = words_.unpack(kStateIndex + slot, word);
  return !state || state->owner == kPresent;
}

void Table::set_process(std::uint32_t slot, std::uint32_t generation, bool present) {
  const Owner state = {present ? kPresent : kLeft, Kind::none, generation};
  const std::uint64_t word = words_.pack(kStateIndex + slot, state);
  if (mapping_->slot(slot).state != word) mapping_->slot(slot).state = word;
}

void Table::set_left(std::uint32_t slot, std::uint32_t generation) {
  std::uint64_t word = words_.pack(kStateIndex + slot, {kPresent, Kind::none, generation});
  const std::uint64_t left = words_.pack(kStateIndex + slot, {kLeft, Kind::none, generation});
  mapping_->slot(slot).state.compare_exchange_strong(word, left);
}

std::optional<Identity> Table::identity(std::uint32_t slot) const {
  std::uint64_t words[kIdentityWords];
  for (std::size_t i = 0; i < kIdentityWords; ++i) words[i] = mapping_->slot(slot).identity[i];
  Identity identity;
  std::memcpy(&identity, words, sizeof identity);
  if (identity.crc != crc_of(identity)) return std::nullopt;
  return identity;
}

void Table::set_identity(std::uint32_t slot, Identity identity) {
  identity.crc = crc_of(identity);
  std::uint64_t words[kIdentityWords];
  std::memcpy(words, &identity, sizeof identity);
  for (std::size_t i = 0; i < kIdentityWords; ++i) {
    SharedWord& word = mapping_->slot(slot).identity[i];
    if (word != words[i]) word = words[i];
  }
}

bool Table::is_locked(std::uint32_t slot) const {
  return slot == own_ || is_locked_by_other(mapping_->descriptor(), slot);
}

bool Table::is_dead(std::uint32_t slot) {
  if (is_locked(slot)) {
    seen_[slot].reset();
    return false;
  }
  if (!has_process(slot)) return true;
  const auto who = identity(slot);
  if (who && who->pid_namespace == pid_namespace_ && who->start_time != 0) {
    return is_gone({who->pid, who->start_time, who->pid_namespace});
  }
  const std::uint64_t beat = mapping_->slot(slot).beat;
  const auto now = Clock::now();
  if (!seen_[slot] || seen_[slot]->beat != beat) seen_[slot] = Seen{beat, now};
  return now - seen_[slot]->since >= kStill;
}

void Table::settle_doubts() {
  const auto end = Clock::now() + kStill + std::chrono::milliseconds(100);
  const auto is_in_doubt = [this](std::uint32_t slot) {
    return !is_locked(slot) && !is_dead(slot) && seen_[slot];
  };
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
    while (is_in_doubt(slot) && Clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
}

Party Table::party(std::uint32_t slot, std::uint32_t generation) const {
  const Slot& live = mapping_->slot(slot);
  const std::uint32_t all = header_.chunks;
  const auto clamped = [all](std::uint64_t value) {
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(value, all));
  };
  Party party;
  party.slot = slot;
  party.generation = generation;
  party.demand = clamped(live.demand);
  party.wanted = clamped(live.wanted);
  party.target = clamped(live.target);
  const std::uint64_t limit = live.limit;
  party.limit = limit == 0 ? all : clamped(limit - 1);
  party.used_bytes = std::min(live.used.load(), all * header_.chunk_bytes);
  const auto who = identity(slot);
  if (!who || who->generation != generation) return party;
  party.readable = true;
  party.name = text_of(who->name, sizeof who->name);
  party.version = text_of(who->version, sizeof who->version);
  party.pid = who->pid;
  party.guarantee = clamped(who->guarantee);
  party.weight = who->weight;
  return party;
}

// Words are read one after the other, while others change them: each is right for itself.
Snapshot Table::snapshot() {
  Snapshot result;
  result.chunks = header_.chunks;
  std::vector<std::uint32_t> index(kSlots, kNone);
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
    if (!has_process(slot) || is_dead(slot)) continue;
    index[slot] = static_cast<std::uint32_t>(result.parties.size());
    // Where its word is garbage for the moment, none of its chunks is known by generation.
    result.parties.push_back(party(slot, generation(slot).value_or(kNone)));
  }
  for (std::uint32_t chunk = 0; chunk < header_.chunks; ++chunk) {
    const auto who = owner(chunk);
    if (!who) {
      ++result.unknown;
    } else if (who->owner == kFree) {
      ++result.free;
    } else if (who->owner == kCooling) {
      ++result.cooling;
    } else if (who->owner == kNotOurs) {
      ++result.not_ours;
    } else if (who->owner <= kSlots && index[who->owner - 1] != kNone &&
               result.parties[index[who->owner - 1]].generation == who->generation) {
      ++result.parties[index[who->owner - 1]].lease;
    } else {
      ++result.unknown;
    }
  }
  return result;
}

void Table::announce() { ring(mapping_->words().epoch); }

}  // namespace pyvattn::ledger
