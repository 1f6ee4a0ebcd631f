// Keeps the bytes of all slabs under a limit that can move at run time.
#pragma once

#include <atomic>
#include <unordered_map>

#include "adaptors/adaptor.hpp"
#include "adaptors/budget.hpp"

namespace pyvattn {

class LimitAdaptor final : public Adaptor, public Budget {
 public:
  LimitAdaptor(DriverPtr inner, std::uint64_t limit) : Adaptor(std::move(inner)), limit_(limit) {}

  // Throws DriverOutOfMemory where the slab would pass the limit.
  SlabId allocate_slab(std::size_t bytes) override;
  void free_slab(SlabId slab) override;

  std::uint64_t limit() const override { return limit_; }
  std::uint64_t allocated() const override { return allocated_; }
  void set_limit(std::uint64_t limit) override { limit_ = limit; }

 private:
  std::atomic<std::uint64_t> limit_;
  std::atomic<std::uint64_t> allocated_{0};
  std::unordered_map<SlabId, std::size_t> sizes_;
};

}  // namespace pyvattn
