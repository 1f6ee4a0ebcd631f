// SPDX-License-Identifier: Apache-2.0
// CRC-32C (Castagnoli), by which words and records in shared memory tell what was written from
// garbage.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace pyvattn::ledger {

constexpr std::array<std::uint32_t, 256> crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0x82f63b78u : 0);
    table[i] = value;
  }
  return table;
}

inline std::uint32_t crc32c(const void* data, std::size_t bytes, std::uint32_t seed = 0) {
  static constexpr std::array<std::uint32_t, 256> kTable = crc_table();
  const auto* at = static_cast<const unsigned char*>(data);
  std::uint32_t value = ~seed;
  for (std::size_t i = 0; i < bytes; ++i) value = kTable[(value ^ at[i]) & 0xff] ^ (value >> 8);
  return ~value;
}

}  // namespace pyvattn::ledger
