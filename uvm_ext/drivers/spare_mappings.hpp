// SPDX-License-Identifier: Apache-2.0
// Mappings that are kept in reserve. Linux lets a process have so many (vm.max_map_count)
// and refuses to replace one where there are more; a driver that keeps a few which it can
// do without can always take its own away, and put back what it took.
#pragma once

#include <cerrno>
#include <cstddef>

namespace pyvattn {

class SpareMappings {
 public:
  SpareMappings() = default;
  ~SpareMappings() { give_up(); }
  SpareMappings(const SpareMappings&) = delete;
  SpareMappings& operator=(const SpareMappings&) = delete;

  // Makes them where there are none. False where the system does not have that many left.
  bool keep() noexcept;
  // Gives them back to the system. False where there were none.
  bool give_up() noexcept;
  // Makes a call that returns an errno; where the process has too many mappings, again with
  // these given up.
  template <typename Call>
  int make_room_for(Call call) noexcept {
    const int code = call();
    return code == ENOMEM && give_up() ? call() : code;
  }

 private:
  void* first_ = nullptr;
};

// Whether the process has about as many mappings as it may. Reads /proc: for errors only.
bool mappings_used_up();

}  // namespace pyvattn
