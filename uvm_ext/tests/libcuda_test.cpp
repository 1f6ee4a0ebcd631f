// SPDX-License-Identifier: Apache-2.0
// The emulated libcudas have every function that the core calls.
#include "emulation/libcuda.hpp"
#include "emulation/nvidia_machine.hpp"
#include "tests/harness.hpp"

namespace pyvattn {
namespace {

std::string missing(const LibCuda& library) {
  std::string names;
#define PYVATTN_CHECK(name, symbol, parameters) \
  if (library.name == nullptr) names += " " #name;
  PYVATTN_LIBCUDA_FUNCTIONS(PYVATTN_CHECK)
#undef PYVATTN_CHECK
  return names;
}

TEST(emulated_libcudas_have_every_function_of_the_list) {
  CHECK_EQUAL(missing(emulation::libcuda()), "");
  CHECK_EQUAL(missing(emulation::nvidia_libcuda()), "");
}

}  // namespace
}  // namespace pyvattn
