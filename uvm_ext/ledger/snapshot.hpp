// SPDX-License-Identifier: Apache-2.0
// What a ledger says at one moment, for policy and for those who look.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pyvattn::ledger {

// A live member. All amounts are chunks, but for `used`.
struct Party {
  std::uint32_t slot = 0;
  std::uint32_t generation = 0;
  std::string name;
  std::uint32_t pid = 0;
  std::string version;
  std::uint32_t guarantee = 0;
  // Thousandths.
  std::uint32_t weight = 1000;
  std::uint32_t lease = 0;
  std::uint32_t demand = 0;
  std::uint32_t wanted = 0;
  std::uint32_t target = 0;
  // Most that it may hold: of an operator.
  std::uint32_t limit = 0;
  std::uint64_t used_bytes = 0;
  // False where what it wrote of itself is damaged: it keeps what it has, and gets no more.
  bool readable = false;

  // What nobody takes from it.
  std::uint32_t floor() const { return guarantee < limit ? guarantee : limit; }
  std::uint32_t lacks() const { return lease < floor() ? floor() - lease : 0; }
};

struct Snapshot {
  std::uint32_t chunks = 0;
  std::uint32_t free = 0;
  std::uint32_t cooling = 0;
  std::uint32_t not_ours = 0;
  // Words of no meaning, and those of the dead: neither free nor anybody's.
  std::uint32_t unknown = 0;
  std::vector<Party> parties;

  const Party* find(std::uint32_t slot) const {
    for (const Party& party : parties) {
      if (party.slot == slot) return &party;
    }
    return nullptr;
  }
  // Free chunks that no other member below its guarantee is waiting for.
  std::uint32_t spare_for(std::uint32_t slot) const;
  // What others ask for and the free chunks do not hold.
  std::uint32_t asked_of(std::uint32_t slot) const;
  // Most that the member can come to hold: all but what is guaranteed to others.
  std::uint32_t reach_of(std::uint32_t slot) const;
};

// How many chunks each of the parties should hold: its guarantee, and of the rest what fills
// those that want more to one level, by weight. Everybody computes the same, so a chunk moves
// only from somebody above to somebody below, and the level moves only with demand: giving to
// all who ask would move chunks to and fro between two who want more. In the order of the
// parties.
std::vector<std::uint32_t> targets(const Snapshot& snapshot);

// Chunks that one above its part should end running requests for: its share of what others lack
// of their guarantees and the free chunks do not hold.
std::uint32_t owed_by(std::uint32_t slot, const Snapshot& snapshot);

// Whether more is wanted than there is.
bool is_tight(const Snapshot& snapshot);

}  // namespace pyvattn::ledger
