// SPDX-License-Identifier: Apache-2.0
#include "drivers/spare_mappings.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>

namespace pyvattn {
namespace {

constexpr std::size_t kPages = 16;

std::size_t page_bytes() { return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)); }

std::size_t count_lines(const char* path) {
  std::FILE* file = std::fopen(path, "re");
  if (file == nullptr) return 0;
  std::size_t lines = 0;
  for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) lines += c == '\n';
  std::fclose(file);
  return lines;
}

std::size_t read_number(const char* path) {
  std::FILE* file = std::fopen(path, "re");
  if (file == nullptr) return 0;
  unsigned long number = 0;
  const bool read = std::fscanf(file, "%lu", &number) == 1;
  std::fclose(file);
  return read ? number : 0;
}

}  // namespace

bool SpareMappings::keep() noexcept {
  if (first_ != nullptr) return true;
  const std::size_t page = page_bytes();
  void* first =
      ::mmap(nullptr, kPages * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (first == MAP_FAILED) return false;
  // Every other page is different from its neighbours, so that each is a mapping.
  bool apart = true;
  for (std::size_t i = 1; apart && i < kPages; i += 2) {
    void* where = reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(first) + i * page);
    apart = ::mprotect(where, page, PROT_READ) == 0;
  }
  first_ = first;
  return apart || !give_up();
}

bool SpareMappings::give_up() noexcept {
  if (first_ == nullptr) return false;
  ::munmap(first_, kPages * page_bytes());
  first_ = nullptr;
  return true;
}

bool mappings_used_up() {
  const std::size_t most = read_number("/proc/sys/vm/max_map_count");
  // What a call that failed gave back, for itself and to undo it, is missing from the count.
  constexpr std::size_t kGivenUp = 2 * kPages;
  return most > 0 && count_lines("/proc/self/maps") + kGivenUp + kPages >= most;
}

}  // namespace pyvattn
