// SPDX-License-Identifier: Apache-2.0
#include "drivers/nvidia/uvm_space.hpp"

#include <string>

#include "base/errors.hpp"
#include "drivers/nvidia/borders.hpp"

namespace pyvattn {
namespace nvidia {
namespace {

// Fields of UVM_MAP_EXTERNAL_ALLOCATION_PARAMS, UVM_UNMAP_EXTERNAL_PARAMS and
// UvmGpuMappingAttributes that never moved.
constexpr unsigned kBase = 0;
constexpr unsigned kLength = 8;
constexpr unsigned kOffset = 16;
constexpr unsigned kMappingType = sizeof(Uuid);

Parameters unmap_parameters(const Layout& layout, const Uuid& uuid) {
  Parameters call;
  call.set_bytes(layout.unmap_uuid, uuid.data(), uuid.size());
  return call;
}

Parameters map_parameters(const Layout& layout, const Uuid& uuid) {
  Parameters call;
  call.set_bytes(layout.map_per_gpu, uuid.data(), uuid.size());
  call.set<std::uint64_t>(layout.map_gpu_count, 1);
  return call;
}

Answer call_unmap(System& system, const Layout& layout, int fd, Parameters& call,
                  const Range& range) noexcept {
  call.set<std::uint64_t>(kBase, range.address);
  call.set<std::uint64_t>(kLength, range.length);
  call.set<Status>(layout.unmap_status, kUnwritten);
  Answer answer;
  answer.error = system.ioctl(fd, layout.unmap_number, call.data());
  answer.status = call.get<Status>(layout.unmap_status);
  return answer;
}

}  // namespace

UvmSpace::UvmSpace(System& system, const Layout& layout, const Uuid& uuid, const Range& probe,
                   std::size_t chunk)
    : system_(system),
      layout_(layout),
      chunk_(chunk),
      file_(find(system, layout, uuid, probe)),
      map_call_(map_parameters(layout, uuid)),
      unmap_call_(unmap_parameters(layout, uuid)) {}

// CUDA holds more than one: the address space, and a second descriptor that only watches
// the process's memory map. Only the address space that owns the addresses lets an unmap
// pass; the others refuse it and change nothing.
File UvmSpace::find(System& system, const Layout& layout, const Uuid& uuid, const Range& probe) {
  std::string seen;
  for (int fd : system.descriptors_of(kUvmNode)) {
    Parameters call = unmap_parameters(layout, uuid);
    const Answer answer = call_unmap(system, layout, fd, call, probe);
    if (answer.ok()) {
      const int copy = system.duplicate(fd);
      if (copy >= 0) return File(system, copy);
      seen += " " + std::to_string(fd) + ": cannot be duplicated,";
      continue;
    }
    seen += " " + std::to_string(fd) + ": " + answer.name() + ",";
  }
  throw DriverUnavailable(
      std::string("no descriptor of ") + kUvmNode + " in this process owns CUDA's addresses (" +
      (seen.empty() ? "none is open" : "tried" + seen.substr(0, seen.size() - 1)) + ")");
}

Answer UvmSpace::map(const Range& range, const MemoryRef& memory, std::size_t offset,
                     std::uint32_t mapping_type) noexcept {
  map_call_.set<std::uint32_t>(layout_.map_per_gpu + kMappingType, mapping_type);
  map_call_.set<std::int32_t>(layout_.map_rm_control_fd, memory.control_fd);
  map_call_.set<Handle>(layout_.map_client, memory.client);
  map_call_.set<Handle>(layout_.map_memory, memory.memory);
  Answer answer;
  for_each_chunk(range, chunk_, [&](const Range& part) {
    if (answer.ok()) answer = map_part(part, offset + (part.address - range.address));
  });
  return answer;
}

Answer UvmSpace::map_part(const Range& range, std::size_t offset) noexcept {
  map_call_.set<std::uint64_t>(kBase, range.address);
  map_call_.set<std::uint64_t>(kLength, range.length);
  map_call_.set<std::uint64_t>(kOffset, offset);
  map_call_.set<Status>(layout_.map_status, kUnwritten);
  Answer answer;
  answer.error = system_.ioctl(file_.get(), layout_.map_number, map_call_.data());
  answer.status = map_call_.get<Status>(layout_.map_status);
  return answer;
}

Answer UvmSpace::unmap(const Range& range, std::size_t* done) noexcept {
  Answer answer;
  std::size_t unmapped = 0;
  for_each_chunk(range, chunk_, [&](const Range& part) {
    if (!answer.ok()) return;
    answer = call_unmap(system_, layout_, file_.get(), unmap_call_, part);
    if (answer.ok()) unmapped += part.length;
  });
  if (done != nullptr) *done = unmapped;
  return answer;
}

}  // namespace nvidia
}  // namespace pyvattn
