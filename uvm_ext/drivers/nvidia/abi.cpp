// SPDX-License-Identifier: Apache-2.0
#include "drivers/nvidia/abi.hpp"

namespace pyvattn {
namespace nvidia {

const std::vector<LayoutRow>& layout_rows() {
  static const std::vector<LayoutRow> rows = {
#include "drivers/nvidia/abi_table.inc"
  };
  return rows;
}

const Layout* find_layout(const std::string& release) {
  for (const LayoutRow& row : layout_rows()) {
    for (const char* known : row.releases) {
      if (release == known) return &row.layout;
    }
  }
  return nullptr;
}

}  // namespace nvidia
}  // namespace pyvattn
