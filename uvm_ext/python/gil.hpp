// SPDX-License-Identifier: Apache-2.0
// Letting other Python threads run while the core works.
#pragma once

#include <pybind11/pybind11.h>

namespace pyvattn::python {

// Gives the GIL up for a scope. At the end of the process it behaves unlike pybind11's
// guard: a thread that cannot have the GIL back waits here for the end. Python before 3.14
// ends such a thread by unwinding its stack, which would abort the process in the first
// destructor and run others that need the GIL.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;
  ~WithoutGil();

 private:
  PyThreadState* const state_;
};

// Takes the GIL for a scope inside one of WithoutGil, to call Python. At the end of the process a
// thread that cannot have it waits here, as there.
class WithGil {
 public:
  WithGil();
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;
  ~WithGil() { PyGILState_Release(state_); }

 private:
  PyGILState_STATE state_ = PyGILState_UNLOCKED;
};

// To be called by the thread that ends the process.
void begin_exit();
// Whether another thread ends the process.
bool exits_elsewhere();

// For holders of objects whose destructors may wait.
template <typename Object>
struct DeleteWithoutGil {
  void operator()(Object* object) const {
    if (PyGILState_Check() == 0) {
      delete object;
      return;
    }
    const WithoutGil unlocked;
    delete object;
  }
};

}  // namespace pyvattn::python
