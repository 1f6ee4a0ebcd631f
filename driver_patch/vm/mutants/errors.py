# SPDX-License-Identifier: MIT OR GPL-2.0
"""What fails and leaves something behind, and whom it is refused."""

from __future__ import annotations

from .mutant import Mutant

ERRORS = (
    Mutant(
        "a VA space's state leaks where its account fails",
        "uvm_vattn_state.c",
        (
            (
                "			kvfree(state);\n			return NV_ERR_NO_MEMORY;",
                "			return NV_ERR_NO_MEMORY;",
            ),
        ),
        "first_allocation_fails",
    ),
    Mutant(
        "a handle leaks where its memory fails",
        "uvm_vattn_pages.c",
        (("error_pages:\n	kvfree(pages);\n", "error_pages:\n"),),
        "every_call_fails_once",
    ),
    Mutant(
        "entries that cannot be read leak",
        "uvm_vattn_batch.c",
        (
            (
                "		kvfree(entries);\n		return NV_ERR_INVALID_POINTER;",
                "		return NV_ERR_INVALID_POINTER;",
            ),
        ),
        "map_call_refuses",
    ),
    Mutant(
        "the list of a handle's pieces leaks",
        "uvm_vattn_memory.c",
        (("	kvfree(pages->chunks);\n	pages->chunks = NULL;", "	pages->chunks = NULL;"),),
        "every_page_size_in_one_batch",
    ),
    Mutant(
        "a page table that cannot be made leaks",
        "uvm_vattn_tables.c",
        (("free_table:\n	kvfree(table);\n", "free_table:\n"),),
        "every_call_fails_once",
    ),
    Mutant(
        "a mapping that cannot be made stays counted",
        "uvm_vattn_map.c",
        (("error_taken:\n	uvm_vattn_return_mapping(account, size);\n", "error_taken:\n"),),
        "every_call_fails_once",
    ),
    Mutant(
        "a place for RM's memory that cannot be made stays counted",
        "uvm_vattn_map.c",
        (
            (
                "		return NV_OK;\n\n	uvm_vattn_return_mapping(account, size);\n",
                "		return NV_OK;\n\n",
            ),
        ),
        "every_call_fails_once",
    ),
    Mutant(
        "a child frees through an inherited file",
        "uvm_vattn_pages.c",
        (
            (
                "	status = uvm_vattn_state_own(va_space, &state);\n"
                "	if (status != NV_OK)\n		goto out;\n\n	pages =",
                "	status = NV_OK;\n	state = uvm_vattn_state(va_space);\n	pages =",
            ),
        ),
        "fork_with_mappings",
    ),
    Mutant(
        "a child maps through an inherited file",
        "uvm_vattn_batch.c",
        (
            (
                "	status = uvm_vattn_state_own(va_space, &batch->state);",
                "	status = NV_OK;\n	batch->state = uvm_vattn_state(va_space);",
            ),
        ),
        "fork_with_mappings",
    ),
    Mutant(
        "a signal that does not kill ends an allocation",
        "uvm_vattn_memory.c",
        (("		if (fatal_signal_pending(current))", "		if (signal_pending(current))"),),
        "signals_that_do_not_kill_change_nothing",
    ),
    Mutant(
        "a signal that does not kill ends a batch",
        "uvm_vattn_batch.c",
        (("	if (fatal_signal_pending(current))", "	if (signal_pending(current))"),),
        "signals_that_do_not_kill_change_nothing",
    ),
    Mutant(
        "an allocation does not wait for its zeros",
        "uvm_vattn_memory.c",
        (
            (
                "	status = uvm_tracker_wait_deinit(&tracker);\n	if (status == NV_OK)",
                "	uvm_tracker_deinit(&tracker);\n	if (status == NV_OK)",
            ),
        ),
        "calls_wait_for_a_slow_gpu",
    ),
    Mutant(
        "managed memory stays where ours wants to be",
        "uvm_vattn_memory.c",
        (("UVM_PMM_ALLOC_FLAGS_EVICT,", "UVM_PMM_ALLOC_FLAGS_NONE,"),),
        "allocation_evicts_managed_memory",
    ),
    Mutant(
        "RM's memory is freed under the VA space's lock",
        "uvm_vattn_map.c",
        (
            (
                "	uvm_va_space_up_write(va_space);\n\n	if (gpu) {\n"
                "		uvm_deferred_free_object_list(&deferred);\n",
                "	if (gpu)\n		uvm_deferred_free_object_list(&deferred);\n"
                "	uvm_va_space_up_write(va_space);\n\n	if (gpu) {\n",
            ),
        ),
        "replace_stock_mapping",
        flavour="checked",
    ),
    Mutant(
        "unknown flags of an entry are ignored",
        "uvm_vattn_map.c",
        (("	if (user->reserved || user->flags & ~KNOWN_FLAGS)", "	if (user->reserved)"),),
        "map_refuses",
    ),
    Mutant(
        "flags of an allocation are ignored",
        "uvm_vattn_pages.c",
        (
            (
                "	if (params->flags || params->page_count == 0)",
                "	if (params->page_count == 0)",
            ),
        ),
        "alloc_refuses",
    ),
    Mutant(
        "a feature goes unsaid",
        "uvm_vattn.c",
        (
            (
                "UVM_VATTN_FEATURE_READ_ONLY | UVM_VATTN_FEATURE_REPLACE;",
                "UVM_VATTN_FEATURE_READ_ONLY;",
            ),
        ),
        "query_says_what_there_is",
    ),
)
