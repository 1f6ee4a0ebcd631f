// SPDX-License-Identifier: Apache-2.0
// The state behind the emulated libcuda: contexts, errors, injected failures.
#pragma once

#include <sys/types.h>

#include <array>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulation/cuda_memory.hpp"
#include "emulation/cuda_streams.hpp"
#include "emulation/libcuda.hpp"

namespace pyvattn::emulation {

constexpr int kDevices = 2;
constexpr std::size_t kDeviceBytes = std::size_t{4} << 30;

struct PrimaryContext {
  int retained = 0;
  bool active = false;
  unsigned long long id = 0;
};

// What a function needs before it may run.
enum class Needs { nothing, started, healthy, context };

class State {
 public:
  static State& instance();
  static void replace();

  // Counts the call, applies an injected failure and the function's needs, then runs it
  // with the state locked.
  cuda::Result call(const char* function, Needs needs, const std::function<cuda::Result()>& run);

  // These expect to run inside call() or under lock().
  cuda::Result start();
  cuda::Result retain(cuda::Context* context, int device);
  cuda::Result release(int device);
  void reset_context(int device);
  cuda::Result push(cuda::Context context);
  cuda::Result pop(cuda::Context* context);
  // Device of the calling thread's current context, or -1.
  int current_device() const;
  PrimaryContext* find(cuda::Context context);
  cuda::Result synchronize(cuda::Event event);
  // Writes or reads as a kernel of the device would: a fault is remembered.
  void touch(int device, cuda::Pointer address, std::size_t size, const std::function<void()>& act);
  void undefined(const std::string& what) { violations.push_back(what); }

  std::unique_lock<std::mutex> lock() { return std::unique_lock<std::mutex>(mutex_); }
  void changed() { changed_.notify_all(); }

  std::array<PrimaryContext, kDevices> contexts;
  AddressSpace memory{kDevices, kDeviceBytes};
  Streams streams;
  std::map<std::string, std::size_t> calls;
  std::map<std::string, std::map<std::size_t, cuda::Result>> failures;
  std::vector<std::string> violations;
  bool capturing = false;

  // Whether the range is mapped in page tables that CUDA's books know nothing of; null:
  // the books are all there is.
  std::function<bool(cuda::Pointer, std::size_t)> is_mapped;
  // What stands behind it (nvidia_machine.cpp); it goes when this state goes, and first.
  std::shared_ptr<void> companion;

 private:
  cuda::Result refuse(Needs needs) const;

  std::mutex mutex_;
  std::condition_variable changed_;
  pid_t process_ = 0;
  cuda::Result fault_ = cuda::kSuccess;
  unsigned long long next_context_id_ = 1;
};

// 16 bytes; no two devices share one at the same place.
void write_device_uuid(int device, unsigned char* uuid);

// The capture mode of the calling thread (cuThreadExchangeStreamCaptureMode).
int& capture_mode();

}  // namespace pyvattn::emulation
