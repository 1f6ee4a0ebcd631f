# SPDX-License-Identifier: MIT OR GPL-2.0
"""What a batch gathers of its pieces, and what it hands back."""

from __future__ import annotations

from .mutant import Mutant

BATCHES = (
    Mutant(
        "the invalidate begins at the last piece",
        "uvm_vattn_batch.c",
        (
            (
                "	batch->start = min_t(u64, batch->start, map->node.start);",
                "	batch->start = map->node.start;",
            ),
        ),
        "one_range_covers_the_batch",
    ),
    Mutant(
        "the invalidate ends at the last piece",
        "uvm_vattn_batch.c",
        (
            (
                "	batch->end = max_t(u64, batch->end, map->node.end);",
                "	batch->end = map->node.end;",
            ),
        ),
        "one_range_covers_the_batch",
    ),
    Mutant(
        "map names the entry after the one at fault",
        "uvm_vattn_map.c",
        (("			params->failed_entry = i;", "			params->failed_entry = i + 1;"),),
        "bad_last_entry_undoes_the_batch",
    ),
    Mutant(
        "the copy of a batch's entries is on no memory cgroup",
        "uvm_vattn_batch.c",
        (
            (
                "	entries = kvmalloc(size, GFP_KERNEL_ACCOUNT);",
                "	entries = kvmalloc(size, GFP_KERNEL);",
            ),
        ),
        "memory_cgroup_pays",
    ),
    Mutant(
        "the table of handles is on no memory cgroup",
        "uvm_vattn_state.c",
        (("XA_FLAGS_ALLOC1 | XA_FLAGS_ACCOUNT);", "XA_FLAGS_ALLOC1);"),),
        "memory_cgroup_pays",
    ),
    Mutant(
        "a mapping that the limit refuses stays counted",
        "uvm_vattn_account.c",
        (
            (
                "	if (status != NV_OK)\n		atomic64_dec(&account->mappings);",
                "	if (status == NV_OK + 1)\n		atomic64_dec(&account->mappings);",
            ),
        ),
        "limit_of_mappings",
    ),
)
