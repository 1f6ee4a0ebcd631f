# SPDX-License-Identifier: MIT OR GPL-2.0
"""Memory: who pays for it, what it holds, what goes with a failure."""

from __future__ import annotations

from .mutant import Mutant

MEMORY = (
    Mutant(
        "memory is not zeroed",
        "uvm_vattn_memory.c",
        (
            (
                "	status = clear_chunks(pages, &tracker);",
                "	status = pages->chunk_count ? NV_OK : clear_chunks(pages, &tracker);",
            ),
        ),
        "every_page_size_in_one_batch",
    ),
    Mutant(
        "a failed allocation keeps its chunks",
        "uvm_vattn_memory.c",
        (("error_waited:\n	uvm_vattn_chunks_free(pages);", "error_waited:"),),
        "every_call_fails_once",
    ),
    Mutant(
        "pushes of zeros are not counted",
        "uvm_vattn_memory.c",
        (
            (
                "		atomic64_inc(&pages->state->counters.clear_pushes);\n",
                "",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "each file has a limit of its own",
        "uvm_vattn_account.c",
        (
            (
                "		if (account->mm == mm)",
                "		if (!mm)",
            ),
        ),
        "limit_of_a_process",
    ),
    Mutant(
        "all processes have one limit",
        "uvm_vattn_account.c",
        (
            (
                "		if (account->mm == mm)",
                "		if (mm)",
            ),
        ),
        "another_process_has_a_limit_of_its_own",
    ),
    Mutant(
        "the last byte of the limit is refused",
        "uvm_vattn_account.c",
        (
            (
                "	if ((u64)atomic64_add_return(bytes, &account->bytes) <=\n",
                "	if ((u64)atomic64_add_return(bytes, &account->bytes) <\n",
            ),
        ),
        "limit_of_a_process",
    ),
    Mutant(
        "what a refused allocation took stays taken",
        "uvm_vattn_account.c",
        (
            (
                "	atomic64_sub(bytes, &account->bytes);\n"
                "	return NV_ERR_INSUFFICIENT_RESOURCES;",
                "	return NV_ERR_INSUFFICIENT_RESOURCES;",
            ),
        ),
        "limit_of_a_process",
    ),
    Mutant(
        "PMA's word that memory is zero is taken",
        "uvm_vattn_memory.c",
        (
            (
                "			chunk = pages->chunks[i];\n",
                "			chunk = pages->chunks[i];\n"
                "			if (chunk->is_zero)\n"
                "				continue;\n",
            ),
        ),
        "memory_that_pma_says_is_zero",
    ),
    Mutant(
        "a killed process goes on allocating",
        "uvm_vattn_memory.c",
        (
            (
                "		if (fatal_signal_pending(current))\n"
                "			return NV_ERR_SIGNAL_PENDING;\n"
                "\n",
                "",
            ),
        ),
        "killed_in_an_allocation",
    ),
    Mutant(
        "mappings have no limit",
        "uvm_vattn_account.c",
        (
            (
                "	if ((u64)atomic64_inc_return(&account->mappings) <=\n"
                "	    uvm_vattn_limit_mappings())",
                "	if (atomic64_inc_return(&account->mappings))",
            ),
        ),
        "limit_of_mappings",
    ),
    Mutant(
        "mappings cost nothing",
        "uvm_vattn_account.c",
        (
            (
                "	return UVM_VATTN_MAPPING_BYTES + UVM_VATTN_MAPPED_TABLE_BYTES *",
                "	return UVM_VATTN_MAPPED_TABLE_BYTES *",
            ),
        ),
        "mappings_count_against_the_limit",
    ),
    Mutant(
        "tables under a mapping cost nothing",
        "uvm_vattn_account.c",
        (
            (
                "UVM_VATTN_MAPPED_TABLE_BYTES *\n"
                "	       DIV_ROUND_UP_ULL(size, UVM_VATTN_MAX_PAGE);",
                "UVM_VATTN_MAPPED_TABLE_BYTES *\n	       DIV_ROUND_UP_ULL(size, U32_MAX);",
            ),
        ),
        "mappings_count_against_the_limit",
    ),
    Mutant(
        "a mapping that is cut counts as one",
        "uvm_vattn_account.c",
        (
            (
                "	atomic64_inc(&account->mappings);\n	atomic64_add",
                "	atomic64_add",
            ),
        ),
        "mappings_count_against_the_limit",
    ),
    Mutant(
        "a mapping that goes stays counted",
        "uvm_vattn_account.c",
        (
            (
                "	uvm_vattn_return_bytes(account, mapping_bytes(size));\n"
                "	atomic64_dec(&account->mappings);",
                "	uvm_vattn_return_bytes(account, mapping_bytes(size));",
            ),
        ),
        "mappings_count_against_the_limit",
    ),
    Mutant(
        "any number of mappings may be asked for",
        "uvm_vattn_account.c",
        (
            (
                "	return min(uvm_vattn_max_mappings, MOST_MAPPINGS);",
                "	return uvm_vattn_max_mappings;",
            ),
        ),
        "too_many_mappings_asked_for",
    ),
    Mutant(
        "a child goes on with an inherited file",
        "uvm_vattn_account.c",
        (
            (
                "	return account->mm == current->mm;",
                "	return account->mm;",
            ),
        ),
        "fork_with_mappings",
    ),
    Mutant(
        "no memory cgroup is charged",
        "uvm_vattn_account.c",
        (
            (
                "	return kvzalloc(size, GFP_KERNEL_ACCOUNT);",
                "	return kvzalloc(size, GFP_KERNEL);",
            ),
        ),
        "memory_cgroup_pays",
    ),
    Mutant(
        "mappings are on no memory cgroup",
        "uvm_vattn_kvmalloc.h",
        (
            (
                "		  kzalloc(size, NV_UVM_GFP_FLAGS | __GFP_ACCOUNT) :",
                "		  kzalloc(size, NV_UVM_GFP_FLAGS) :",
            ),
        ),
        "memory_cgroup_pays",
    ),
    Mutant(
        "mappings that UVM cuts off are on no memory cgroup",
        "uvm_vattn_pages.c",
        (
            (
                "	return pages_under(map) ? uvm_vattn_kvmalloc_zero(sizeof(*map)) :",
                "	return !pages_under(map) ? uvm_vattn_kvmalloc_zero(sizeof(*map)) :",
            ),
        ),
        "memory_cgroup_pays",
    ),
    Mutant(
        "long lists of page tables are on no memory cgroup",
        "uvm_vattn_kvmalloc.h",
        (
            (
                "	gfp_t flags = NV_UVM_GFP_FLAGS | __GFP_ACCOUNT | __GFP_ZERO;",
                "	gfp_t flags = NV_UVM_GFP_FLAGS | __GFP_ZERO;",
            ),
        ),
        "memory_cgroup_pays_for_long_lists",
    ),
    Mutant(
        "UVM is not told how long a long list is",
        "uvm_vattn_kvmalloc.h",
        (("	hdr->alloc_size = size;\n", "	hdr->alloc_size = UVM_KMALLOC_THRESHOLD + 1;\n"),),
        "memory_cgroup_pays_for_long_lists",
    ),
    Mutant(
        "sizes have 32 bits",
        "uvm_vattn_sizes.h",
        (("	return count * page_size;", "	return (unsigned int)(count * page_size);"),),
        "sizes_beyond_4_gib",
    ),
    Mutant(
        "offsets in pieces of 2M have 32 bits",
        "uvm_vattn_sizes.h",
        (
            (
                "	u64 large = large_chunks * UVM_VATTN_MAX_PAGE;",
                "	u64 large = (unsigned int)(large_chunks * UVM_VATTN_MAX_PAGE);",
            ),
        ),
        "sizes_beyond_4_gib",
    ),
    Mutant(
        "offsets in pieces of 64K have 32 bits",
        "uvm_vattn_sizes.h",
        (("	offset -= large;", "	offset = (unsigned int)(offset - large);"),),
        "sizes_beyond_4_gib",
    ),
)
