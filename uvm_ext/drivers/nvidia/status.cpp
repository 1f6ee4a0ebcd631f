// SPDX-License-Identifier: Apache-2.0
#include "drivers/nvidia/status.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>

#include "base/errors.hpp"

namespace pyvattn {
namespace nvidia {
namespace {

struct Name {
  Status status;
  const char* text;
};

constexpr Name kNames[] = {
#include "drivers/nvidia/status_names.inc"
};

}  // namespace

std::string status_name(Status status) {
  if (status == kUnwritten) return "no status: the parameters have another layout";
  const Name* found =
      std::lower_bound(std::begin(kNames), std::end(kNames), status,
                       [](const Name& name, Status wanted) { return name.status < wanted; });
  if (found != std::end(kNames) && found->status == status) return found->text;
  char text[32];
  std::snprintf(text, sizeof text, "NV_STATUS 0x%x", status);
  return text;
}

std::string Answer::name() const {
  if (error == 0) return status_name(status);
  const char* name = strerrorname_np(error);
  return name != nullptr ? name : "errno " + std::to_string(error);
}

void check(const Answer& answer, const std::string& operation, std::uint64_t address,
           std::size_t size) {
  if (answer.ok()) return;
  if (answer.out_of_memory()) {
    throw DriverOutOfMemory(operation, address, size, answer.name(),
                            "the GPU has no such memory left: lower the cache's memory, or see "
                            "with nvidia-smi who else holds it");
  }
  throw DriverError(operation, address, size, answer.name(),
                    answer.error != 0 ? std::strerror(answer.error) : "");
}

}  // namespace nvidia
}  // namespace pyvattn
