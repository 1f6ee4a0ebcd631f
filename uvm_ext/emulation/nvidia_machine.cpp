// SPDX-License-Identifier: Apache-2.0
#include "emulation/nvidia_machine.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "base/errors.hpp"
#include "emulation/cuda_state.hpp"

namespace pyvattn::emulation {
namespace {

using nvidia::Answer;
using nvidia::Status;

constexpr const char* kIoctls[] = {
    "NV_ESC_REGISTER_FD", "NV_ESC_RM_ALLOC", "NV_ESC_RM_FREE",
    "NV_ESC_RM_CONTROL",  "UVM_INITIALIZE",  "UVM_MAP_EXTERNAL_ALLOCATION",
    "UVM_UNMAP_EXTERNAL", "UVM_VATTN_QUERY", "UVM_VATTN_ALLOC",
    "UVM_VATTN_FREE",     "UVM_VATTN_MAP",   "UVM_VATTN_UNMAP",
};

void require_ioctl(const std::string& name) {
  for (const char* known : kIoctls) {
    if (name == known) return;
  }
  throw ConfigError("the emulated NVIDIA machine has no ioctl '" + name + "'");
}

NvidiaSettings& settings_of_now() {
  static NvidiaSettings settings;
  return settings;
}

nvidia::Layout require_layout(const std::string& release) {
  const nvidia::Layout* layout = nvidia::find_layout(release);
  if (layout == nullptr)
    throw ConfigError("no layout of driver release '" + release + "' is known");
  return *layout;
}

bool contains(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

std::string information(int minor) {
  return "Model: \t\t Emulated GPU\nDevice Minor: \t " + std::to_string(minor) + "\n";
}

class MachineSystem final : public nvidia::System {
 public:
  int open(const std::string& path) override {
    const auto locked = State::instance().lock();
    return nvidia_machine().open(path);
  }
  int duplicate(int fd) override {
    const auto locked = State::instance().lock();
    return nvidia_machine().duplicate(fd);
  }
  void close(int fd) noexcept override {
    const auto locked = State::instance().lock();
    nvidia_machine().close(fd);
  }
  int ioctl(int fd, unsigned long request, void* argument) noexcept override {
    const auto locked = State::instance().lock();
    return nvidia_machine().ioctl(fd, request, argument);
  }
  std::vector<int> descriptors_of(const std::string& path) override {
    const auto locked = State::instance().lock();
    return nvidia_machine().descriptors_of(path);
  }

  std::optional<std::string> read(const std::string& path) override {
    if (path == "/proc/driver/nvidia/version") {
      return "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  " +
             settings_of_now().release + "  Release Build  (emulated)\n";
    }
    for (int ordinal = 0; ordinal < kDevices; ++ordinal) {
      char information_path[64];
      std::snprintf(information_path, sizeof information_path,
                    "/proc/driver/nvidia/gpus/0000:%02x:00.0/information", 0x1a + ordinal);
      if (path == information_path) return information(gpu_numbers(ordinal).minor);
    }
    return std::nullopt;
  }

  bool exists(const std::string& path) override {
    const NvidiaSettings& settings = settings_of_now();
    if (path == "/dev/dxg") return settings.wsl;
    const std::string parameters = "/sys/module/nvidia_uvm/parameters/";
    if (path == parameters + "uvm_perf_prefetch_enable") return settings.sysfs;
    if (path == parameters + "uvm_vattn_enable") return settings.sysfs && settings.patched;
    return path.rfind("/dev/nvidia", 0) == 0 && !contains(settings.missing_nodes, path);
  }
};

}  // namespace

GpuNumbers gpu_numbers(int ordinal) {
  GpuNumbers numbers{};
  write_device_uuid(ordinal, numbers.uuid.data());
  numbers.minor = 3 - ordinal;
  numbers.gpu_id = 0x1a00u + 0x100u * static_cast<unsigned>(ordinal);
  numbers.instance = static_cast<std::uint32_t>(kDevices - 1 - ordinal);
  return numbers;
}

NvidiaMachine& nvidia_machine() {
  State& state = State::instance();
  if (!state.companion) {
    const auto machine = std::make_shared<NvidiaMachine>(settings_of_now());
    VaSpace& space = machine->va_space();
    state.is_mapped = [&space](cuda::Pointer address, std::size_t size) {
      return !space.touches_range({address, size}) || space.is_mapped({address, size});
    };
    state.companion = machine;
  }
  return *static_cast<NvidiaMachine*>(state.companion.get());
}

NvidiaMachine::NvidiaMachine(const NvidiaSettings& settings)
    : settings_(settings), layout_(require_layout(settings.layout_of)) {
  // What a process holds once CUDA has started, the watcher first.
  for (const Kind kind : {Kind::uvm_watcher, Kind::uvm_space}) {
    auto file = std::make_shared<OpenFile>();
    file->kind = kind;
    add_file(file);
  }
}

int NvidiaMachine::open(const std::string& path) {
  if (contains(settings_.missing_nodes, path)) return -ENOENT;
  if (contains(settings_.forbidden_nodes, path)) return -EACCES;
  auto file = std::make_shared<OpenFile>();
  if (path == nvidia::kControlNode) {
    file->kind = Kind::control;
  } else if (path == nvidia::kUvmNode) {
    file->kind = Kind::uvm_uninitialized;
  } else {
    const auto is_node = [&](int ordinal) {
      return path == nvidia::kGpuNodePrefix + std::to_string(3 - ordinal);
    };
    if (!is_node(0) && !is_node(1)) return -ENOENT;
    file->kind = Kind::gpu;
  }
  return add_file(file);
}

int NvidiaMachine::duplicate(int fd) {
  const OpenFilePtr file = find_file(fd);
  if (!file) return -EBADF;
  return add_file(file);
}

void NvidiaMachine::close(int fd) {
  const OpenFilePtr file = find_file(fd);
  files_.erase(fd);
  if (!file) return;
  for (const auto& [other, open] : files_) {
    if (open == file) return;
  }
  for (auto client = clients_.begin(); client != clients_.end();) {
    client = client->second.control == file ? clients_.erase(client) : std::next(client);
  }
}

std::vector<int> NvidiaMachine::descriptors_of(const std::string& path) const {
  std::vector<int> found;
  for (const auto& [fd, file] : files_) {
    const bool uvm = file->kind != Kind::control && file->kind != Kind::gpu;
    if (path == nvidia::kUvmNode && uvm) found.push_back(fd);
  }
  return found;
}

NvidiaMachine::OpenFilePtr NvidiaMachine::find_file(int fd) const {
  const auto found = files_.find(fd);
  return found == files_.end() ? nullptr : found->second;
}

// No number is used twice, so that a driver that outlived its machine closes nothing of
// the next one.
int NvidiaMachine::add_file(const OpenFilePtr& file) {
  static int next = 1 << 20;
  files_.emplace(next, file);
  return next++;
}

int NvidiaMachine::ioctl(int fd, unsigned long request, void* argument) {
  const OpenFilePtr file = find_file(fd);
  if (!file) return EBADF;
  const bool rm = file->kind == Kind::control || file->kind == Kind::gpu;
  return rm ? rm_ioctl(file, request, argument) : uvm_ioctl(file, request, argument);
}

Answer NvidiaMachine::begin(const char* ioctl) {
  const std::size_t number = ++calls_[ioctl];
  std::map<std::size_t, Answer>& planned = planned_[ioctl];
  const auto found = planned.find(number);
  if (found == planned.end()) return {};
  const Answer answer = found->second;
  planned.erase(found);
  return answer;
}

void NvidiaMachine::plan_failure(const std::string& ioctl, std::size_t nth, Answer answer) {
  planned_[ioctl][calls_[ioctl] + nth] = answer;
}

std::size_t NvidiaMachine::calls(const std::string& ioctl) const {
  const auto found = calls_.find(ioctl);
  return found == calls_.end() ? 0 : found->second;
}

NvidiaHoldings NvidiaMachine::holdings() const {
  NvidiaHoldings now;
  now.clients = clients_.size();
  for (const auto& [handle, client] : clients_) now.objects += client.objects.size();
  // Two belong to CUDA.
  now.descriptors = files_.size() - 2;
  now.vattn_handles = vattn_handles_.size();
  return now;
}

namespace nvidia_control {

void reset(const NvidiaSettings& settings) {
  require_layout(settings.layout_of);
  settings_of_now() = settings;
  control::reset();
}

void fail(const std::string& ioctl, std::size_t nth, Status status) {
  require_ioctl(ioctl);
  const auto locked = State::instance().lock();
  nvidia_machine().plan_failure(ioctl, nth, {0, status});
}

void fail_call(const std::string& ioctl, std::size_t nth, int error) {
  require_ioctl(ioctl);
  const auto locked = State::instance().lock();
  nvidia_machine().plan_failure(ioctl, nth, {error, nvidia::kOk});
}

std::size_t calls(const std::string& ioctl) {
  require_ioctl(ioctl);
  const auto locked = State::instance().lock();
  return nvidia_machine().calls(ioctl);
}

NvidiaHoldings holdings() {
  const auto locked = State::instance().lock();
  return nvidia_machine().holdings();
}

std::vector<std::string> mappings() {
  const auto locked = State::instance().lock();
  std::vector<std::string> lines;
  for (const auto& [start, mapping] : nvidia_machine().va_space().mappings()) {
    char line[96];
    std::snprintf(line, sizeof line, "0x%llx +%zuK by %zuK %s %s",
                  static_cast<unsigned long long>(start), mapping.length >> 10, mapping.entry >> 10,
                  mapping.writable ? "read-write" : "read-only",
                  !mapping.memory ? "cuda"
                  : mapping.vattn ? "vattn"
                                  : "external");
    lines.emplace_back(line);
  }
  return lines;
}

}  // namespace nvidia_control

namespace {

nvidia::NvmlResult nvml_ok() { return nvidia::kNvmlSuccess; }

const char* nvml_text(nvidia::NvmlResult result) {
  return result == nvidia::kNvmlSuccess ? "Success" : "Not Found";
}

nvidia::NvmlResult nvml_device(const char* uuid, nvidia::NvmlDevice* device) {
  constexpr nvidia::NvmlResult kNotFound = 6;
  *device = nullptr;
  return std::strncmp(uuid, "GPU-", 4) == 0 ? nvidia::kNvmlSuccess : kNotFound;
}

nvidia::NvmlResult nvml_mig(nvidia::NvmlDevice, unsigned* current, unsigned* pending) {
  *current = *pending = settings_of_now().mig ? nvidia::kNvmlMigEnabled : 0;
  return nvidia::kNvmlSuccess;
}

nvidia::NvmlResult nvml_virtualization(nvidia::NvmlDevice, int* mode) {
  *mode = settings_of_now().vgpu ? nvidia::kNvmlVirtualizationVgpu : 0;
  return nvidia::kNvmlSuccess;
}

nvidia::NvmlResult nvml_confidential(nvidia::NvmlConfidentialState* state) {
  state->feature = settings_of_now().confidential ? nvidia::kNvmlConfidentialEnabled : 0;
  return nvidia::kNvmlSuccess;
}

const nvidia::Nvml& emulated_nvml() {
  if (!settings_of_now().nvml) {
    throw DriverUnavailable("libnvidia-ml.so.1 cannot be loaded on the emulated machine");
  }
  static const nvidia::Nvml table = {
      nvml_ok, nvml_ok, nvml_text, nvml_device, nvml_mig, nvml_virtualization, nvml_confidential};
  return table;
}

}  // namespace

nvidia::Platform nvidia_platform() {
  static MachineSystem system;
  return {&system, &nvidia_libcuda(), []() -> const nvidia::Nvml& { return emulated_nvml(); }};
}

}  // namespace pyvattn::emulation
