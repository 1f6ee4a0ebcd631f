# SPDX-License-Identifier: MIT OR GPL-2.0
"""What the GPU is told: entries, page tables, invalidates."""

from __future__ import annotations

from .mutant import Mutant

GPU = (
    Mutant(
        "no TLB invalidate",
        "uvm_vattn_ptes.c",
        (
            (
                "	if (last)\n		invalidate(writer);",
                "	if (last && !batch_never(writer))\n		invalidate(writer);",
            ),
            (
                "static void end_push(",
                "static bool batch_never(struct pte_writer *writer)\n"
                "{\n"
                "	return true;\n"
                "}\n"
                "\n"
                "static void end_push(",
            ),
        ),
        "decode_step_meets_the_targets",
    ),
    Mutant(
        "the invalidate covers the first page only",
        "uvm_vattn_ptes.c",
        (
            (
                "	u64 end = batch->end + 1;\n",
                "	u64 end = start + rounddown_pow_of_two(page_sizes);\n",
            ),
        ),
        "unmap_invalidates_and_counts",
    ),
    Mutant(
        "no wait at the end of a batch",
        "uvm_vattn_ptes.c",
        (
            (
                "	wait_status = uvm_tracker_wait_deinit(&writer.tracker);",
                "	uvm_tracker_deinit(&writer.tracker);\n	wait_status = NV_OK;",
            ),
        ),
        "calls_wait_for_a_slow_gpu",
    ),
    Mutant(
        "a batch waits for the first of its pushes",
        "uvm_vattn_ptes.c",
        (
            (
                "	uvm_tracker_overwrite_with_push(&writer->tracker, &writer->push);\n",
                "	if (!writer->pushes)\n"
                "		uvm_tracker_overwrite_with_push(&writer->tracker, &writer->push);\n",
            ),
        ),
        "batch_of_several_pushes_waits_for_a_slow_gpu",
    ),
    Mutant(
        "an unmap does not wait for the page tables that it empties",
        "uvm_vattn_batch.c",
        (("	(void)uvm_page_tree_wait(batch->tree);\n", ""),),
        "calls_wait_for_a_slow_gpu",
    ),
    Mutant(
        "a new page table is not cleared",
        "uvm_vattn_ptes.c",
        (("					 table->ptes.entry_count);", "					 1);"),),
        "every_page_size_in_one_batch",
    ),
    Mutant(
        "nothing leads to a new page table",
        "uvm_vattn_ptes.c",
        (
            (
                "		uvm_page_tree_write_pde(tree, &table->parent, &writer->push);",
                "		uvm_page_tree_clear_pde(tree, &table->parent, &writer->push);",
            ),
        ),
        "every_page_size_in_one_batch",
    ),
    Mutant(
        "the invalidate leaves out what leads to a new page table",
        "uvm_vattn_ptes.c",
        (("		page_sizes |= UVM_PAGE_SIZE_2M;\n", ""),),
        "decode_step_meets_the_targets",
    ),
    Mutant(
        "a page table is made although there is one",
        "uvm_vattn_tables.c",
        (("	if (has_table(tree, &parent, page_size))", "	if (!tree)"),),
        "mappings_share_a_page_table",
    ),
    Mutant(
        "a batch keeps the page tables that it made",
        "uvm_vattn_tables.c",
        (("		uvm_page_tree_put_ptes_async(batch->tree, &table->ptes);\n", ""),),
        "mappings_share_a_page_table",
    ),
    Mutant(
        "a batch keeps what is above its page tables",
        "uvm_vattn_tables.c",
        (("		uvm_page_tree_put_ptes_async(batch->tree, &table->parent);\n", ""),),
        "mappings_share_a_page_table",
    ),
    Mutant(
        "a failed batch whose page tables went out counts as carried out",
        "uvm_vattn_ptes.c",
        (
            (
                "	*started = tables_written && writer.pushes > 0;",
                "	*started = writer.pushes > 0;",
            ),
        ),
        "push_of_new_page_tables_fails",
    ),
    Mutant(
        "entries are not cached",
        "uvm_vattn_ptes.c",
        (
            (
                "piece->prot, UVM_MMU_PTE_FLAGS_CACHED);",
                "piece->prot, UVM_MMU_PTE_FLAGS_NONE);",
            ),
        ),
        "attributes_*",
    ),
    Mutant(
        "entries lead to host memory",
        "uvm_vattn_ptes.c",
        (
            (
                "	return tree->hal->make_pte(UVM_APERTURE_VID,",
                "	return tree->hal->make_pte(UVM_APERTURE_SYS,",
            ),
        ),
        "attributes_*",
    ),
    Mutant(
        "page-table entries are counted twice",
        "uvm_vattn_ptes.c",
        (
            (
                "		atomic64_add(batch->ptes, &counters->ptes_written);",
                "		atomic64_add(2 * batch->ptes, &counters->ptes_written);",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "invalidates are not counted",
        "uvm_vattn_ptes.c",
        (
            (
                "	atomic64_inc(&batch->state->counters.tlb_invalidates);\n",
                "",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "a wait that fails goes unnoticed",
        "uvm_vattn_ptes.c",
        (
            (
                "	if (status == NV_OK)\n		status = wait_status;\n",
                "	if (wait_status != NV_OK)\n		batch->downgrades = true;\n",
            ),
        ),
        "gpu_is_lost_in_the_middle_of_a_map",
    ),
    Mutant(
        "a table goes out with the batch beside managed memory",
        "uvm_vattn_tables.c",
        (
            (
                "		if (below_2m && is_alone(range, start))",
                "		if (below_2m)",
            ),
        ),
        "table_beside_other_ranges",
    ),
    Mutant(
        "the invalidate ends one small page early",
        "uvm_vattn_ptes.c",
        (
            (
                "	u64 end = batch->end + 1;\n",
                "	u64 end = batch->end + 1 - (batch->end - start > 0xffff ? 0x10000 : 0);\n",
            ),
        ),
        "one_range_covers_the_batch",
    ),
    Mutant(
        "the invalidate's level is that of the smallest page",
        "uvm_vattn_ptes.c",
        (
            (
                "						end - start, page_sizes,",
                "						end - start, page_sizes & -page_sizes,",
            ),
        ),
        "decode_step_meets_the_targets",
    ),
    Mutant(
        "a new page table does not widen the invalidate to its entry",
        "uvm_vattn_ptes.c",
        (
            ("		start = ALIGN_DOWN(start, UVM_PAGE_SIZE_2M);\n", ""),
            ("		end = ALIGN(end, UVM_PAGE_SIZE_2M);\n", ""),
        ),
        "mappings_share_a_page_table",
    ),
    Mutant(
        "a GPU that knows ranges forgets the whole VA space",
        "uvm_vattn_ptes.c",
        (("	if (uvm_vattn_gpu_invalidates_ranges(batch->gpu) ||\n	    (", "	if (("),),
        "one_range_covers_the_batch",
    ),
    Mutant(
        "the invalidate of a GPU without ranges keeps directory entries",
        "uvm_vattn_ptes.c",
        (
            (
                "			tree->hal->page_table_depth(largest), writer->membar);",
                "			tree->hal->page_table_depth(UVM_PAGE_SIZE_64K), writer->membar);",
            ),
        ),
        "decode_step_meets_the_targets",
        chip="gp102",
    ),
    Mutant(
        "the invalidate goes before the entries",
        "uvm_vattn_ptes.c",
        (
            (
                "	settle(writer);\n\n	if (last)\n		invalidate(writer);\n	else\n"
                "		uvm_push_set_flag(&writer->push, UVM_PUSH_FLAG_NEXT_MEMBAR_NONE);\n",
                "	if (last)\n		invalidate(writer);\n	else\n"
                "		uvm_push_set_flag(&writer->push, UVM_PUSH_FLAG_NEXT_MEMBAR_NONE);\n"
                "	settle(writer);\n",
            ),
        ),
        "every_page_size_in_one_batch",
    ),
    Mutant(
        "nothing waits for new page tables before they are written to",
        "uvm_vattn_ptes.c",
        (
            (
                "	if (writer->open) {\n		settle(writer);\n"
                "		uvm_pte_batch_begin(&writer->push, &writer->ptes);\n	}\n\n"
                "	list_for_each",
                "	list_for_each",
            ),
            (
                "	if (writer->open) {\n		settle(writer);\n"
                "		uvm_pte_batch_begin(&writer->push, &writer->ptes);\n	}\n	return NV_OK;",
                "	return NV_OK;",
            ),
        ),
        "mappings_share_a_page_table",
    ),
    Mutant(
        "old accesses are not ordered before what comes next",
        "uvm_vattn_ptes.c",
        (("	if (batch->downgrades)\n", "	if (batch->downgrades && !batch->gpu)\n"),),
        "unmap_orders_what_was_accessed",
    ),
)
