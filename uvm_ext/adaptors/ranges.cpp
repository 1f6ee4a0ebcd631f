// SPDX-License-Identifier: Apache-2.0
#include "adaptors/ranges.hpp"

#include <dlfcn.h>

#include "base/errors.hpp"

namespace pyvattn {
namespace {

RangeCalls load(const std::string& library) {
  void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = ::dlerror();
    throw ConfigError("no NVTX in " + library + ": " + (reason != nullptr ? reason : "not loaded"));
  }
  // It stays open: a profiler may have hooked itself into it.
  RangeCalls calls;
  calls.push = reinterpret_cast<decltype(calls.push)>(::dlsym(handle, "nvtxRangePushA"));
  calls.pop = reinterpret_cast<decltype(calls.pop)>(::dlsym(handle, "nvtxRangePop"));
  if (calls.push == nullptr || calls.pop == nullptr) {
    throw ConfigError("no NVTX in " + library + ": it has no nvtxRangePushA and nvtxRangePop");
  }
  return calls;
}

class Shown {
 public:
  Shown(const RangeCalls& calls, const char* name) : calls_(calls) { calls_.push(name); }
  Shown(const Shown&) = delete;
  Shown& operator=(const Shown&) = delete;
  ~Shown() { calls_.pop(); }

 private:
  const RangeCalls& calls_;
};

}  // namespace

RangesAdaptor::RangesAdaptor(DriverPtr inner, const std::string& library)
    : Adaptor(std::move(inner)), calls_(load(library)) {}

void RangesAdaptor::map(const std::vector<MapEntry>& batch) {
  const Shown shown(calls_, "pyvattn.map");
  inner().map(batch);
}

void RangesAdaptor::unmap(const std::vector<MapEntry>& batch) {
  const Shown shown(calls_, "pyvattn.unmap");
  inner().unmap(batch);
}

FencePtr RangesAdaptor::zero(const std::vector<Range>& batch, const FencePtr& after) {
  const Shown shown(calls_, "pyvattn.zero");
  return inner().zero(batch, after);
}

}  // namespace pyvattn
