// SPDX-License-Identifier: Apache-2.0
// Holds the bytes of all slabs to a budget.
#pragma once

#include <unordered_map>

#include "adaptors/adaptor.hpp"
#include "adaptors/budget.hpp"
#include "base/fork.hpp"

namespace pyvattn {

class LimitAdaptor final : public Adaptor {
 public:
  LimitAdaptor(DriverPtr inner, BudgetPtr budget)
      : Adaptor(std::move(inner)), budget_(std::move(budget)) {}
  ~LimitAdaptor() override;

  // Throws DriverOutOfMemory where the budget does not grant the slab.
  SlabId allocate_slab(std::size_t bytes) override;
  void free_slab(SlabId slab) override;

 private:
  const BudgetPtr budget_;
  const int fork_generation_ = fork_generation();
  std::unordered_map<SlabId, std::size_t> sizes_;
};

}  // namespace pyvattn
