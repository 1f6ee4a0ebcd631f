// SPDX-License-Identifier: Apache-2.0
// Streams and events of the emulated CUDA devices.
//
// Nothing runs until a query or a wait: work that a driver forgot to wait for
// has not happened yet, every time and not only when a GPU is slow.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>

#include "drivers/libcuda.hpp"

namespace pyvattn::emulation {

class Streams {
 public:
  using Work = std::function<void()>;

  cuda::Stream create_stream(int device);
  // What was submitted still runs, as on a device.
  cuda::Result destroy_stream(cuda::Stream stream);
  cuda::Event create_event(int device);
  cuda::Result destroy_event(cuda::Event event);

  // A null stream is the default stream of `device`.
  cuda::Result submit(cuda::Stream stream, int device, Work work);
  cuda::Result record(cuda::Event event, cuda::Stream stream, int device);
  cuda::Result wait(cuda::Stream stream, int device, cuda::Event event);

  // Stops the stream here until open(); what stands for a kernel that is still running.
  cuda::Result close_gate(cuda::Stream stream, int device, std::uint64_t* gate);
  void open_gate(std::uint64_t gate);

  // Runs all work that waits for nothing.
  void advance();
  // Success, not ready, or invalid handle.
  cuda::Result query(cuda::Event event) const;

  // Drops the device's streams and events with the work in them.
  void destroy(int device);
  std::size_t streams() const;
  std::size_t events() const { return events_.size(); }

 private:
  // A point that work may wait for.
  struct Point {
    bool reached = false;
  };
  using PointPtr = std::shared_ptr<Point>;
  struct Operation {
    PointPtr waits_for;
    Work work;
  };
  struct Queue {
    int device = 0;
    bool destroyed = false;
    std::deque<Operation> operations;
  };
  struct Recorded {
    int device = 0;
    // Null until the event is recorded: CUDA treats such an event as complete.
    PointPtr point;
  };

  Queue* find(cuda::Stream stream, int device);
  bool run_ready(Queue& queue);

  std::uint64_t next_handle_ = 0x5000;
  std::map<std::uintptr_t, Queue> queues_;
  std::map<int, Queue> default_queues_;
  std::map<std::uintptr_t, Recorded> events_;
  std::map<std::uint64_t, PointPtr> gates_;
};

}  // namespace pyvattn::emulation
