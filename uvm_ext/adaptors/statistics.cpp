// SPDX-License-Identifier: Apache-2.0
#include "adaptors/statistics.hpp"

#include <chrono>

#include "drivers/batch.hpp"

namespace pyvattn {
namespace {

// Adds the call to the counts when the scope ends, however it ends.
class Record {
 public:
  Record(std::mutex& mutex, OperationCount& count, std::uint64_t calls, std::uint64_t bytes)
      : mutex_(mutex), count_(count), calls_(calls), bytes_(bytes) {}
  Record(const Record&) = delete;
  Record& operator=(const Record&) = delete;
  ~Record() {
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
    const std::lock_guard<std::mutex> lock(mutex_);
    ++count_.batches;
    count_.calls += calls_;
    count_.seconds += elapsed.count();
    if (succeeded_) {
      count_.bytes += bytes_;
    } else {
      ++count_.failures;
    }
  }
  void succeeded() { succeeded_ = true; }

 private:
  std::mutex& mutex_;
  OperationCount& count_;
  const std::uint64_t calls_;
  const std::uint64_t bytes_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  bool succeeded_ = false;
};

template <typename Entry>
std::uint64_t total_length(const std::vector<Entry>& batch) {
  std::uint64_t bytes = 0;
  for (const Entry& entry : batch) bytes += entry.length;
  return bytes;
}

}  // namespace

const char* operation_name(Operation operation) {
  static const char* const names[kOperations] = {
      "reserve", "release_reservation", "allocate_slab", "free_slab", "map", "unmap", "zero"};
  return names[static_cast<std::size_t>(operation)];
}

template <typename Call>
auto StatisticsAdaptor::timed(Operation operation, std::uint64_t calls, std::uint64_t bytes,
                              Call call) {
  Record record(mutex_, counts_[static_cast<std::size_t>(operation)], calls, bytes);
  if constexpr (std::is_void_v<decltype(call())>) {
    call();
    record.succeeded();
  } else {
    auto result = call();
    record.succeeded();
    return result;
  }
}

Address StatisticsAdaptor::reserve(std::size_t bytes, std::size_t alignment) {
  return timed(Operation::reserve, 1, bytes, [&] { return inner().reserve(bytes, alignment); });
}

void StatisticsAdaptor::release_reservation(Address address) {
  timed(Operation::release_reservation, 1, 0, [&] { inner().release_reservation(address); });
}

SlabId StatisticsAdaptor::allocate_slab(std::size_t bytes) {
  return timed(Operation::allocate_slab, 1, bytes, [&] { return inner().allocate_slab(bytes); });
}

void StatisticsAdaptor::free_slab(SlabId slab) {
  timed(Operation::free_slab, 1, 0, [&] { inner().free_slab(slab); });
}

void StatisticsAdaptor::map(const std::vector<MapEntry>& batch) {
  timed(Operation::map, batch.size(), total_length(batch), [&] { inner().map(batch); });
}

void StatisticsAdaptor::unmap(const std::vector<MapEntry>& batch) {
  timed(Operation::unmap, count_runs(batch), total_length(batch), [&] { inner().unmap(batch); });
}

FencePtr StatisticsAdaptor::zero(const std::vector<Range>& batch, const FencePtr& after) {
  return timed(Operation::zero, batch.size(), total_length(batch),
               [&] { return inner().zero(batch, after); });
}

OperationCounts StatisticsAdaptor::counts() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return counts_;
}

}  // namespace pyvattn
