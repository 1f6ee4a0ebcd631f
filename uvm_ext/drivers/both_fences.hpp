// SPDX-License-Identifier: Apache-2.0
// Several fences.
#pragma once

#include <vector>

#include "drivers/driver.hpp"

namespace pyvattn {

// Has passed once both have; null stands for one that has passed.
FencePtr both(FencePtr first, FencePtr second);

// Waits for all of them; one that fails counts as passed.
void wait_for_all(const std::vector<FencePtr>& fences) noexcept;

}  // namespace pyvattn
