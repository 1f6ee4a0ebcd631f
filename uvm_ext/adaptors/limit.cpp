// SPDX-License-Identifier: Apache-2.0
#include "adaptors/limit.hpp"

#include <string>

#include "base/errors.hpp"

namespace pyvattn {

// What is left goes with the driver. In a forked child it is the parent's, and so is the
// budget, which may lie in memory that the two share.
LimitAdaptor::~LimitAdaptor() {
  if (fork_generation_ != fork_generation()) return;
  for (const auto& [slab, bytes] : sizes_) budget_->give_back(bytes);
}

// Taken first and allocated then: two who share a budget must not both find room for a slab
// where there is room for one.
SlabId LimitAdaptor::allocate_slab(std::size_t bytes) {
  if (!budget_->take(bytes)) {
    throw DriverOutOfMemory("allocate_slab", 0, bytes, "memory limit",
                            std::to_string(budget_->held()) + " of " +
                                std::to_string(budget_->limit()) +
                                " bytes are allocated; raise the limit with resize()");
  }
  try {
    const SlabId slab = inner().allocate_slab(bytes);
    sizes_.emplace(slab, bytes);
    return slab;
  } catch (...) {
    budget_->give_back(bytes);
    throw;
  }
}

void LimitAdaptor::free_slab(SlabId slab) {
  inner().free_slab(slab);
  const auto found = sizes_.find(slab);
  if (found == sizes_.end()) return;
  budget_->give_back(found->second);
  sizes_.erase(found);
}

}  // namespace pyvattn
