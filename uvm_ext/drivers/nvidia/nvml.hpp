// SPDX-License-Identifier: Apache-2.0
// The part of NVIDIA's management library that pyvattn calls, as a table of functions:
// the public way to learn how a GPU is shared. Opened with dlopen; emulation fills the
// table with functions of its own.
#pragma once

namespace pyvattn {
namespace nvidia {

using NvmlResult = int;
using NvmlDevice = struct NvmlDeviceObject*;

constexpr NvmlResult kNvmlSuccess = 0;
constexpr NvmlResult kNvmlNotSupported = 3;
constexpr NvmlResult kNvmlFunctionNotFound = 13;

constexpr unsigned kNvmlMigEnabled = 1;
constexpr int kNvmlVirtualizationVgpu = 2;
constexpr unsigned kNvmlConfidentialEnabled = 1;

struct NvmlConfidentialState {
  unsigned environment = 0;
  unsigned feature = 0;
  unsigned development_tools = 0;
};

struct Nvml {
  NvmlResult (*init)() = nullptr;
  NvmlResult (*shutdown)() = nullptr;
  const char* (*error_text)(NvmlResult) = nullptr;
  NvmlResult (*device_by_uuid)(const char* uuid, NvmlDevice* device) = nullptr;
  NvmlResult (*mig_mode)(NvmlDevice device, unsigned* current, unsigned* pending) = nullptr;
  NvmlResult (*virtualization_mode)(NvmlDevice device, int* mode) = nullptr;
  // Null before release 535, which had no confidential computing.
  NvmlResult (*confidential_state)(NvmlConfidentialState* state) = nullptr;
};

// Throws DriverUnavailable where libnvidia-ml.so.1 cannot be loaded.
const Nvml& real_nvml();

}  // namespace nvidia
}  // namespace pyvattn
