// `Slot` in Python: the row of one request. A type of the C API rather than of
// pybind11, because step() reads thousands of them.
#pragma once

#include <pybind11/pybind11.h>

#include "cache/cache.hpp"

namespace pyvattn::python {

struct SlotObject {
  PyObject_HEAD
      // Tells the slots of one cache from those of another.
      std::uint64_t cache;
  SlotRef ref;
};

// Set by bind_slot().
extern PyTypeObject* slot_type_;
inline PyTypeObject* slot_type() { return slot_type_; }
pybind11::object make_slot(std::uint64_t cache, const SlotRef& ref);

[[noreturn]] void refuse_key(PyObject* object);

// The slot behind a key, which must be a Slot of this cache. Throws SlotError.
inline SlotRef slot_ref(PyObject* object, std::uint64_t cache) {
  if (Py_TYPE(object) != slot_type()) refuse_key(object);
  const auto& slot = *reinterpret_cast<const SlotObject*>(object);
  if (slot.cache != cache) refuse_key(object);
  return slot.ref;
}

}  // namespace pyvattn::python
