// SPDX-License-Identifier: Apache-2.0
#include "drivers/libcuda.hpp"

#include <dlfcn.h>

#include "base/errors.hpp"

namespace pyvattn {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";

std::string driver_version(const LibCuda& library) {
  int version = 0;
  if (library.cuDriverGetVersion == nullptr ||
      library.cuDriverGetVersion(&version) != cuda::kSuccess) {
    return "of unknown version";
  }
  return "for CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

LibCuda load() {
  void* handle = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = ::dlerror();
    throw DriverUnavailable(std::string("no NVIDIA driver library: ") +
                            (reason != nullptr ? reason : kLibrary) +
                            "; install NVIDIA's driver, or start the container with access to the "
                            "GPUs (docker run --gpus all); device='cpu' needs neither");
  }
  LibCuda library;
  const char* missing = nullptr;
#define PYVATTN_RESOLVE(name, symbol, parameters)                         \
  library.name = reinterpret_cast<cuda::Result(*) parameters>(            \
      ::dlsym(handle, #symbol)); /* NOLINT(bugprone-macro-parentheses) */ \
  if (library.name == nullptr && missing == nullptr) missing = #symbol;
  PYVATTN_LIBCUDA_FUNCTIONS(PYVATTN_RESOLVE)
#undef PYVATTN_RESOLVE
  if (missing != nullptr) {
    // The library stays open: closing one that has started threads is not safe.
    throw DriverUnavailable(std::string(kLibrary) + " (" + driver_version(library) + ") has no " +
                            missing +
                            ": pyvattn needs a driver for CUDA 12.0 or later (525.60 or newer)");
  }
  return library;
}

bool is_sticky(cuda::Result result) {
  switch (result) {
    case cuda::kEccUncorrectable:
    case cuda::kNvlinkUncorrectable:
    case cuda::kIllegalAddress:
    case cuda::kLaunchTimeout:
    case cuda::kAssert:
      return true;
    default:
      return result >= cuda::kHardwareStackError && result <= cuda::kLaunchFailed;
  }
}

std::string remedy(cuda::Result result) {
  switch (result) {
    case cuda::kDeinitialized:
    case cuda::kInvalidContext:
    case cuda::kContextIsDestroyed:
      return "; the CUDA context was reset or destroyed, and the cache's memory with it: close "
             "this cache and make a new one";
    case cuda::kNotInitialized:
      return "; CUDA does not survive fork(): start worker processes with the method 'spawn'";
    default:
      return is_sticky(result) ? "; a kernel failed earlier and CUDA refuses every call since: "
                                 "restart the process, and find the kernel with "
                                 "CUDA_LAUNCH_BLOCKING=1 or compute-sanitizer"
                               : "";
  }
}

std::string memory_report(const LibCuda& library) {
  std::size_t free = 0;
  std::size_t total = 0;
  if (library.cuMemGetInfo(&free, &total) != cuda::kSuccess) return "";
  return "; " + std::to_string(free) + " of the device's " + std::to_string(total) +
         " bytes are free: give memory back (torch.cuda.empty_cache(), other processes), lower "
         "the cache's limit, or wait";
}

}  // namespace

const LibCuda& real_libcuda() {
  static const LibCuda library = load();
  return library;
}

void start_cuda(const LibCuda& library) {
  const cuda::Result result = library.cuInit(0);
  if (result == cuda::kSuccess) return;
  const char* advice = "; `nvidia-smi` shows whether the driver works on this machine";
  if (result == cuda::kNoDevice) {
    advice = "; CUDA sees no GPU here: check nvidia-smi and CUDA_VISIBLE_DEVICES";
  } else if (result == cuda::kNotInitialized) {
    advice = "; CUDA does not survive fork(): start worker processes with the method 'spawn'";
  }
  throw DriverUnavailable("cuInit failed: " + cuda_name(library, result) + " (" +
                          cuda_text(library, result) + ")" + advice);
}

std::string cuda_name(const LibCuda& library, cuda::Result result) {
  const char* name = nullptr;
  if (library.cuGetErrorName(result, &name) == cuda::kSuccess && name != nullptr) return name;
  return "CUresult " + std::to_string(result);
}

std::string cuda_text(const LibCuda& library, cuda::Result result) {
  const char* text = nullptr;
  if (library.cuGetErrorString(result, &text) == cuda::kSuccess && text != nullptr) return text;
  return "a status that this driver library does not describe";
}

void throw_cuda(const LibCuda& library, const char* operation, std::uint64_t address,
                std::size_t size, cuda::Result result) {
  const std::string name = cuda_name(library, result);
  const std::string text = cuda_text(library, result);
  if (result == cuda::kOutOfMemory) {
    throw DriverOutOfMemory(operation, address, size, name, text + memory_report(library));
  }
  throw DriverError(operation, address, size, name, text + remedy(result));
}

void check_cuda(const LibCuda& library, const char* operation, std::uint64_t address,
                std::size_t size, cuda::Result result) {
  if (result != cuda::kSuccess) throw_cuda(library, operation, address, size, result);
}

}  // namespace pyvattn
