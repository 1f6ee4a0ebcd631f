// SPDX-License-Identifier: Apache-2.0
#include "drivers/both_fences.hpp"

#include <exception>
#include <memory>
#include <utility>

namespace pyvattn {
namespace {

class BothFences final : public Fence {
 public:
  BothFences(FencePtr first, FencePtr second)
      : first_(std::move(first)), second_(std::move(second)) {}
  bool passed() override { return first_->passed() && second_->passed(); }
  void wait() override {
    first_->wait();
    second_->wait();
  }

 private:
  const FencePtr first_;
  const FencePtr second_;
};

}  // namespace

FencePtr both(FencePtr first, FencePtr second) {
  if (!first) return second;
  if (!second) return first;
  return std::make_shared<BothFences>(std::move(first), std::move(second));
}

void wait_for_all(const std::vector<FencePtr>& fences) noexcept {
  for (const FencePtr& fence : fences) {
    try {
      fence->wait();
    } catch (const std::exception&) {
      // Unmapping what it guards comes to it again, and reports it.
    }
  }
}

}  // namespace pyvattn
