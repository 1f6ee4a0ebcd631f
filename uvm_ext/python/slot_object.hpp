// `Slot` in Python: the row of one request. A type of the C API rather than of
// pybind11, because step() reads thousands of them.
#pragma once

#include <pybind11/pybind11.h>

#include "core/cache.hpp"

namespace pyvattn::python {

struct SlotObject {
  PyObject_HEAD
      // Tells the slots of one cache from those of another.
      std::uint64_t cache;
  SlotRef ref;
};

PyTypeObject* slot_type();
pybind11::object make_slot(std::uint64_t cache, const SlotRef& ref);

// The slot behind a key, which must be a Slot of this cache. Throws SlotError.
SlotRef slot_ref(PyObject* object, std::uint64_t cache);

}  // namespace pyvattn::python
