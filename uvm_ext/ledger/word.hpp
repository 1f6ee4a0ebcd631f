// SPDX-License-Identifier: Apache-2.0
// The words of the owner table: one for each chunk of memory, changed by compare-and-swap.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

namespace pyvattn::ledger {

using FileId = std::array<std::uint64_t, 2>;

// Owners beside members, whose number is their slot plus one.
constexpr std::uint8_t kFree = 0;
constexpr std::uint8_t kCooling = 254;
constexpr std::uint8_t kNotOurs = 255;

enum class Kind : std::uint8_t { none = 0, kv = 1 };

struct Owner {
  std::uint8_t owner = kFree;
  Kind kind = Kind::none;
  // Which process of the slot: a slot's next process must not take the former one's words
  // for its own.
  std::uint32_t generation = 0;

  bool operator==(const Owner& other) const {
    return owner == other.owner && kind == other.kind && generation == other.generation;
  }
  bool operator!=(const Owner& other) const { return !(*this == other); }
};

constexpr std::uint32_t kGenerations = 1u << 28;

constexpr Owner owner_of(std::uint32_t slot, std::uint32_t generation) {
  return {static_cast<std::uint8_t>(slot + 1), Kind::kv, generation};
}

// Of what a process held that is dead. Unlike any other: one who saw that it was cold and was
// stopped there must not free a later one.
constexpr Owner cooled(const Owner& dead) {
  return {kCooling, Kind::none, (dead.generation << 8 | dead.owner) & (kGenerations - 1)};
}

// Packs owners into words that are good at one index of one file only, so that garbage, zeros
// and words copied from elsewhere are told from what was written: see unpack().
class Words {
 public:
  explicit Words(const FileId& id) : id_(id) {}

  std::uint64_t pack(std::uint32_t index, const Owner& owner) const {
    const std::uint64_t upper = std::uint64_t{owner.owner} << 32 |
                                std::uint64_t{static_cast<std::uint8_t>(owner.kind)} << 28 |
                                (owner.generation & (kGenerations - 1));
    return upper << 24 | tag(index, upper);
  }

  // Nothing where the word is not one that pack() made for this index.
  std::optional<Owner> unpack(std::uint32_t index, std::uint64_t word) const {
    const std::uint64_t upper = word >> 24;
    if ((word & 0xffffff) != tag(index, upper)) return std::nullopt;
    return Owner{static_cast<std::uint8_t>(upper >> 32), static_cast<Kind>((upper >> 28) & 0xf),
                 static_cast<std::uint32_t>(upper & (kGenerations - 1))};
  }

 private:
  std::uint32_t tag(std::uint32_t index, std::uint64_t upper) const {
    // splitmix64, twice: the whole table is checked many times a second.
    const std::uint64_t value = mixed(mixed(id_[0] ^ upper) + (id_[1] ^ index));
    return static_cast<std::uint32_t>(value & 0xffffff);
  }

  static std::uint64_t mixed(std::uint64_t value) {
    value += 0x9e3779b97f4a7c15;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
    value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
    return value ^ (value >> 31);
  }

  const FileId id_;
};

}  // namespace pyvattn::ledger
