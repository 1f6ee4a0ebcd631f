// Mappings that are kept in reserve. Linux lets a process have so many (vm.max_map_count)
// and refuses to replace one where there are more; a driver that keeps a few which it can
// do without can always take its own away.
#pragma once

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

 private:
  void* first_ = nullptr;
};

// Whether the process has about as many mappings as it may. Reads /proc: for errors only.
bool mappings_used_up();

}  // namespace pyvattn
