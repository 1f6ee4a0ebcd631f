// SPDX-License-Identifier: Apache-2.0
#include "emulation/cuda_streams.hpp"

#include <algorithm>
#include <utility>

namespace pyvattn::emulation {
namespace {

std::uintptr_t key(const void* handle) { return reinterpret_cast<std::uintptr_t>(handle); }

template <typename Map>
void erase_device(Map& map, int device) {
  for (auto entry = map.begin(); entry != map.end();) {
    entry = entry->second.device == device ? map.erase(entry) : std::next(entry);
  }
}

}  // namespace

cuda::Stream Streams::create_stream(int device) {
  const std::uintptr_t handle = next_handle_++;
  queues_[handle].device = device;
  return reinterpret_cast<cuda::Stream>(handle);
}

cuda::Result Streams::destroy_stream(cuda::Stream stream) {
  const auto found = queues_.find(key(stream));
  if (found == queues_.end() || found->second.destroyed) return cuda::kInvalidHandle;
  found->second.destroyed = true;
  return cuda::kSuccess;
}

cuda::Event Streams::create_event(int device) {
  const std::uintptr_t handle = next_handle_++;
  events_[handle].device = device;
  return reinterpret_cast<cuda::Event>(handle);
}

cuda::Result Streams::destroy_event(cuda::Event event) {
  return events_.erase(key(event)) == 1 ? cuda::kSuccess : cuda::kInvalidHandle;
}

Streams::Queue* Streams::find(cuda::Stream stream, int device) {
  if (stream == nullptr) {
    default_queues_[device].device = device;
    return &default_queues_[device];
  }
  const auto found = queues_.find(key(stream));
  const bool usable = found != queues_.end() && !found->second.destroyed;
  return usable ? &found->second : nullptr;
}

cuda::Result Streams::submit(cuda::Stream stream, int device, Work work) {
  Queue* queue = find(stream, device);
  if (queue == nullptr || queue->device != device) return cuda::kInvalidHandle;
  queue->operations.push_back({nullptr, std::move(work)});
  return cuda::kSuccess;
}

cuda::Result Streams::record(cuda::Event event, cuda::Stream stream, int device) {
  const auto found = events_.find(key(event));
  Queue* queue = find(stream, device);
  if (found == events_.end() || queue == nullptr || found->second.device != queue->device) {
    return cuda::kInvalidHandle;
  }
  const auto point = std::make_shared<Point>();
  found->second.point = point;
  queue->operations.push_back({nullptr, [point] { point->reached = true; }});
  return cuda::kSuccess;
}

cuda::Result Streams::wait(cuda::Stream stream, int device, cuda::Event event) {
  const auto found = events_.find(key(event));
  Queue* queue = find(stream, device);
  if (found == events_.end() || queue == nullptr) return cuda::kInvalidHandle;
  queue->operations.push_back({found->second.point, [] {}});
  return cuda::kSuccess;
}

cuda::Result Streams::close_gate(cuda::Stream stream, int device, std::uint64_t* gate) {
  Queue* queue = find(stream, device);
  if (queue == nullptr) return cuda::kInvalidHandle;
  *gate = next_handle_++;
  gates_[*gate] = std::make_shared<Point>();
  queue->operations.push_back({gates_[*gate], [] {}});
  return cuda::kSuccess;
}

void Streams::open_gate(std::uint64_t gate) {
  const auto found = gates_.find(gate);
  if (found == gates_.end()) return;
  found->second->reached = true;
  gates_.erase(found);
}

bool Streams::run_ready(Queue& queue) {
  bool moved = false;
  while (!queue.operations.empty()) {
    const Operation& next = queue.operations.front();
    if (next.waits_for && !next.waits_for->reached) break;
    next.work();
    queue.operations.pop_front();
    moved = true;
  }
  return moved;
}

void Streams::advance() {
  for (bool moved = true; moved;) {
    moved = false;
    for (auto& [device, queue] : default_queues_) moved |= run_ready(queue);
    for (auto& [handle, queue] : queues_) moved |= run_ready(queue);
  }
  for (auto queue = queues_.begin(); queue != queues_.end();) {
    const bool finished = queue->second.destroyed && queue->second.operations.empty();
    queue = finished ? queues_.erase(queue) : std::next(queue);
  }
}

cuda::Result Streams::query(cuda::Event event) const {
  const auto found = events_.find(key(event));
  if (found == events_.end()) return cuda::kInvalidHandle;
  const PointPtr& point = found->second.point;
  return point && !point->reached ? cuda::kNotReady : cuda::kSuccess;
}

void Streams::destroy(int device) {
  erase_device(queues_, device);
  erase_device(default_queues_, device);
  erase_device(events_, device);
}

std::size_t Streams::streams() const {
  return static_cast<std::size_t>(std::count_if(
      queues_.begin(), queues_.end(), [](const auto& entry) { return !entry.second.destroyed; }));
}

}  // namespace pyvattn::emulation
