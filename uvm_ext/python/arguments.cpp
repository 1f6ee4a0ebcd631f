// SPDX-License-Identifier: Apache-2.0
#include "python/arguments.hpp"

#include <cstring>

namespace pyvattn::python {
namespace {

constexpr std::size_t kMostShown = 80;

std::string without_control_characters(const std::string& text) {
  std::string plain;
  for (const char c : text) {
    const bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
    plain += control ? ' ' : c;
  }
  return plain;
}

// At most so many bytes of UTF-8, cut between characters.
std::string cut(const std::string& text, std::size_t most) {
  if (text.size() <= most) return text;
  std::size_t end = most;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return text.substr(0, end) + "…";
}

bool is_contiguous_int64(const Py_buffer& view) {
  const bool integers = view.format != nullptr &&
                        (std::strcmp(view.format, "l") == 0 || std::strcmp(view.format, "q") == 0);
  return integers && view.ndim == 1 && view.itemsize == 8 &&
         (view.shape[0] == 0 || view.strides[0] == 8);
}

// With the exception of an __index__ set. A TypeError is how arrays and tensors of several
// elements say that they are no number; anything else passes through.
[[noreturn]] void refuse_index(py::handle value) {
  if (PyErr_ExceptionMatches(PyExc_TypeError) == 0) throw py::error_already_set();
  py::error_already_set cause;
  const std::string message = "length " + shown(value) + " is not a whole number of tokens";
  const py::object type = py::module_::import("pyvattn.errors").attr("LengthError");
  py::raise_from(cause, type.ptr(), message.c_str());
  throw py::error_already_set();
}

}  // namespace

std::string shown(py::handle object) {
  try {
    const py::bytes text = py::repr(object).attr("encode")("utf-8", "backslashreplace");
    return cut(without_control_characters(text), kMostShown);
  } catch (py::error_already_set& error) {
    // Such as an int of more digits than Python writes; Ctrl-C is not about the message.
    if (!error.matches(PyExc_Exception)) throw;
    return std::string("of type ") + Py_TYPE(object.ptr())->tp_name;
  }
}

bool read_plain_length(PyObject* value, std::int64_t& length) {
  if (is_one_digit(value, length)) return true;
  if (!PyLong_Check(value)) return false;
  int overflow = 0;
  length = PyLong_AsLongLongAndOverflow(value, &overflow);
  return overflow == 0;
}

std::int64_t length_of(py::handle value) {
  if (PyIndex_Check(value.ptr()) == 0) {
    throw LengthError("length " + shown(value) + " is not a whole number of tokens");
  }
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!number) refuse_index(value);
  std::int64_t length = 0;
  if (!read_plain_length(number.ptr(), length)) {
    throw LengthError("length " + shown(number) + " is outside what any row holds");
  }
  return length;
}

Int64Buffer::Int64Buffer(py::handle object, const char* name) : view_() {
  if (PyObject_CheckBuffer(object.ptr()) == 0) {
    throw ArgumentError(std::string(name) + " " + shown(object) +
                        ": give a one-dimensional int64 array, such as numpy.asarray(" + name +
                        ", dtype=numpy.int64)");
  }
  if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_RECORDS_RO) != 0) {
    throw py::error_already_set();
  }
  if (!is_contiguous_int64(view_)) {
    PyBuffer_Release(&view_);
    throw ConfigError(std::string(name) +
                      " must be one-dimensional, contiguous int64 (such as numpy.int64)");
  }
}

}  // namespace pyvattn::python
