// SPDX-License-Identifier: Apache-2.0
// Where the NVIDIA drivers of pyvattn run, and whether they may: every reason to refuse
// is found here, before anything is allocated.
#pragma once

#include <functional>
#include <string>

#include "drivers/libcuda.hpp"
#include "drivers/nvidia/abi.hpp"
#include "drivers/nvidia/constants.hpp"
#include "drivers/nvidia/nvml.hpp"
#include "drivers/nvidia/system.hpp"

namespace pyvattn {
namespace nvidia {

// The three seams: Linux, libcuda, libnvidia-ml. All must outlive what is made with them.
struct Platform {
  System* system;
  const LibCuda* cuda;
  // Loaded when it is needed: it may throw DriverUnavailable.
  std::function<const Nvml&()> nvml;
};

// The machine itself. Throws DriverUnavailable where there is no libcuda.
Platform real_platform();

struct GpuIdentity {
  Uuid uuid;
  // GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx
  std::string uuid_text;
  // The N of /dev/nvidiaN.
  int minor = -1;
};

// What the kernel module says of itself: "580.142". Throws DriverUnavailable.
std::string driver_release(System& system);

// The GPU that CUDA calls `device`. Starts CUDA. Throws ConfigError, DriverUnavailable.
GpuIdentity identify_gpu(const Platform& platform, int device);

// Throws DriverUnavailable under WSL and where the nodes of the kernel modules are missing.
void require_native_driver(System& system);

// Throws DriverUnavailable for MIG, vGPU and confidential computing, and where that
// cannot be found out.
void require_whole_gpu(const Nvml& nvml, const GpuIdentity& gpu);

}  // namespace nvidia
}  // namespace pyvattn
