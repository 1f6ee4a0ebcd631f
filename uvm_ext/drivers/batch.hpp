// SPDX-License-Identifier: Apache-2.0
// Gives drivers that map one entry at a time the all-or-nothing batch.
#pragma once

#include <cstddef>
#include <vector>

#include "drivers/driver.hpp"

namespace pyvattn {

// Does `act` on every entry. If one throws, undoes the earlier ones in reverse
// order and throws on. `undo` must not throw.
template <typename Entry, typename Act, typename Undo>
void all_or_nothing(const std::vector<Entry>& batch, Act act, Undo undo) {
  std::size_t done = 0;
  try {
    for (; done < batch.size(); ++done) act(batch[done]);
  } catch (...) {
    while (done > 0) undo(batch[--done]);
    throw;
  }
}

// Joins ranges whose addresses follow each other, in the order given.
inline std::vector<Range> contiguous_runs(const std::vector<Range>& ranges) {
  std::vector<Range> runs;
  for (const Range& range : ranges) {
    if (!runs.empty() && runs.back().address + runs.back().length == range.address) {
      runs.back().length += range.length;
    } else {
      runs.push_back(range);
    }
  }
  return runs;
}

// The index after the run of entries that starts at `first` and whose addresses
// follow each other.
inline std::size_t end_of_run(const std::vector<MapEntry>& batch, std::size_t first) {
  std::size_t next = first + 1;
  while (next < batch.size() &&
         batch[next].address == batch[next - 1].address + batch[next - 1].length) {
    ++next;
  }
  return next;
}

// How many unmap calls a batch costs where each run is one call.
inline std::size_t count_runs(const std::vector<MapEntry>& batch) {
  std::size_t runs = 0;
  for (std::size_t i = 0; i < batch.size(); i = end_of_run(batch, i)) ++runs;
  return runs;
}

// Unmaps a batch with one `unmap_range` for each run of entries whose addresses
// follow each other. If one throws, maps the entries of the earlier runs again
// and throws on. `map_one` must not throw.
template <typename UnmapRange, typename MapOne>
void unmap_all_or_nothing(const std::vector<MapEntry>& batch, UnmapRange unmap_range,
                          MapOne map_one) {
  std::size_t first = 0;
  try {
    while (first < batch.size()) {
      const std::size_t next = end_of_run(batch, first);
      const Address start = batch[first].address;
      const Range run{start, batch[next - 1].address + batch[next - 1].length - start};
      unmap_range(run);
      first = next;
    }
  } catch (...) {
    while (first > 0) map_one(batch[--first]);
    throw;
  }
}

}  // namespace pyvattn
