// SPDX-License-Identifier: Apache-2.0
// What a forked child gets of the host driver's memory.
#pragma once

#include "drivers/driver.hpp"

namespace pyvattn {

// In every child from here on the range is the child's own memory, and zeros: what it
// writes there would otherwise appear in the parent, whose slabs are shared mappings.
void forget_in_children(const Range& range);
// To be called before the range that starts here is given back: it may be anyone's next.
void keep_in_children(Address address) noexcept;

}  // namespace pyvattn
