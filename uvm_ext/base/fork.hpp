// SPDX-License-Identifier: Apache-2.0
// Tells a process from the child that inherited its memory through fork().
#pragma once

namespace pyvattn {

// Changes in every child; costs one load.
int fork_generation();

}  // namespace pyvattn
