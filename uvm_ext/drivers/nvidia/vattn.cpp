// SPDX-License-Identifier: Apache-2.0
#include "drivers/nvidia/vattn.hpp"

#include <cerrno>
#include <cstring>

namespace pyvattn {
namespace nvidia {
namespace {

// Parameters of the module as it is loaded: one that every release of it has, and the one
// that the patch adds.
constexpr const char* kStockParameter =
    "/sys/module/nvidia_uvm/parameters/uvm_perf_prefetch_enable";
constexpr const char* kPatchParameter = "/sys/module/nvidia_uvm/parameters/uvm_vattn_enable";
constexpr const char* kNotPatched = "nvidia-uvm is loaded but not patched";

constexpr std::uint32_t kFeatures = UVM_VATTN_FEATURE_READ_ONLY | UVM_VATTN_FEATURE_REPLACE;

PatchQuery unusable(const std::string& reason) {
  PatchQuery query;
  query.reason = reason;
  return query;
}

PatchQuery read_query(const uvm_vattn_query& call, const Answer& answer) {
  if (answer.error == EINVAL || answer.error == ENOSYS || answer.error == ENOTTY) {
    return unusable(kNotPatched);
  }
  if (!answer.ok()) return unusable("nvidia-uvm answers the query with " + answer.name());
  PatchQuery query;
  query.version = call.version;
  query.features = call.features;
  query.max_batch = call.max_batch;
  query.max_batch_ptes = call.max_batch_ptes;
  query.max_alloc_bytes = call.max_alloc_bytes;
  query.limit_bytes = call.limit_bytes;
  for (std::size_t size = UVM_VATTN_MIN_PAGE; size <= UVM_VATTN_MAX_PAGE; size <<= 1) {
    if ((call.page_sizes & size) != 0) query.page_sizes.push_back(size);
  }
  if (query.version != UVM_VATTN_VERSION) {
    query.reason = "the patched nvidia-uvm speaks version " + std::to_string(query.version) +
                   " of the interface, this pyvattn version " + std::to_string(UVM_VATTN_VERSION) +
                   ": install the one that fits the other";
  } else if ((query.features & kFeatures) != kFeatures || query.max_batch == 0) {
    query.reason = "the patched nvidia-uvm cannot replace mappings";
  } else if (query.page_sizes.empty()) {
    query.reason = "the patched nvidia-uvm does not work on this GPU";
  } else {
    query.usable = true;
  }
  return query;
}

template <typename Call>
Answer call_ioctl(System& system, int fd, unsigned long request, Call* call) noexcept {
  call->rm_status = kUnwritten;
  Answer answer;
  answer.error = system.ioctl(fd, request, call);
  answer.status = call->rm_status;
  return answer;
}

}  // namespace

PatchQuery query_patch(System& system) {
  // From release 570 on a stock module notes an ioctl that it does not know in the kernel
  // log. Where /sys tells, it is not asked.
  if (system.exists(kStockParameter) && !system.exists(kPatchParameter)) {
    return unusable(kNotPatched);
  }
  const int fd = system.open(kUvmNode);
  if (fd < 0) {
    const std::string name = Answer{-fd, kOk}.name();
    return unusable(std::string(kUvmNode) + " cannot be opened: " + name + " (" +
                    std::strerror(-fd) + ")");
  }
  const File file(system, fd);
  uvm_vattn_query call{};
  const Answer answer = call_ioctl(system, file.get(), UVM_VATTN_QUERY, &call);
  return read_query(call, answer);
}

PatchQuery VattnSpace::query() const {
  uvm_vattn_query call{};
  std::memcpy(call.gpu_uuid, uuid_.data(), uuid_.size());
  const Answer answer = call_ioctl(system_, fd_, UVM_VATTN_QUERY, &call);
  return read_query(call, answer);
}

Answer VattnSpace::allocate(std::size_t page, std::uint64_t pages,
                            std::uint64_t* handle) const noexcept {
  uvm_vattn_alloc call{};
  std::memcpy(call.gpu_uuid, uuid_.data(), uuid_.size());
  call.page_size = page;
  call.page_count = pages;
  const Answer answer = call_ioctl(system_, fd_, UVM_VATTN_ALLOC, &call);
  *handle = call.handle;
  return answer;
}

Answer VattnSpace::free(std::uint64_t handle) const noexcept {
  uvm_vattn_free call{};
  call.handle = handle;
  return call_ioctl(system_, fd_, UVM_VATTN_FREE, &call);
}

Answer VattnSpace::map(const uvm_vattn_map_entry* entries, std::size_t count,
                       std::uint32_t* failed) const noexcept {
  uvm_vattn_map call{};
  std::memcpy(call.gpu_uuid, uuid_.data(), uuid_.size());
  call.entries = reinterpret_cast<std::uint64_t>(entries);
  call.entry_count = static_cast<std::uint32_t>(count);
  call.failed_entry = UVM_VATTN_NO_ENTRY;
  const Answer answer = call_ioctl(system_, fd_, UVM_VATTN_MAP, &call);
  *failed = call.failed_entry;
  return answer;
}

Answer VattnSpace::unmap(const uvm_vattn_unmap_entry* entries, std::size_t count) const noexcept {
  uvm_vattn_unmap call{};
  std::memcpy(call.gpu_uuid, uuid_.data(), uuid_.size());
  call.entries = reinterpret_cast<std::uint64_t>(entries);
  call.entry_count = static_cast<std::uint32_t>(count);
  return call_ioctl(system_, fd_, UVM_VATTN_UNMAP, &call);
}

}  // namespace nvidia
}  // namespace pyvattn
