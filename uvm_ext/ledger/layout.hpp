// SPDX-License-Identifier: Apache-2.0
// What lies where in the ledger's file. Little endian; everything that changes is an aligned
// 64-bit word, or a 32-bit one that is waited on.
//
//      0  header: written by the creator, once
//   2048  words of the file as a whole
//   4096  64 slots of 256 bytes, one for each member
//  20480  the owner table, 8 bytes for each chunk
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "ledger/word.hpp"

namespace pyvattn::ledger {

constexpr char kMagic[8] = {'P', 'Y', 'V', 'A', 'T', 'T', 'N', 'L'};
constexpr std::uint16_t kMajor = 1;
constexpr std::uint16_t kMinor = 0;
constexpr std::uint32_t kSlots = 64;
constexpr std::uint32_t kMostChunks = 1u << 20;

struct Header {
  char magic[8];
  std::uint16_t major;
  // Of a larger minor number only reserved space differs, where zero means absent.
  std::uint16_t minor;
  // Bits that readers must know, and bits that they may ignore.
  std::uint32_t incompatible;
  std::uint32_t compatible;
  std::uint32_t slots;
  std::uint32_t slot_bytes;
  std::uint32_t chunks;
  std::uint64_t chunk_bytes;
  FileId file_id;
  char boot_id[40];
  char device[64];
  std::uint32_t reserved;
  // Of everything before it.
  std::uint32_t crc;
};
static_assert(std::is_trivially_copyable_v<Header> && sizeof(Header) == 168);

using SharedWord = std::atomic<std::uint64_t>;
using SharedHalf = std::atomic<std::uint32_t>;
static_assert(SharedWord::is_always_lock_free && sizeof(SharedWord) == 8);
static_assert(SharedHalf::is_always_lock_free && sizeof(SharedHalf) == 4);

struct FileWords {
  // Counts what may let somebody take more: chunks that became free, members that came or
  // went, limits that moved. Waited on.
  SharedHalf epoch;
  SharedHalf reserved[3];
};
constexpr std::size_t kFileWordsOffset = 2048;

// Who a member is: written while joining, once.
struct Identity {
  char name[64];
  // Chunks.
  std::uint64_t guarantee;
  // Thousandths.
  std::uint32_t weight;
  std::uint32_t pid;
  std::uint64_t start_time;
  std::uint64_t pid_namespace;
  std::uint32_t generation;
  char version[16];
  std::uint32_t crc;
};
static_assert(std::is_trivially_copyable_v<Identity> && sizeof(Identity) == 120);
constexpr std::size_t kIdentityWords = sizeof(Identity) / 8;

struct Slot {
  // An Identity, word by word: it may be read while it is written.
  SharedWord identity[kIdentityWords];
  // An owner's word, with the index kStateIndex + slot: the slot's process.
  SharedWord state;
  // Chunks in all that the member could use.
  SharedWord demand;
  // Chunks that it asks others for.
  SharedWord wanted;
  SharedWord target;
  // Bytes that it has allocated.
  SharedWord used;
  // Moves while it lives.
  SharedWord beat;
  // Moves once it has seen that all of its words are right.
  SharedWord audit;
  // Chunks plus one that it may hold at most, zero for no limit: written by operators.
  SharedWord limit;
  // Waited on by the member, moved by all who want it to look.
  SharedHalf doorbell;
  SharedHalf reserved_half;
  SharedWord reserved[8];
};
static_assert(sizeof(Slot) == 256);
constexpr std::size_t kSlotsOffset = 4096;
constexpr std::uint32_t kStateIndex = 1u << 31;

constexpr std::size_t kTableOffset = kSlotsOffset + kSlots * sizeof(Slot);
static_assert(kTableOffset == 20480);

constexpr std::size_t file_bytes(std::uint32_t chunks) {
  return kTableOffset + std::size_t{chunks} * sizeof(SharedWord);
}

}  // namespace pyvattn::ledger
