// SPDX-License-Identifier: Apache-2.0
// Which 2 MiB regions of our reservations have small page-table entries.
#pragma once

#include <iterator>
#include <map>
#include <vector>

#include "drivers/driver.hpp"
#include "drivers/nvidia/constants.hpp"

namespace pyvattn {
namespace nvidia {

inline Address region_of(Address address) { return address / kHugePage * kHugePage; }

class FineRegions {
 public:
  void add(const Range& reservation) {
    flags_[reservation.address].assign(reservation.length / kHugePage, false);
  }
  void remove(Address reservation) { flags_.erase(reservation); }

  // The addresses must be inside one reservation.
  bool contains(Address region) const {
    const auto found = reservation_of(region);
    return found->second[(region - found->first) / kHugePage];
  }
  // Every region that begins in the range.
  void set(const Range& range, bool fine) {
    if (range.length == 0) return;
    const auto found = std::prev(flags_.upper_bound(range.address));
    for (std::size_t done = 0; done < range.length; done += kHugePage) {
      found->second[(range.address + done - found->first) / kHugePage] = fine;
    }
  }
  // Calls `act` with each region from that of `start` up to `end` that is not fine and
  // lies in the reservation of `start`.
  template <typename Act>
  void for_each_coarse(Address start, Address end, Act act) const {
    const auto found = reservation_of(start);
    const std::vector<bool>& flags = found->second;
    const std::size_t last = (end - found->first + kHugePage - 1) / kHugePage;
    for (std::size_t i = (start - found->first) / kHugePage; i < last && i < flags.size(); ++i) {
      if (!flags[i]) act(found->first + i * kHugePage);
    }
  }

 private:
  using Flags = std::map<Address, std::vector<bool>>;

  Flags::const_iterator reservation_of(Address address) const {
    return std::prev(flags_.upper_bound(address));
  }

  // By the reservation's first address.
  Flags flags_;
};

}  // namespace nvidia
}  // namespace pyvattn
