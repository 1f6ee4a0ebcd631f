// SPDX-License-Identifier: Apache-2.0
#include "drivers/nvidia/platform.hpp"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "base/errors.hpp"
#include "drivers/cuda_context.hpp"

namespace pyvattn {
namespace nvidia {
namespace {

constexpr const char* kBlanks = " \t\r\n";

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  for (std::size_t end = 0;;) {
    const std::size_t start = text.find_first_not_of(kBlanks, end);
    if (start == std::string::npos) return words;
    end = std::min(text.find_first_of(kBlanks, start), text.size());
    words.push_back(text.substr(start, end - start));
  }
}

std::string format_uuid(const Uuid& uuid) {
  std::string text = "GPU-";
  for (std::size_t i = 0; i < uuid.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    char byte[3];
    std::snprintf(byte, sizeof byte, "%02x", uuid[i]);
    text += byte;
  }
  return text;
}

// The line "Device Minor: 	 3" of /proc/driver/nvidia/gpus/<bus id>/information.
int read_minor(System& system, const std::string& bus_id) {
  const std::string path = "/proc/driver/nvidia/gpus/" + bus_id + "/information";
  const std::optional<std::string> text = system.read(path);
  if (!text) throw DriverUnavailable(path + " cannot be read, so the GPU's node is not known");
  const std::string label = "Device Minor:";
  const std::size_t found = text->find(label);
  const std::size_t start =
      found == std::string::npos ? found : text->find_first_not_of(kBlanks, found + label.size());
  if (start == std::string::npos || std::isdigit(static_cast<unsigned char>((*text)[start])) == 0) {
    throw DriverUnavailable(path + " names no device minor");
  }
  return static_cast<int>(std::strtol(text->c_str() + start, nullptr, 10));
}

// Two or three numbers with points between, the first of three digits: 580.142, 535.261.03.
bool is_release(const std::string& word) {
  const std::string digits = "0123456789";
  std::size_t numbers = 0;
  for (std::size_t start = 0; start <= word.size();) {
    const std::size_t end = std::min(word.find('.', start), word.size());
    const std::string number = word.substr(start, end - start);
    if (number.empty() || number.find_first_not_of(digits) != std::string::npos) return false;
    if (numbers++ == 0 && number.size() != 3) return false;
    start = end + 1;
  }
  return numbers == 2 || numbers == 3;
}

std::string lower(std::string text) {
  for (char& letter : text) letter = static_cast<char>(std::tolower(letter));
  return text;
}

class NvmlSession {
 public:
  explicit NvmlSession(const Nvml& nvml) : nvml_(nvml) { require(nvml.init(), "nvmlInit"); }
  ~NvmlSession() { nvml_.shutdown(); }
  NvmlSession(const NvmlSession&) = delete;
  NvmlSession& operator=(const NvmlSession&) = delete;

  // False where the GPU or the library does not know the feature that was asked for.
  bool answered(NvmlResult result, const char* function) const {
    if (result == kNvmlNotSupported || result == kNvmlFunctionNotFound) return false;
    require(result, function);
    return true;
  }
  void require(NvmlResult result, const char* function) const {
    if (result == kNvmlSuccess) return;
    throw DriverUnavailable(std::string(function) + " failed (" + nvml_.error_text(result) +
                            "), so that MIG, vGPU and confidential computing cannot be ruled out");
  }

 private:
  const Nvml& nvml_;
};

}  // namespace

Platform real_platform() {
  return {&real_system(), &real_libcuda(), []() -> const Nvml& { return real_nvml(); }};
}

std::string driver_release(System& system) {
  const char* const path = "/proc/driver/nvidia/version";
  const std::optional<std::string> text = system.read(path);
  if (!text) {
    throw DriverUnavailable(std::string(path) +
                            " cannot be read, so the driver's release is not known");
  }
  for (const std::string& word : words_of(*text)) {
    if (is_release(word)) return word;
  }
  throw DriverUnavailable(std::string(path) + " names no driver release");
}

GpuIdentity identify_gpu(const Platform& platform, int device) {
  const LibCuda& cuda = *platform.cuda;
  const cuda::Device handle = find_cuda_device(cuda, device);
  GpuIdentity gpu;
  check_cuda(cuda, "identify device (cuDeviceGetUuid_v2)", 0, 0,
             cuda.cuDeviceGetUuid_v2(gpu.uuid.data(), handle));
  gpu.uuid_text = format_uuid(gpu.uuid);
  char bus_id[32] = {};
  check_cuda(cuda, "identify device (cuDeviceGetPCIBusId)", 0, 0,
             cuda.cuDeviceGetPCIBusId(bus_id, sizeof bus_id, handle));
  gpu.minor = read_minor(*platform.system, lower(bus_id));
  return gpu;
}

void require_native_driver(System& system) {
  if (system.exists("/dev/dxg")) {
    throw DriverUnavailable(
        "this is WSL, where the GPU is reached through Windows and not through nvidia-uvm");
  }
  for (const char* node : {kControlNode, kUvmNode}) {
    if (system.exists(node)) continue;
    throw DriverUnavailable(std::string(node) +
                            " is missing: the NVIDIA kernel modules are not loaded, or this "
                            "container was not given the node");
  }
}

void require_whole_gpu(const Nvml& nvml, const GpuIdentity& gpu) {
  const NvmlSession session(nvml);
  NvmlDevice device = nullptr;
  session.require(nvml.device_by_uuid(gpu.uuid_text.c_str(), &device), "nvmlDeviceGetHandleByUUID");
  unsigned mig = 0;
  unsigned pending = 0;
  if (session.answered(nvml.mig_mode(device, &mig, &pending), "nvmlDeviceGetMigMode") &&
      mig == kNvmlMigEnabled) {
    throw DriverUnavailable(gpu.uuid_text + " is in MIG mode");
  }
  int virtualization = 0;
  if (session.answered(nvml.virtualization_mode(device, &virtualization),
                       "nvmlDeviceGetVirtualizationMode") &&
      virtualization == kNvmlVirtualizationVgpu) {
    throw DriverUnavailable(gpu.uuid_text + " is a vGPU");
  }
  NvmlConfidentialState confidential;
  if (nvml.confidential_state != nullptr &&
      session.answered(nvml.confidential_state(&confidential), "nvmlSystemGetConfComputeState") &&
      confidential.feature == kNvmlConfidentialEnabled) {
    throw DriverUnavailable("confidential computing is on");
  }
}

}  // namespace nvidia
}  // namespace pyvattn
