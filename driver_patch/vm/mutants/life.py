# SPDX-License-Identifier: MIT OR GPL-2.0
"""Who owns what and until when; what a call stops for, waits for and leaves behind."""

from __future__ import annotations

from .mutant import Mutant

LIFE = (
    Mutant(
        "a killed process goes on with its batch",
        "uvm_vattn_batch.c",
        (
            (
                "	if (fatal_signal_pending(current))\n		return NV_ERR_SIGNAL_PENDING;\n",
                "",
            ),
        ),
        "killed_in_a_batch",
    ),
    Mutant(
        "a killed process goes on with the pieces of an entry",
        "uvm_vattn_batch.c",
        (
            (
                "	if (fatal_signal_pending(current))\n"
                "		return NV_ERR_SIGNAL_PENDING;\n	cond_resched();\n\n	batch->ptes +=",
                "	batch->ptes +=",
            ),
            (
                "	if (size == 0 ||",
                "	if (fatal_signal_pending(current))\n"
                "		return NV_ERR_SIGNAL_PENDING;\n	if (size == 0 ||",
            ),
        ),
        "killed_in_one_entry_of_a_batch",
    ),
    Mutant(
        "handles of one VA space are those of the next",
        "uvm_vattn_state.c",
        (("		get_random_bytes(&state->cookie, sizeof(state->cookie));\n", ""),),
        "second_process_sees_nothing_of_the_first",
    ),
    Mutant(
        "handles are numbered from 0",
        "uvm_vattn_state.c",
        (("XA_FLAGS_ALLOC1", "XA_FLAGS_ALLOC"),),
        "random_blocks_are_refused_or_harmless",
    ),
    Mutant(
        "a handle is given out again at once",
        "uvm_vattn_pages.c",
        (
            (
                "	/* Cyclic, so that a stale handle stays unknown for long. */\n",
                "	state->next_id = 0;\n",
            ),
        ),
        "stale_handle_stays_unknown",
    ),
    Mutant(
        "pages are held once for each entry",
        "uvm_vattn_pages.c",
        (("	if (pages->is_held)\n		return;\n", ""),),
        "push_of_a_map_fails_in_the_middle",
    ),
    Mutant(
        "what a process took is remembered for ever",
        "uvm_vattn_account.c",
        (("	last = --account->users == 0;", "	account->users--;\n	last = false;"),),
        "accounts_end_with_their_files",
    ),
    Mutant(
        "a new process may get the name of one that is gone",
        "uvm_vattn_account.c",
        (("	mmgrab(mm);\n", ""), ("		mmdrop(account->mm);\n", "")),
        "nobody_inherits_from_a_process_that_is_gone",
    ),
    Mutant(
        "UVM is not told that a range has mappings",
        "uvm_vattn_map.c",
        (
            (
                "	uvm_processor_mask_set_atomic(uvm_vattn_ext_range_gpus(entry->range),\n"
                "				      batch->gpu->id);\n",
                "",
            ),
        ),
        "free_range_with_mappings",
    ),
    Mutant(
        "a hole before entries of another size is filled",
        "uvm_vattn_map.c",
        (
            (
                "		status = map ? check_replace(batch, entry, map) : NV_OK;\n"
                "		if (status != NV_OK)\n			return status;\n",
                "		status = map && map->node.start <= start ?\n"
                "			 check_replace(batch, entry, map) : NV_OK;\n"
                "		if (status != NV_OK)\n			return status;\n",
            ),
        ),
        "replace_needs_entries_of_the_same_size",
        flavour="checked",
    ),
    Mutant(
        "a handle's first page is the one that is mapped",
        "uvm_vattn_map.c",
        (
            (
                "	entry->offset = uvm_vattn_bytes(user->first_page, pages->page_size);",
                "	entry->offset = 0;",
            ),
        ),
        "random_calls_agree_with_the_model",
    ),
    Mutant(
        "unmap does not name the entry at fault",
        "uvm_vattn_unmap.c",
        (("			params->failed_entry = i;\n", ""),),
        "unmap_refuses",
    ),
    Mutant(
        "the copy of a map's entries leaks",
        "uvm_vattn_map.c",
        (("	kvfree(entries);\n	return status;", "	return status;"),),
        "memory_cgroup_pays",
    ),
    Mutant(
        "the largest allocation may exceed the GPU's memory",
        "uvm_vattn.c",
        (
            (
                "		params->max_alloc_bytes = min_t(u64, limit, gpu->mem_info.size);\n",
                "		params->max_alloc_bytes = limit;\n",
            ),
        ),
        "no_limits_asked_for",
    ),
    Mutant(
        "a GPU that is lost is asked again",
        "uvm_vattn.c",
        (("	NV_STATUS status = uvm_global_get_status();", "	NV_STATUS status = NV_OK;"),),
        "gpu_is_lost_in_the_middle_of_a_map",
    ),
    Mutant(
        "a table goes out with the batch where managed memory comes after it",
        "uvm_vattn_tables.c",
        (
            (
                "	return range->start <= start && range->end >= start + UVM_PAGE_SIZE_2M - 1;",
                "	return range->start <= start;",
            ),
        ),
        "table_beside_other_ranges",
    ),
)
