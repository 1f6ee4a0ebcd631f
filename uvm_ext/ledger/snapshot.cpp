// SPDX-License-Identifier: Apache-2.0
#include "ledger/snapshot.hpp"

#include <algorithm>
#include <cstddef>

namespace pyvattn::ledger {
namespace {

// What the party would have if there were enough.
std::uint32_t most_of(const Party& party) {
  return std::max(party.floor(), std::min(party.demand, party.limit));
}

std::uint64_t divide_up(std::uint64_t value, std::uint64_t by) { return (value + by - 1) / by; }

}  // namespace

std::uint32_t Snapshot::spare_for(std::uint32_t slot) const {
  std::uint64_t kept = 0;
  for (const Party& party : parties) {
    if (party.slot != slot) kept += party.lacks();
  }
  return kept < free ? free - static_cast<std::uint32_t>(kept) : 0;
}

std::uint32_t Snapshot::asked_of(std::uint32_t slot) const {
  std::uint64_t asked = 0;
  for (const Party& party : parties) {
    if (party.slot != slot) asked += std::max(std::min(party.wanted, chunks), party.lacks());
  }
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(chunks, asked - std::min<std::uint64_t>(asked, free)));
}

std::uint32_t Snapshot::reach_of(std::uint32_t slot) const {
  std::uint32_t kept = not_ours;
  for (const Party& party : parties) {
    if (party.slot != slot) kept += party.readable ? party.floor() : party.lease;
  }
  const std::uint32_t rest = chunks - std::min(chunks, kept);
  const Party* own = find(slot);
  return own == nullptr ? rest : std::min(rest, own->limit);
}

std::vector<std::uint32_t> targets(const Snapshot& snapshot) {
  const std::vector<Party>& parties = snapshot.parties;
  std::vector<std::uint32_t> result(parties.size());
  std::uint64_t left = snapshot.chunks - std::min(snapshot.chunks, snapshot.not_ours);
  std::vector<std::size_t> hungry;
  std::uint64_t weights = 0;
  for (std::size_t i = 0; i < parties.size(); ++i) {
    const Party& party = parties[i];
    result[i] = party.readable ? party.floor() : party.lease;
    left -= std::min<std::uint64_t>(left, result[i]);
    if (!party.readable || most_of(party) <= result[i]) continue;
    hungry.push_back(i);
    weights += std::max(party.weight, 1u);
  }
  // Those who want least for their weight first: what they leave is for the others.
  const auto wants = [&](std::size_t i) -> std::uint64_t {
    return most_of(parties[i]) - parties[i].floor();
  };
  std::stable_sort(hungry.begin(), hungry.end(), [&](std::size_t a, std::size_t b) {
    return wants(a) * std::max(parties[b].weight, 1u) < wants(b) * std::max(parties[a].weight, 1u);
  });
  for (std::size_t i : hungry) {
    const std::uint64_t weight = std::max(parties[i].weight, 1u);
    // Rounded up, so that what is left over goes to somebody: the last takes what there is.
    const std::uint64_t share = std::min(wants(i), divide_up(left * weight, weights));
    const auto given = static_cast<std::uint32_t>(std::min(share, left));
    result[i] += given;
    left -= given;
    weights -= weight;
  }
  return result;
}

std::uint32_t owed_by(std::uint32_t slot, const Snapshot& snapshot) {
  const std::vector<std::uint32_t> parts = targets(snapshot);
  std::uint64_t lacking = 0;
  std::uint64_t above = 0;
  std::uint64_t own = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Party& party = snapshot.parties[i];
    lacking += party.lacks();
    const std::uint64_t excess = party.lease - std::min(party.lease, parts[i]);
    above += excess;
    if (party.slot == slot) own = excess;
  }
  lacking -= std::min<std::uint64_t>(lacking, snapshot.free);
  if (own == 0) return 0;
  return static_cast<std::uint32_t>(std::min(own, divide_up(lacking * own, above)));
}

bool is_tight(const Snapshot& snapshot) {
  std::uint64_t wanted = snapshot.not_ours;
  for (const Party& party : snapshot.parties) {
    wanted += party.readable ? most_of(party) : party.lease;
  }
  return wanted > snapshot.chunks;
}

}  // namespace pyvattn::ledger
