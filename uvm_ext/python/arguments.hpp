// SPDX-License-Identifier: Apache-2.0
// What Python objects stand for, with errors of our own for those that do not fit.
#pragma once

#include <cstdint>
#include <string>

#include "base/errors.hpp"
#include "python/bindings.hpp"
#if PY_VERSION_HEX < 0x030B0000
#include <longintrepr.h>
#endif

namespace pyvattn::python {

// An argument of a type that the call cannot take.
class ArgumentError : public Error {
  using Error::Error;
};

// The repr of an object for a message: one line, not too long, without control characters.
// Runs Python code.
std::string shown(py::handle object);

// Whether `value` is an int of one digit, and what it is. Lengths nearly always are, and a
// call for each of them would be half the cost of a steady step.
inline bool is_one_digit(PyObject* value, std::int64_t& number) {
  if (!PyLong_CheckExact(value)) return false;
  auto* digits = reinterpret_cast<PyLongObject*>(value);
#if PY_VERSION_HEX >= 0x030C0000
  if (PyUnstable_Long_IsCompact(digits) == 0) return false;
  number = PyUnstable_Long_CompactValue(digits);
#else
  if (Py_SIZE(value) != 1) return false;
  number = static_cast<std::int64_t>(digits->ob_digit[0]);
#endif
  return true;
}

// The length that an int of any kind stands for, if it can be read without running Python
// code and fits.
bool read_plain_length(PyObject* value, std::int64_t& length);

// The same of anything with __index__, which may run Python code; what that raises passes
// through. Throws LengthError for what is no whole number.
std::int64_t length_of(py::handle value);

// One-dimensional, contiguous int64 memory, as numpy and array.array offer it; held while
// this lives. Making and destroying one may run Python code.
class Int64Buffer {
 public:
  // Throws ArgumentError for what offers no memory, ConfigError for memory of another kind.
  Int64Buffer(py::handle object, const char* name);
  Int64Buffer(const Int64Buffer&) = delete;
  Int64Buffer& operator=(const Int64Buffer&) = delete;
  ~Int64Buffer() { PyBuffer_Release(&view_); }

  std::size_t size() const { return static_cast<std::size_t>(view_.shape[0]); }
  const std::int64_t* data() const { return static_cast<const std::int64_t*>(view_.buf); }

 private:
  Py_buffer view_;
};

}  // namespace pyvattn::python
