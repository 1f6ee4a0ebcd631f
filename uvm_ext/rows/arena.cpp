// SPDX-License-Identifier: Apache-2.0
#include "rows/arena.hpp"

#include <exception>

#include "base/errors.hpp"
#include "base/fork.hpp"

namespace pyvattn {

Arena::Arena(DriverPtr driver, std::size_t bytes, std::size_t alignment)
    : driver_(std::move(driver)),
      bytes_(bytes),
      address_(driver_->reserve(bytes, alignment)),
      fork_generation_(fork_generation()) {}

Arena::~Arena() {
  // In a forked child the addresses are the parent's, and its locks may be held.
  if (fork_generation_ != fork_generation()) return;
  try {
    driver_->release_reservation(address_);
  } catch (const std::exception&) {
    // A destructor cannot report it; the driver releases what is left when it goes.
  }
}

std::vector<ArenaPtr> make_arenas(const DriverPtr& driver, const Geometry& geometry) {
  std::vector<ArenaPtr> arenas;
  arenas.reserve(geometry.arenas);
  for (std::uint32_t i = 0; i < geometry.arenas; ++i) {
    arenas.push_back(
        std::make_shared<const Arena>(driver, geometry.arena_bytes(), geometry.page_size));
  }
  return arenas;
}

}  // namespace pyvattn
