// SPDX-License-Identifier: Apache-2.0
#include "python/bindings.hpp"

#include "base/errors.hpp"
#include "python/arguments.hpp"
#include "python/gil.hpp"

namespace pyvattn::python {
namespace {

py::object error_class(const char* name) {
  return py::module_::import("pyvattn.errors").attr(name);
}

void raise(const char* name, const Error& error) {
  PyErr_SetString(error_class(name).ptr(), error.what());
}

void raise(const OutOfMemory& error) {
  const py::object type = error_class("OutOfMemory");
  const py::object instance = type(error.what(), error.requested, error.free, error.reclaimable);
  PyErr_SetObject(type.ptr(), instance.ptr());
}

// Out of memory that a driver call reports by itself, outside the page pool.
void raise(const DriverOutOfMemory& error) {
  const py::object type = error_class("OutOfMemory");
  const py::object instance = type(error.what(), error.size, 0, 0);
  PyErr_SetObject(type.ptr(), instance.ptr());
}

void raise(const DriverError& error) {
  const py::object type = error_class("DriverError");
  const py::object instance =
      type(error.what(), error.operation, error.address, error.size, error.status);
  PyErr_SetObject(type.ptr(), instance.ptr());
}

// A daemon thread that still serves while the process ends is told to end, as quietly as
// Python itself would end it a moment later.
void raise(const ClosedError& error) {
  if (exits_elsewhere()) {
    PyErr_SetNone(PyExc_SystemExit);
  } else {
    raise("ClosedError", error);
  }
}

void translate(std::exception_ptr pointer) {
  if (!pointer) return;
  try {
    std::rethrow_exception(pointer);
  } catch (const OutOfMemory& error) {
    raise(error);
  } catch (const DriverOutOfMemory& error) {
    raise(error);
  } catch (const DriverError& error) {
    raise(error);
  } catch (const LengthError& error) {
    raise("LengthError", error);
  } catch (const SlotError& error) {
    raise("SlotError", error);
  } catch (const RowError& error) {
    raise("RowError", error);
  } catch (const BlockError& error) {
    raise("BlockError", error);
  } catch (const OutOfSlots& error) {
    raise("OutOfSlots", error);
  } catch (const LimitError& error) {
    raise("LimitError", error);
  } catch (const ClosedError& error) {
    raise(error);
  } catch (const BusyError& error) {
    raise("BusyError", error);
  } catch (const ForkError& error) {
    raise("ForkError", error);
  } catch (const ConfigError& error) {
    raise("ConfigError", error);
  } catch (const ArgumentError& error) {
    raise("ArgumentError", error);
  } catch (const LedgerCorrupt& error) {
    raise("LedgerCorrupt", error);
  } catch (const LedgerVersion& error) {
    raise("LedgerVersion", error);
  } catch (const LedgerLost& error) {
    raise("LedgerLost", error);
  } catch (const LedgerFull& error) {
    raise("LedgerFull", error);
  } catch (const LedgerBusy& error) {
    raise("LedgerBusy", error);
  } catch (const LedgerError& error) {
    raise("LedgerError", error);
  } catch (const DriverUnavailable& error) {
    raise("DriverUnavailable", error);
  } catch (const Error& error) {
    raise("Error", error);
  }
}

}  // namespace

void bind_errors() { py::register_exception_translator(translate); }

}  // namespace pyvattn::python
