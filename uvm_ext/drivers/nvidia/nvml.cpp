// SPDX-License-Identifier: Apache-2.0
#include "drivers/nvidia/nvml.hpp"

#include <dlfcn.h>

#include <string>

#include "base/errors.hpp"

namespace pyvattn {
namespace nvidia {
namespace {

constexpr const char* kLibrary = "libnvidia-ml.so.1";

template <typename Function>
void resolve(void* library, const char* symbol, Function** function) {
  *function = reinterpret_cast<Function*>(::dlsym(library, symbol));
}

Nvml load() {
  void* library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw DriverUnavailable(std::string(kLibrary) +
                            " cannot be loaded, so that MIG, vGPU and confidential computing "
                            "cannot be ruled out; in a container, ask for the driver capability "
                            "'utility'");
  }
  Nvml table;
  resolve(library, "nvmlInit_v2", &table.init);
  resolve(library, "nvmlShutdown", &table.shutdown);
  resolve(library, "nvmlErrorString", &table.error_text);
  resolve(library, "nvmlDeviceGetHandleByUUID", &table.device_by_uuid);
  resolve(library, "nvmlDeviceGetMigMode", &table.mig_mode);
  resolve(library, "nvmlDeviceGetVirtualizationMode", &table.virtualization_mode);
  resolve(library, "nvmlSystemGetConfComputeState", &table.confidential_state);
  if (!table.init || !table.shutdown || !table.error_text || !table.device_by_uuid ||
      !table.mig_mode || !table.virtualization_mode) {
    throw DriverUnavailable(std::string(kLibrary) + " is too old to tell how the GPU is shared");
  }
  return table;
}

}  // namespace

const Nvml& real_nvml() {
  static const Nvml table = load();
  return table;
}

}  // namespace nvidia
}  // namespace pyvattn
