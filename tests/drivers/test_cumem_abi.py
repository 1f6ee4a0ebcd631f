# SPDX-License-Identifier: Apache-2.0
"""uvm_ext/drivers/libcuda.hpp against NVIDIA's cuda.h, where one is installed.

The package builds without CUDA, so it writes down the prototypes, constants and
structures that it needs. A slip there corrupts memory on a GPU and nowhere else.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "uvm_ext"

CHECKS = r"""
#include "drivers/libcuda.hpp"

#include <cstddef>
#include <string_view>
#include <type_traits>

#include <cuda.h>

namespace ours = pyvattn::cuda;

template <typename Ours, typename Theirs>
struct SameCall;
template <typename R, typename... A, typename S, typename... B>
struct SameCall<R (*)(A...), S (*)(B...)> {
  static constexpr bool value =
      sizeof...(A) == sizeof...(B) && sizeof(R) == sizeof(S) &&
      ((sizeof(A) == sizeof(B) && std::is_pointer_v<A> == std::is_pointer_v<B>) && ...);
};

#define TEXT(...) #__VA_ARGS__
#define EXPANDED(name) TEXT(name)

// The header renames a function to the symbol of its newest interface; ours must be it.
#define CHECK_FUNCTION(name, symbol, parameters)                                      \
  static_assert(std::string_view(EXPANDED(name)) == #symbol, "symbol of " #symbol);   \
  static_assert(SameCall<int(*) parameters, decltype(&symbol)>::value,                \
                "prototype of " #symbol);
namespace pyvattn {
PYVATTN_LIBCUDA_FUNCTIONS(CHECK_FUNCTION)
}

#define SAME(a, b) static_assert(static_cast<int>(a) == static_cast<int>(b), #a)
SAME(ours::kSuccess, CUDA_SUCCESS);
SAME(ours::kInvalidValue, CUDA_ERROR_INVALID_VALUE);
SAME(ours::kOutOfMemory, CUDA_ERROR_OUT_OF_MEMORY);
SAME(ours::kNotInitialized, CUDA_ERROR_NOT_INITIALIZED);
SAME(ours::kDeinitialized, CUDA_ERROR_DEINITIALIZED);
SAME(ours::kNoDevice, CUDA_ERROR_NO_DEVICE);
SAME(ours::kInvalidDevice, CUDA_ERROR_INVALID_DEVICE);
SAME(ours::kInvalidContext, CUDA_ERROR_INVALID_CONTEXT);
SAME(ours::kEccUncorrectable, CUDA_ERROR_ECC_UNCORRECTABLE);
SAME(ours::kNvlinkUncorrectable, CUDA_ERROR_NVLINK_UNCORRECTABLE);
SAME(ours::kInvalidHandle, CUDA_ERROR_INVALID_HANDLE);
SAME(ours::kNotReady, CUDA_ERROR_NOT_READY);
SAME(ours::kIllegalAddress, CUDA_ERROR_ILLEGAL_ADDRESS);
SAME(ours::kLaunchTimeout, CUDA_ERROR_LAUNCH_TIMEOUT);
SAME(ours::kContextIsDestroyed, CUDA_ERROR_CONTEXT_IS_DESTROYED);
SAME(ours::kAssert, CUDA_ERROR_ASSERT);
SAME(ours::kHardwareStackError, CUDA_ERROR_HARDWARE_STACK_ERROR);
SAME(ours::kLaunchFailed, CUDA_ERROR_LAUNCH_FAILED);
SAME(ours::kStreamCaptureUnsupported, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
SAME(ours::kAttributeVirtualMemoryManagement,
     CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
SAME(ours::kAllocationPinned, CU_MEM_ALLOCATION_TYPE_PINNED);
SAME(ours::kLocationDevice, CU_MEM_LOCATION_TYPE_DEVICE);
SAME(ours::kAccessReadWrite, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
SAME(ours::kGranularityMinimum, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
SAME(ours::kStreamNonBlocking, CU_STREAM_NON_BLOCKING);
SAME(ours::kEventBlockingSync, CU_EVENT_BLOCKING_SYNC);
SAME(ours::kEventDisableTiming, CU_EVENT_DISABLE_TIMING);
SAME(ours::kCaptureModeRelaxed, CU_STREAM_CAPTURE_MODE_RELAXED);

SAME(sizeof(ours::Pointer), sizeof(CUdeviceptr));
SAME(sizeof(ours::Handle), sizeof(CUmemGenericAllocationHandle));
SAME(sizeof(ours::AllocationProperties), sizeof(CUmemAllocationProp));
SAME(offsetof(ours::AllocationProperties, type), offsetof(CUmemAllocationProp, type));
SAME(offsetof(ours::AllocationProperties, requested_handle_types),
     offsetof(CUmemAllocationProp, requestedHandleTypes));
SAME(offsetof(ours::AllocationProperties, location), offsetof(CUmemAllocationProp, location));
SAME(offsetof(ours::AllocationProperties, win32_handle_meta_data),
     offsetof(CUmemAllocationProp, win32HandleMetaData));
SAME(offsetof(ours::AllocationProperties, flags), offsetof(CUmemAllocationProp, allocFlags));
SAME(sizeof(ours::AccessDescriptor), sizeof(CUmemAccessDesc));
SAME(offsetof(ours::AccessDescriptor, flags), offsetof(CUmemAccessDesc, flags));
"""


def find_cuda_headers() -> Path | None:
    """The folder of a cuda.h: a toolkit's, or that of NVIDIA's wheels."""
    roots = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))]
    for packages in site.getsitepackages():
        roots += sorted(Path(packages).glob("nvidia/*"))
    return next((r / "include" for r in roots if (r / "include" / "cuda.h").is_file()), None)


def test_our_libcuda_table_matches_cuda_h(tmp_path: Path) -> None:
    headers = find_cuda_headers()
    if headers is None:
        pytest.skip("no cuda.h here: set CUDA_HOME, or pip install nvidia-cuda-runtime")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler here")
    source = tmp_path / "checks.cpp"
    source.write_text(CHECKS)
    command = [compiler, "-std=c++17", "-fsyntax-only", f"-I{SOURCES}", f"-I{headers}", source]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
