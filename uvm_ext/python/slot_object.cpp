// SPDX-License-Identifier: Apache-2.0
#include "python/slot_object.hpp"

#include <new>
#include <string>

#include "base/errors.hpp"
#include "python/arguments.hpp"
#include "python/bindings.hpp"

namespace pyvattn::python {
namespace {

SlotObject& as_slot(PyObject* self) { return *reinterpret_cast<SlotObject*>(self); }

PyObject* slot_index(PyObject* self) { return PyLong_FromUnsignedLong(as_slot(self).ref.index); }

PyObject* slot_repr(PyObject* self) {
  return PyUnicode_FromFormat("Slot(%u)", static_cast<unsigned>(as_slot(self).ref.index));
}

PyObject* get_index(PyObject* self, void*) { return slot_index(self); }

// Remembers a slot that goes without having been released. Nothing may throw here: where
// the process has no memory left to remember it, live_slots() still has it.
void remember_dropped(SlotObject& slot) noexcept {
  SlotObjects& objects = *slot.objects;
  if (objects.by_row[slot.ref.index] == &slot) objects.by_row[slot.ref.index] = nullptr;
  if (slot.released) return;
  try {
    objects.dropped.push_back(slot.ref);
  } catch (const std::bad_alloc&) {
  }
}

void slot_dealloc(PyObject* self) {
  SlotObject& slot = as_slot(self);
  remember_dropped(slot);
  slot.objects.~shared_ptr();
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* refuse_copy(PyObject* self, PyObject*) {
  const py::object type = py::module_::import("pyvattn.errors").attr("CopyError");
  PyErr_Format(type.ptr(), "%R cannot be copied or pickled: it stands for a row of its cache",
               self);
  return nullptr;
}

PyGetSetDef slot_getters[] = {
    {"index", get_index, nullptr, "The row of this slot in every arena.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

// copy, deepcopy and pickle all come here.
PyMethodDef slot_methods[] = {
    {"__reduce_ex__", refuse_copy, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot slot_slots[] = {
    {Py_tp_doc, const_cast<char*>(
                    "The row of one request, as KVCache.acquire() returns it.\n\n"
                    "Stands for its row number wherever an index is wanted: k[slot, :n]. Two\n"
                    "uses of the same row are two slots; hashing and comparing go by identity.")},
    {Py_tp_dealloc, reinterpret_cast<void*>(slot_dealloc)},
    {Py_tp_repr, reinterpret_cast<void*>(slot_repr)},
    {Py_tp_getset, slot_getters},
    {Py_tp_methods, slot_methods},
    {Py_nb_index, reinterpret_cast<void*>(slot_index)},
    {Py_nb_int, reinterpret_cast<void*>(slot_index)},
    {0, nullptr},
};

PyType_Spec slot_spec = {"pyvattn._native.Slot", sizeof(SlotObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slot_slots};

}  // namespace

PyTypeObject* slot_type_ = nullptr;

py::object slot_object(std::uint64_t cache, const SlotRef& ref,
                       const std::shared_ptr<SlotObjects>& objects) {
  SlotObject*& known = objects->by_row[ref.index];
  if (known != nullptr && known->ref.generation == ref.generation) {
    return py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(known));
  }
  PyTypeObject* type = slot_type();
  PyObject* object = type->tp_alloc(type, 0);
  if (object == nullptr) throw py::error_already_set();
  SlotObject& slot = as_slot(object);
  slot.cache = cache;
  slot.ref = ref;
  slot.released = false;
  new (&slot.objects) std::shared_ptr<SlotObjects>(objects);
  known = &slot;
  return py::reinterpret_steal<py::object>(object);
}

void mark_released(py::handle slot) { as_slot(slot.ptr()).released = true; }

void refuse_key(PyObject* object) {
  if (Py_TYPE(object) != slot_type()) {
    throw SlotError(shown(object) + " is not a Slot: use what acquire() returned");
  }
  throw SlotError("slot " + std::to_string(as_slot(object).ref.index) +
                  " belongs to another cache: acquire() one of this cache");
}

void bind_slot(py::module_& module) {
  slot_type_ = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&slot_spec));
  if (slot_type_ == nullptr) throw py::error_already_set();
  module.attr("Slot") = py::handle(reinterpret_cast<PyObject*>(slot_type()));
}

}  // namespace pyvattn::python
