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

// Unmaps a batch with one `unmap_range` for each run of entries whose addresses
// follow each other. If one throws, maps the entries of the earlier runs again
// and throws on. `map_one` must not throw.
template <typename UnmapRange, typename MapOne>
void unmap_all_or_nothing(const std::vector<MapEntry>& batch, UnmapRange unmap_range,
                          MapOne map_one) {
  std::size_t first = 0;
  try {
    while (first < batch.size()) {
      std::size_t next = first + 1;
      Range run{batch[first].address, batch[first].length};
      for (; next < batch.size() && batch[next].address == run.address + run.length; ++next) {
        run.length += batch[next].length;
      }
      unmap_range(run);
      first = next;
    }
  } catch (...) {
    while (first > 0) map_one(batch[--first]);
    throw;
  }
}

}  // namespace pyvattn
