// SPDX-License-Identifier: Apache-2.0
// Numbers as people read them, for messages.
#pragma once

#include <cstdint>
#include <string>

namespace pyvattn {

// Such as "1.5 GiB".
std::string bytes_text(std::uint64_t bytes);

}  // namespace pyvattn
