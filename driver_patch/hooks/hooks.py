# SPDX-License-Identifier: MIT OR GPL-2.0
"""The lines that NVIDIA's own files gain, and where: the whole patch, for every branch.

An anchor is one whole line that must occur exactly once in its file; a tree in which one does not
is refused. Everything else is in files of our own (driver_patch/src), which go into
nvidia-uvm/vattn/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Release branches whose differences driver_patch/src/uvm_vattn_compat.h knows.
BRANCHES = (535, 550, 555, 565, 570, 575, 580, 590, 595)


@dataclass(frozen=True)
class Hook:
    """One change of one file: ``lines`` before, after or instead of the line ``anchor``."""

    file: str
    where: Literal["before", "after", "instead"]
    anchor: str
    lines: tuple[str, ...]
    why: str


HOOKS = (
    Hook(
        file="nvidia-uvm/nvidia-uvm-sources.Kbuild",
        where="after",
        anchor="NVIDIA_UVM_SOURCES_CXX ?=",
        lines=("include $(src)/nvidia-uvm/vattn/uvm_vattn.Kbuild",),
        why="compile our files into nvidia-uvm.ko",
    ),
    Hook(
        file="nvidia-uvm/uvm.c",
        where="after",
        anchor='#include "uvm_kvmalloc.h"',
        lines=('#include "vattn/uvm_vattn.h"',),
        why="declare the next hook",
    ),
    Hook(
        file="nvidia-uvm/uvm.c",
        where="before",
        anchor="    // Try the test ioctls if none of the above matched",
        lines=(
            "    if (uvm_vattn_is_ioctl(cmd))",
            "        return uvm_vattn_ioctl(filp, cmd, arg);",
            "",
        ),
        why="route our ioctls after UVM's own and before its tests",
    ),
    Hook(
        file="nvidia-uvm/uvm.c",
        where="instead",
        anchor="    NV_STATUS status = uvm_global_init();",
        lines=("    NV_STATUS status = uvm_vattn_global_init();",),
        why="do not load beside an nvidia.ko of another release",
    ),
    Hook(
        file="nvidia-uvm/uvm_kvmalloc.c",
        where="before",
        anchor="void uvm_kvfree(void *p)",
        lines=('#include "vattn/uvm_vattn_kvmalloc.h"',),
        why="memory that UVM frees, but on the caller's memory cgroup: for our mappings",
    ),
    Hook(
        file="nvidia-uvm/uvm_va_space.h",
        where="after",
        anchor="    nv_kthread_q_item_t deferred_release_q_item;",
        lines=("    struct uvm_vattn_va_space *vattn;",),
        why="what a VA space owns: handles and counters; NULL until the first allocation",
    ),
    Hook(
        file="nvidia-uvm/uvm_va_space.c",
        where="after",
        anchor='#include "uvm_va_space.h"',
        lines=('#include "vattn/uvm_vattn.h"',),
        why="declare the next two hooks",
    ),
    Hook(
        file="nvidia-uvm/uvm_va_space.c",
        where="after",
        anchor="    uvm_hmm_unregister_gpu(va_space, gpu, mm);",
        lines=("    uvm_vattn_unregister_gpu(va_space, gpu);",),
        why="free a GPU's pages when it leaves the VA space, which closing the file does too",
    ),
    Hook(
        file="nvidia-uvm/uvm_va_space.c",
        where="before",
        anchor="    uvm_kvfree(va_space->mapping);",
        lines=("    uvm_vattn_va_space_destroy(va_space);",),
        why="free what the VA space owns, after the last deferred free",
    ),
    Hook(
        file="nvidia-uvm/uvm_va_range.h",
        where="before",
        anchor="} uvm_ext_gpu_mem_handle;",
        lines=("    struct uvm_vattn_pages *vattn;",),
        why="tell a mapping of our pages from one of RM's memory, for which it is NULL",
    ),
    Hook(
        file="nvidia-uvm/uvm_map_external.c",
        where="after",
        anchor='#include "uvm_map_external.h"',
        lines=('#include "vattn/uvm_vattn.h"',),
        why="declare the hooks below",
    ),
    Hook(
        file="nvidia-uvm/uvm_map_external.c",
        where="instead",
        anchor="static NV_STATUS uvm_ext_gpu_map_split(uvm_range_tree_t *tree,",
        lines=("NV_STATUS uvm_ext_gpu_map_split(uvm_range_tree_t *tree,",),
        why="let a batch cut a mapping as UVM_UNMAP_EXTERNAL does",
    ),
    Hook(
        file="nvidia-uvm/uvm_map_external.c",
        where="after",
        anchor=(
            "    UVM_ASSERT(new_start >= existing_map->node.start && "
            "new_start < existing_map->node.end);"
        ),
        lines=(
            "    if (!uvm_vattn_ext_gpu_map_may_split(existing_map))",
            "        return NV_ERR_INSUFFICIENT_RESOURCES;",
        ),
        why="keep a process that cuts its mappings of our pages within its limit of mappings",
    ),
    Hook(
        file="nvidia-uvm/uvm_map_external.c",
        where="instead",
        anchor="    new = uvm_kvmalloc_zero(sizeof(*new));",
        lines=("    new = uvm_vattn_ext_gpu_map_zalloc(existing_map);",),
        why="charge that mapping, if it is of our pages, to the caller's memory cgroup",
    ),
    Hook(
        file="nvidia-uvm/uvm_map_external.c",
        where="after",
        anchor="    uvm_range_tree_split(tree, &existing_map->node, &new->node);",
        lines=("    uvm_vattn_ext_gpu_map_split(existing_map, new);",),
        why="count the mapping that the cut makes",
    ),
    Hook(
        file="nvidia-uvm/uvm_map_external.c",
        where="after",
        anchor="    UVM_ASSERT(!ext_gpu_map->pt_range_vec.ranges);",
        lines=("    uvm_vattn_ext_gpu_map_free(ext_gpu_map);",),
        why="drop the reference on our pages, however UVM came to free the mapping",
    ),
)
