// SPDX-License-Identifier: Apache-2.0
// Shows map, unmap and zero to an attached profiler as NVTX ranges of the thread that calls,
// which may be the mapper's.
#pragma once

#include <string>

#include "adaptors/adaptor.hpp"

namespace pyvattn {

// What NVTX's libraries export: the depth of the range, or a negative number without a profiler.
struct RangeCalls {
  int (*push)(const char* name) = nullptr;
  int (*pop)() = nullptr;
};

class RangesAdaptor final : public Adaptor {
 public:
  // Loads `library`, a file or a name that the loader finds. Throws ConfigError for one that is
  // not there or has no nvtxRangePushA and nvtxRangePop.
  RangesAdaptor(DriverPtr inner, const std::string& library);

  void map(const std::vector<MapEntry>& batch) override;
  void unmap(const std::vector<MapEntry>& batch) override;
  FencePtr zero(const std::vector<Range>& batch, const FencePtr& after) override;

 private:
  const RangeCalls calls_;
};

}  // namespace pyvattn
