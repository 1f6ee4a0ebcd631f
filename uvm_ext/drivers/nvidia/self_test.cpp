// SPDX-License-Identifier: Apache-2.0
#include "drivers/nvidia/self_test.hpp"

#include <chrono>
#include <cstdint>
#include <thread>

#include "base/errors.hpp"

namespace pyvattn {
namespace {

using nvidia::kHugePage;

constexpr std::size_t kSample = 4096;

[[noreturn]] void refuse(const std::string& step) {
  throw DriverUnavailable("its self-test failed: " + step);
}

std::string zeros() { return std::string(kSample, '\0'); }

std::string pattern() {
  std::string bytes(kSample, '\0');
  std::uint32_t state = 0x9e3779b9;
  for (char& byte : bytes) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<char>(state >> 24);
  }
  return bytes;
}

}  // namespace

void StockUvmSelfTest::run() {
  try {
    check_mapping();
    check_accounting();
  } catch (const DriverError& error) {
    refuse(error.what());
  }
}

void StockUvmSelfTest::check_mapping() {
  const Address base = driver_.reserve(2 * driver_.chunk_, kHugePage);
  const SlabId slab = driver_.allocate_slab(2 * kHugePage);
  check_pages(base, slab);
  driver_.free_slab(slab);
  driver_.release_reservation(base);
}

// Two pages as one extent, across the border of what CUDA knows as two allocations, and
// the second of them once more at another address.
void StockUvmSelfTest::check_pages(Address base, SlabId slab) {
  const std::size_t page = driver_.page_size_;
  const Address border = base + driver_.chunk_;
  const MapEntry extent{border - page, 2 * page, slab, 0};
  const MapEntry alias{base, page, slab, page};
  driver_.map({extent, alias});
  const std::size_t last = page - kSample;
  expect(border + last, zeros(), "a fresh page does not read as zeros");
  driver_.bytes_.write(border + last, pattern());
  expect(border + last, pattern(), "a page does not keep what is written to it");
  expect(base + last, pattern(), "a second mapping does not show the same page");
  expect(border - kSample, zeros(), "a write to one page shows in another");
  expect(border + page, zeros(), "addresses behind the last page do not read as zeros");
  expect(base + page, zeros(), "addresses behind the last page do not read as zeros");
  driver_.unmap({alias});
  expect(base + last, zeros(), "an unmapped page can still be read");
  expect(border + last, pattern(), "unmapping one mapping broke the other");
  driver_.unmap({extent});
  expect(border + last, zeros(), "an unmapped page can still be read");
}

void StockUvmSelfTest::check_accounting() {
  // Others may allocate and free at the same moment: one good round will do. The first are short,
  // because what disturbed one is seldom over while it waits.
  constexpr std::chrono::milliseconds kMostPatience{640};
  for (std::chrono::milliseconds patience{10}; patience <= kMostPatience; patience *= 2) {
    if (memory_comes_back(patience)) return;
  }
  refuse("the memory of a freed slab does not come back");
}

bool StockUvmSelfTest::memory_comes_back(std::chrono::milliseconds patience) {
  const std::size_t bytes = driver_.chunk_;
  const std::size_t before = driver_.bytes_.free_memory();
  const nvidia::Handle memory = driver_.rm_.allocate_memory(bytes, nvidia::Granule::k2M);
  const bool taken = settles(before - bytes / 2, 0, patience);
  driver_.rm_.free_memory(memory);
  return taken && settles(SIZE_MAX, before - bytes / 2, patience);
}

// The device counts freed memory as free once it has scrubbed it.
bool StockUvmSelfTest::settles(std::size_t below, std::size_t above,
                               std::chrono::milliseconds patience) const {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  do {
    const std::size_t free = driver_.bytes_.free_memory();
    if (free <= below && free >= above) return true;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

void StockUvmSelfTest::expect(Address address, const std::string& bytes, const char* step) {
  if (driver_.bytes_.read(address, bytes.size()) != bytes) refuse(step);
}

}  // namespace pyvattn
