#include "adaptors/limit.hpp"

#include <string>

#include "base/errors.hpp"

namespace pyvattn {

SlabId LimitAdaptor::allocate_slab(std::size_t bytes) {
  if (bytes > headroom()) {
    throw DriverOutOfMemory("allocate_slab", 0, bytes, "memory limit",
                            std::to_string(allocated_) + " of " + std::to_string(limit_) +
                                " bytes are allocated; raise the limit with resize()");
  }
  const SlabId slab = inner().allocate_slab(bytes);
  sizes_.emplace(slab, bytes);
  allocated_ += bytes;
  return slab;
}

void LimitAdaptor::free_slab(SlabId slab) {
  inner().free_slab(slab);
  const auto found = sizes_.find(slab);
  if (found == sizes_.end()) return;
  allocated_ -= found->second;
  sizes_.erase(found);
}

}  // namespace pyvattn
