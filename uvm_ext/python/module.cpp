// SPDX-License-Identifier: Apache-2.0
// pyvattn._native: the C++ core as a Python module.
#include "python/bindings.hpp"

PYBIND11_MODULE(_native, module) {
  module.doc() = "The C++ core of pyvattn: drivers, blocks, rows, slots. Use pyvattn.KVCache.";
  pyvattn::python::bind_errors();
  pyvattn::python::bind_slot(module);
  pyvattn::python::bind_tensor_view(module);
  pyvattn::python::bind_drivers(module);
  pyvattn::python::bind_nvidia(module);
  pyvattn::python::bind_cache(module);
  pyvattn::python::bind_rows(module);
  pyvattn::python::bind_cuda(module);
  pyvattn::python::bind_ledger(module);
#ifdef PYVATTN_EMULATION
  pyvattn::python::bind_emulation(module);
#endif
}
