// SPDX-License-Identifier: Apache-2.0
// A fence made of two.
#pragma once

#include "drivers/driver.hpp"

namespace pyvattn {

// Has passed once both have; null stands for one that has passed.
FencePtr both(FencePtr first, FencePtr second);

}  // namespace pyvattn
