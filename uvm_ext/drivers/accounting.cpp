// SPDX-License-Identifier: Apache-2.0
#include "drivers/accounting.hpp"

#include "drivers/host.hpp"

namespace pyvattn {

AccountingDriver::AccountingDriver(std::size_t page_size)
    : capabilities_(HostDriver::describe()), page_size_(page_size) {
  capabilities_.name = "host-accounting";
}

Address AccountingDriver::reserve(std::size_t bytes, std::size_t alignment) {
  const Address address = (next_address_ + alignment - 1) / alignment * alignment;
  next_address_ = address + bytes;
  return address;
}

FencePtr AccountingDriver::zero(const std::vector<Range>&, const FencePtr& after) {
  if (after) after->wait();
  return nullptr;
}

}  // namespace pyvattn
