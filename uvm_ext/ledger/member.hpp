// SPDX-License-Identifier: Apache-2.0
// A process that has joined a ledger: its slot and its words.
//
// A chunk is held only while a word of the table names its holder, and the words are changed by
// one compare-and-swap each: what members hold and what is free is always the whole budget,
// even if a process dies between any two instructions. Others may hand this member words at any
// time, but only it takes them away: what it counts as its own is never too much.
//
// Not thread-safe: callers bring their own lock.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "ledger/table.hpp"

namespace pyvattn::ledger {

struct MemberOptions {
  std::string name;
  // Bytes that the member always gets, leased while it joins.
  std::uint64_t guarantee = 0;
  // Of its part of what is beyond guarantees, in thousandths.
  std::uint32_t weight = 1000;
  std::string version;
  // How long the memory of a dead member may take to be free on the device. What the device
  // says is free is no sooner sign: others may have leased it, and not mapped it yet.
  std::chrono::milliseconds cooling{0};
  // For tests of what becomes of a process that is gone.
  std::optional<Process> process;
};

class Member {
 public:
  // Joins. Throws what open_file() throws, LedgerFull and LedgerBusy.
  Member(const FileOptions& file, const MemberOptions& options);
  // Leaves: every word of its own is free again. Its memory must be.
  ~Member();
  Member(const Member&) = delete;
  Member& operator=(const Member&) = delete;

  Table& table() { return table_; }
  std::uint32_t slot() const { return slot_; }
  std::uint32_t lease() const { return lease_; }
  const std::string& name() const { return options_.name; }
  Slot& live() const { return table_.mapping().slot(slot_); }

  // Free chunks become the member's, up to `chunks` of them; returns how many.
  std::uint32_t take(std::uint32_t chunks);
  // Chunks behind which no memory is any more become free, or those of another member.
  std::uint32_t give(std::uint32_t chunks);
  std::uint32_t give_to(const Party& party, std::uint32_t chunks);

  // What every member does now and then for itself: proves that it lives, repairs what is its
  // own and damaged, and finds what it was handed.
  void show_life();
  // And for all: slots of the dead, what they held, and words without meaning become free.
  void sweep();
  // Whether it still has the lock that keeps its words; takes it again where its descriptor was
  // closed. Where that fails the ledger is lost.
  void check_lock();

 private:
  using Clock = std::chrono::steady_clock;
  // A chunk that cools, or a word without meaning: since when, by this member's clock.
  struct Watched {
    std::uint64_t word = 0;
    Clock::time_point since{};
    std::array<std::uint64_t, kSlots> audits{};
  };

  void join();
  std::optional<std::uint32_t> free_slot();
  void check_guarantees(const Snapshot& snapshot) const;
  void fold_leftovers(std::uint32_t slot);
  Identity own_identity() const;
  std::uint32_t give_as(std::uint32_t chunks, const Owner& to);
  Watched& watched(std::uint32_t chunk, std::uint64_t word);
  bool nobody_claims(const Watched& seen, const std::array<bool, kSlots>& dead) const;

  Table table_;
  const MemberOptions options_;
  const Process process_;
  const std::uint32_t guarantee_;
  std::uint32_t slot_ = Table::kNone;
  std::uint32_t generation_ = 0;
  Owner me_;
  std::vector<bool> mine_;
  std::uint32_t lease_ = 0;
  std::unordered_map<std::uint32_t, Watched> watched_;
};

}  // namespace pyvattn::ledger
