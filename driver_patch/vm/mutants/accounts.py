# SPDX-License-Identifier: MIT OR GPL-2.0
"""Limits and statistics: who shares them, when they end, what is counted."""

from __future__ import annotations

from .mutant import Mutant

ACCOUNTS = (
    Mutant(
        "an account is looked for and made without the lock of all accounts",
        "uvm_vattn_account.c",
        (
            (
                "	mutex_lock(&accounts_lock);\n"
                "	account = find_or_create(current->mm);\n"
                "	if (account)\n"
                "		account->users++;\n"
                "	mutex_unlock(&accounts_lock);\n",
                "	account = find_or_create(current->mm);\n"
                "	if (account)\n"
                "		account->users++;\n",
            ),
        ),
        "first_allocations_of_two_files_share_an_account",
    ),
    Mutant(
        "an account goes with the first of its files",
        "uvm_vattn_account.c",
        (("	last = --account->users == 0;", "	last = --account->users <= 1;"),),
        "limit_of_a_process",
    ),
    Mutant(
        "the last mapping below the limit is refused",
        "uvm_vattn_account.c",
        (
            (
                "	if ((u64)atomic64_inc_return(&account->mappings) <=\n",
                "	if ((u64)atomic64_inc_return(&account->mappings) <\n",
            ),
        ),
        "limit_of_mappings",
    ),
    Mutant(
        "what a cut costs is not counted",
        "uvm_vattn_account.c",
        (
            (
                "	atomic64_add(mapping_bytes(size) + mapping_bytes(size_off) -\n"
                "		     mapping_bytes(size + size_off), &account->bytes);\n",
                "",
            ),
        ),
        "mappings_count_against_the_limit",
    ),
    Mutant(
        "a handle that the limit refuses stays counted",
        "uvm_vattn_pages.c",
        (("	else\n		atomic64_dec(&state->handles);\n", ""),),
        "limit_of_a_process",
    ),
    Mutant(
        "a handle that goes stays counted",
        "uvm_vattn_pages.c",
        (
            (
                "	uvm_vattn_return_bytes(state->account, size);\n"
                "	atomic64_dec(&state->handles);\n",
                "	uvm_vattn_return_bytes(state->account, size);\n",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "the name of a process is never let go",
        "uvm_vattn_account.c",
        (("		mmdrop(account->mm);\n", ""),),
        "accounts_end_with_their_files",
    ),
    Mutant(
        "the last cut below the limit is refused",
        "uvm_vattn_account.c",
        (
            (
                "mappings) < uvm_vattn_limit_mappings();",
                "mappings) + 1 < uvm_vattn_limit_mappings();",
            ),
        ),
        "limit_of_mappings",
    ),
    Mutant(
        "page-table entries of a batch that failed are counted",
        "uvm_vattn_ptes.c",
        (
            (
                "	if (status == NV_OK)\n"
                "		atomic64_add(batch->ptes, &counters->ptes_written);",
                "	atomic64_add(batch->ptes, &counters->ptes_written);",
            ),
        ),
        "first_push_of_a_map_fails",
    ),
    Mutant(
        "unmaps are counted as maps",
        "uvm_vattn_state.c",
        (
            (
                "		atomic64_inc(&counters->unmap_calls);",
                "		atomic64_inc(&counters->map_calls);",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "the limit of mappings goes unsaid",
        "uvm_vattn.c",
        (("	params->limit_mappings = uvm_vattn_limit_mappings();\n", ""),),
        "limit_of_mappings",
    ),
    Mutant(
        "pages of 2M are counted as pages of 1M",
        "uvm_vattn_state.h",
        (
            (
                "	return ilog2(page_size) - ilog2(UVM_VATTN_MIN_PAGE);",
                "	return min(ilog2(page_size) - ilog2(UVM_VATTN_MIN_PAGE), 4);",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "what is replaced stays counted as mapped",
        "uvm_vattn_map.c",
        (
            (
                "		else\n			uvm_vattn_detach(piece->map);\n",
                "		else if (piece->is_new)\n			uvm_vattn_detach(piece->map);\n",
            ),
        ),
        "replace_own_pages",
    ),
)
