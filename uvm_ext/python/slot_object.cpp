#include "python/slot_object.hpp"

#include <string>

#include "base/errors.hpp"
#include "python/bindings.hpp"

namespace pyvattn::python {
namespace {

const SlotObject& as_slot(PyObject* self) { return *reinterpret_cast<SlotObject*>(self); }

PyObject* slot_index(PyObject* self) { return PyLong_FromUnsignedLong(as_slot(self).ref.index); }

PyObject* slot_repr(PyObject* self) {
  return PyUnicode_FromFormat("Slot(%u)", static_cast<unsigned>(as_slot(self).ref.index));
}

PyObject* get_index(PyObject* self, void*) { return slot_index(self); }

void slot_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyGetSetDef slot_getters[] = {
    {"index", get_index, nullptr, "The row of this slot in every arena.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot slot_slots[] = {
    {Py_tp_doc, const_cast<char*>(
                    "The row of one request, as KVCache.acquire() returns it.\n\n"
                    "Stands for its row number wherever an index is wanted: k[slot, :n]. Two\n"
                    "uses of the same row are two slots; hashing and comparing go by identity.")},
    {Py_tp_dealloc, reinterpret_cast<void*>(slot_dealloc)},
    {Py_tp_repr, reinterpret_cast<void*>(slot_repr)},
    {Py_tp_getset, slot_getters},
    {Py_nb_index, reinterpret_cast<void*>(slot_index)},
    {Py_nb_int, reinterpret_cast<void*>(slot_index)},
    {0, nullptr},
};

PyType_Spec slot_spec = {"pyvattn._native.Slot", sizeof(SlotObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slot_slots};

}  // namespace

PyTypeObject* slot_type_ = nullptr;

py::object make_slot(std::uint64_t cache, const SlotRef& ref) {
  PyTypeObject* type = slot_type();
  PyObject* object = type->tp_alloc(type, 0);
  if (object == nullptr) throw py::error_already_set();
  auto* slot = reinterpret_cast<SlotObject*>(object);
  slot->cache = cache;
  slot->ref = ref;
  return py::reinterpret_steal<py::object>(object);
}

void refuse_key(PyObject* object) {
  if (Py_TYPE(object) != slot_type()) {
    const std::string shown = py::repr(py::handle(object));
    throw SlotError(shown + " is not a Slot: use what acquire() returned");
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
