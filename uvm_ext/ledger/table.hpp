// SPDX-License-Identifier: Apache-2.0
// A ledger that is open: reading its table and its slots. Looking holds nobody up and waits
// for nobody.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ledger/file.hpp"
#include "ledger/process.hpp"
#include "ledger/snapshot.hpp"

namespace pyvattn::ledger {

class Table {
 public:
  explicit Table(const FileOptions& options);

  const std::string& path() const { return mapping_->path(); }
  const std::string& device() const { return device_; }
  std::uint32_t chunks() const { return header_.chunks; }
  std::uint64_t chunk_bytes() const { return header_.chunk_bytes; }
  Mapping& mapping() const { return *mapping_; }
  // Throws LedgerLost where the file is not what it was, ForkError in a child.
  void check_usable() const;

  std::uint64_t word(std::uint32_t chunk) const { return mapping_->chunk(chunk); }
  std::optional<Owner> owner(std::uint32_t chunk) const {
    return words_.unpack(chunk, word(chunk));
  }
  std::optional<Owner> owner_in(std::uint32_t chunk, std::uint64_t word) const {
    return words_.unpack(chunk, word);
  }
  // One compare-and-swap; false where the word was another.
  bool change(std::uint32_t chunk, std::uint64_t from, const Owner& to);

  // The generation of the slot's process. Nothing where its word is garbage.
  std::optional<std::uint32_t> generation(std::uint32_t slot) const;
  // False once its process has left, and where there was never one.
  bool has_process(std::uint32_t slot) const;
  void set_process(std::uint32_t slot, std::uint32_t generation, bool present);
  // As set_process(), for one that is dead: not where another process has the slot by now.
  void set_left(std::uint32_t slot, std::uint32_t generation);
  // Nothing where what the member wrote of itself is damaged.
  std::optional<Identity> identity(std::uint32_t slot) const;
  void set_identity(std::uint32_t slot, Identity identity);

  // By two signs: its lock is free, and either its process is gone or, where that cannot be
  // seen, its beat has stood still for half a second of this observer's clock.
  bool is_dead(std::uint32_t slot);
  // Looks until no member is in doubt, half a second and a little at most: one who looks once
  // would count those as living that died in another pid namespace and that no member has
  // swept up yet.
  void settle_doubts();
  Snapshot snapshot();

  // Something may be taken that could not be before.
  void announce();

  static constexpr std::uint32_t kNone = 0xffffffff;
  // The caller's own slot: its lock is no other's.
  void set_own(std::uint32_t slot) { own_ = slot; }

 private:
  explicit Table(OpenFile file);

  using Clock = std::chrono::steady_clock;
  struct Seen {
    std::uint64_t beat = 0;
    Clock::time_point since{};
  };

  bool is_locked(std::uint32_t slot) const;
  Party party(std::uint32_t slot, std::uint32_t generation) const;

  Header header_;
  std::unique_ptr<Mapping> mapping_;
  const Words words_;
  const std::string device_;
  const std::uint64_t pid_namespace_ = Process::self().pid_namespace;
  std::uint32_t own_ = kNone;
  std::vector<std::optional<Seen>> seen_;
};

}  // namespace pyvattn::ledger
