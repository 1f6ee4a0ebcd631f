# SPDX-License-Identifier: MIT OR GPL-2.0
"""Locks that are not taken, or for reading only; UVM's assertions see it."""

from __future__ import annotations

from .mutant import Mutant

LOCKS = (
    Mutant(
        "unmap does not lock the range's mappings",
        "uvm_vattn_unmap.c",
        (
            ("	uvm_mutex_lock(&tree->lock);\n", ""),
            ("	uvm_mutex_unlock(&tree->lock);\n", ""),
        ),
        "unmap_*",
        flavour="checked",
    ),
    Mutant(
        "unmap takes the VA space lock for reading",
        "uvm_vattn_unmap.c",
        (
            ("	uvm_va_space_down_write(va_space);", "	uvm_va_space_down_read(va_space);"),
            ("	uvm_va_space_up_write(va_space);", "	uvm_va_space_up_read(va_space);"),
        ),
        "unmap_*",
        flavour="checked",
    ),
    Mutant(
        "free takes the VA space lock for reading",
        "uvm_vattn_pages.c",
        (
            (
                "	if (params->flags)\n"
                "		return NV_ERR_INVALID_ARGUMENT;\n"
                "\n"
                "	uvm_va_space_down_write(va_space);",
                "	if (params->flags)\n"
                "		return NV_ERR_INVALID_ARGUMENT;\n"
                "\n"
                "	uvm_va_space_down_read(va_space);",
            ),
            (
                "out:\n"
                "	uvm_va_space_up_write(va_space);\n"
                "\n"
                "	if (status == NV_OK) {\n"
                "		uvm_vattn_pages_put",
                "out:\n"
                "	uvm_va_space_up_read(va_space);\n"
                "\n"
                "	if (status == NV_OK) {\n"
                "		uvm_vattn_pages_put",
            ),
        ),
        "free_refuses",
        flavour="checked",
    ),
)
