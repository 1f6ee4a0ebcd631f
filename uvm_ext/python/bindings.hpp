// SPDX-License-Identifier: Apache-2.0
// What the files of the Python module share.
#pragma once

#include <pybind11/pybind11.h>

namespace pyvattn::python {

namespace py = pybind11;

void bind_errors();
void bind_slot(py::module_& module);
void bind_tensor_view(py::module_& module);
void bind_drivers(py::module_& module);
void bind_nvidia(py::module_& module);
void bind_cache(py::module_& module);
void bind_rows(py::module_& module);
void bind_cuda(py::module_& module);
void bind_ledger(py::module_& module);
// Only where PYVATTN_EMULATION is on.
void bind_emulation(py::module_& module);

}  // namespace pyvattn::python
