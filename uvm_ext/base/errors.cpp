// SPDX-License-Identifier: Apache-2.0
#include "base/errors.hpp"

#include <cstdio>
#include <utility>

namespace pyvattn {
namespace {

std::string describe(const std::string& operation, std::uint64_t address, std::uint64_t size,
                     const std::string& status, const std::string& detail) {
  char where[64];
  std::snprintf(where, sizeof where,
                " at 0x%llx, %llu bytes: ", static_cast<unsigned long long>(address),
                static_cast<unsigned long long>(size));
  std::string message = operation + where + status;
  if (!detail.empty()) message += " (" + detail + ")";
  return message;
}

}  // namespace

DriverError::DriverError(std::string operation, std::uint64_t address, std::uint64_t size,
                         std::string status, const std::string& detail)
    : Error(describe(operation, address, size, status, detail)),
      operation(std::move(operation)),
      address(address),
      size(size),
      status(std::move(status)) {}

}  // namespace pyvattn
