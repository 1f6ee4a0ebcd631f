# SPDX-License-Identifier: MIT OR GPL-2.0
"""The way in: which calls are let through, parameters, statistics, loading."""

from __future__ import annotations

from .mutant import Mutant

INTERFACE = (
    Mutant(
        "a call does not hold off a suspend",
        "uvm_vattn.c",
        (
            (
                "	*rm_status = dispatch(uvm_fd_va_space(filp), cmd, &params);",
                "	uvm_up_read(&g_uvm_global.pm.lock);\n"
                "	*rm_status = dispatch(uvm_fd_va_space(filp), cmd, &params);\n"
                "	uvm_down_read(&g_uvm_global.pm.lock);",
            ),
        ),
        "suspend_waits_for_a_call",
    ),
    Mutant(
        "what is reserved in a query is ignored",
        "uvm_vattn.c",
        (
            (
                "	if (params->reserved)\n"
                "		return NV_ERR_INVALID_ARGUMENT;\n"
                "\n"
                "	params->version",
                "	params->version",
            ),
        ),
        "reserved_fields_*",
    ),
    Mutant(
        "a call before UVM_INITIALIZE is carried out",
        "uvm_vattn.c",
        (
            (
                "	if (!va_space)\n		return NV_ERR_ILLEGAL_ACTION;\n\n	if (cmd",
                "	if (cmd",
            ),
        ),
        "uninitialised_file",
    ),
    Mutant(
        "the answer's place is not tried first",
        "uvm_vattn.c",
        (
            (
                "	/* The answer must fit back before anything is done that it reports. */\n"
                "	if (copy_to_user(user, &params, size))\n"
                "		return -EFAULT;\n"
                "\n",
                "",
            ),
        ),
        "answer_that_has_no_place",
    ),
    Mutant(
        "frees are counted as allocations",
        "uvm_vattn_state.c",
        (
            (
                "		atomic64_inc(&counters->free_calls);",
                "		atomic64_inc(&counters->alloc_calls);",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "calls that fail are counted as done",
        "uvm_vattn_state.c",
        (
            (
                "	if (status != NV_OK)\n"
                "		atomic64_inc(&counters->failed_calls);\n"
                "	else if (cmd == UVM_VATTN_ALLOC)",
                "	if (cmd == UVM_VATTN_ALLOC)",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "the interface cannot be switched off",
        "uvm_vattn.c",
        (
            (
                "	if (!uvm_vattn_enable)\n		return false;\n\n",
                "",
            ),
        ),
        "interface_that_is_switched_off",
    ),
    Mutant(
        "the module is loaded beside another release",
        "uvm_vattn_load.c",
        (
            (
                "	if (nvidia_get_rm_ops(&rm) == NV_OK)",
                "	if (nvidia_get_rm_ops(&rm) == NV_OK || rm.version_string)",
            ),
        ),
        "nvidia_module_of_another_release",
    ),
)
