// SPDX-License-Identifier: Apache-2.0
// `Slot` in Python: the row of one request. A type of the C API rather than of
// pybind11, because step() reads thousands of them.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

#include "cache/cache.hpp"

namespace pyvattn::python {

struct SlotObject;

// The Slot objects of one cache, so that every use of a row has one, and those that are
// gone although nobody released them. The GIL guards it.
struct SlotObjects {
  explicit SlotObjects(std::uint32_t rows) : by_row(rows, nullptr) {}

  // The last one that was made for each row, where there still is one.
  std::vector<SlotObject*> by_row;
  std::vector<SlotRef> dropped;
};

struct SlotObject {
  PyObject_HEAD
      // Tells the slots of one cache from those of another.
      std::uint64_t cache;
  SlotRef ref;
  bool released;
  std::shared_ptr<SlotObjects> objects;
};

// Set by bind_slot().
extern PyTypeObject* slot_type_;
inline PyTypeObject* slot_type() { return slot_type_; }

// The Slot for a row as it was acquired: the one that there is, or a new one.
pybind11::object slot_object(std::uint64_t cache, const SlotRef& ref,
                             const std::shared_ptr<SlotObjects>& objects);
// To be called once a slot was released: it may go.
void mark_released(pybind11::handle slot);

[[noreturn]] void refuse_key(PyObject* object);

// The slot behind a key, which must be a Slot of this cache. Throws SlotError.
inline SlotRef slot_ref(PyObject* object, std::uint64_t cache) {
  if (Py_TYPE(object) != slot_type()) refuse_key(object);
  const auto& slot = *reinterpret_cast<const SlotObject*>(object);
  if (slot.cache != cache) refuse_key(object);
  return slot.ref;
}

}  // namespace pyvattn::python
