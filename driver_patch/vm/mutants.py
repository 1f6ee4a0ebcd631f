# SPDX-License-Identifier: MIT OR GPL-2.0
"""The ways in which test-mutants breaks the kernel code, each of which the tests must notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """``edits`` are (old, new) texts of driver_patch/src/``file``; each old occurs exactly once."""

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]


MUTANTS = (
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
    ),
    Mutant(
        "read-only is ignored",
        "uvm_vattn_map.c",
        (
            (
                "		      UVM_PROT_READ_ONLY : UVM_PROT_READ_WRITE_ATOMIC;",
                "		      UVM_PROT_READ_WRITE_ATOMIC : UVM_PROT_READ_WRITE_ATOMIC;",
            ),
        ),
    ),
    Mutant(
        "alignment is not checked",
        "uvm_vattn_batch.c",
        (("size == 0 || !IS_ALIGNED(start | size, page_size) ||", "size == 0 ||"),),
    ),
    Mutant(
        "overflow of an address is not checked",
        "uvm_vattn_batch.c",
        (
            (
                "!IS_ALIGNED(start | size, page_size) ||\n	    start + size - 1 < start)",
                "!IS_ALIGNED(start | size, page_size))",
            ),
        ),
    ),
    Mutant(
        "the end of the range is not checked",
        "uvm_vattn_batch.c",
        (
            (
                "	if (!range || start + size - 1 > uvm_vattn_ext_range_node(range)->end)",
                "	if (!range)",
            ),
        ),
    ),
    Mutant(
        "an address may be twice in a batch",
        "uvm_vattn_batch.c",
        (("	return uvm_range_tree_add(&batch->addresses, node);", "	return NV_OK;"),),
    ),
    Mutant(
        "any VA space's handle is taken",
        "uvm_vattn_pages.c",
        (("	if (!state || handle >> HANDLE_ID_BITS != state->cookie)", "	if (!state)"),),
    ),
    Mutant(
        "pages outside of a handle are mapped",
        "uvm_vattn_map.c",
        (
            (
                "	    user->first_page >= pages->page_count ||\n"
                "	    user->page_count > pages->page_count - user->first_page)",
                "	    user->first_page >= pages->page_count)",
            ),
        ),
    ),
    Mutant(
        "a handle of another GPU is mapped",
        "uvm_vattn_map.c",
        (
            (
                "	if (pages->mem_handle.gpu != batch->gpu || user->page_count == 0 ||",
                "	if (user->page_count == 0 ||",
            ),
        ),
    ),
    Mutant(
        "what is mapped is replaced unasked",
        "uvm_vattn_map.c",
        (("	if (!entry->replace)\n		return NV_ERR_UVM_ADDRESS_IN_USE;\n", ""),),
    ),
    Mutant(
        "entries of another size are replaced",
        "uvm_vattn_map.c",
        (
            (
                "	if ((*map)->pt_range_vec.page_size != entry->pte_page_size)\n"
                "		return NV_ERR_INVALID_ADDRESS;\n",
                "",
            ),
        ),
    ),
    Mutant(
        "the wrong page behind a replaced piece",
        "uvm_vattn_map.c",
        (
            (
                "	piece->offset = entry->offset + piece->map->node.start - entry->start;",
                "	piece->offset = entry->offset;",
            ),
        ),
    ),
    Mutant(
        "a failed batch leaves its new mappings",
        "uvm_vattn_map.c",
        (("		uvm_vattn_batch_remove_maps(&batch, true);", "		(void)batch;"),),
    ),
    Mutant(
        "a mapping takes no reference",
        "uvm_vattn_map.c",
        (("		nv_kref_get(&piece->pages->mem_handle.ref_count);\n", ""),),
    ),
    Mutant(
        "a mapping never lets its reference go",
        "uvm_vattn_pages.c",
        (
            (
                "&pages->state->counters.bytes_mapped[uvm_vattn_size_slot(pages->page_size)]);\n"
                "	uvm_vattn_pages_put(pages);",
                "&pages->state->counters.bytes_mapped[uvm_vattn_size_slot(pages->page_size)]);",
            ),
        ),
    ),
    Mutant(
        "a handle is freed while mapped",
        "uvm_vattn_pages.c",
        (
            (
                "	if (nv_kref_read(&pages->mem_handle.ref_count) != 1) {",
                "	if (nv_kref_read(&pages->mem_handle.ref_count) < 1) {",
            ),
        ),
    ),
    Mutant(
        "memory is not zeroed",
        "uvm_vattn_memory.c",
        (
            (
                "	status = clear_chunks(pages, &tracker);",
                "	status = pages->chunk_count ? NV_OK : clear_chunks(pages, &tracker);",
            ),
        ),
    ),
    Mutant(
        "a failed allocation keeps its chunks",
        "uvm_vattn_memory.c",
        (("error_waited:\n	uvm_vattn_chunks_free(pages);", "error_waited:"),),
    ),
    Mutant(
        "a failed allocation keeps its share of the limit",
        "uvm_vattn_pages.c",
        (("error_reserved:\n	unreserve(state, size);", "error_reserved:"),),
    ),
    Mutant(
        "a GPU leaves and its pages stay",
        "uvm_vattn_pages.c",
        (
            (
                "		xa_erase(&state->pages, id);\n		uvm_vattn_pages_put(pages);",
                "		xa_erase(&state->pages, id);",
            ),
        ),
    ),
    Mutant(
        "map takes the VA space lock for reading",
        "uvm_vattn_map.c",
        (
            ("	uvm_va_space_down_write(va_space);", "	uvm_va_space_down_read(va_space);"),
            ("	uvm_va_space_up_write(va_space);", "	uvm_va_space_up_read(va_space);"),
        ),
    ),
    Mutant(
        "map does not lock the range's mappings",
        "uvm_vattn_map.c",
        (
            ("			uvm_mutex_lock(&entry.tree->lock);\n", ""),
            ("			uvm_mutex_unlock(&entry.tree->lock);\n", ""),
        ),
    ),
    Mutant(
        "unmap takes mappings that are not ours",
        "uvm_vattn_unmap.c",
        (
            (
                "map->node.start > start || !map->mem_handle ||\n"
                "		    !map->mem_handle->vattn) {",
                "map->node.start > start) {",
            ),
        ),
    ),
    Mutant(
        "a batch leaks its book-keeping",
        "uvm_vattn_batch.c",
        (("	uvm_kvfree(batch->address_nodes);\n", ""),),
    ),
    Mutant(
        "a new page table is not cleared",
        "uvm_vattn_ptes.c",
        (("					 table->ptes.entry_count);", "					 1);"),),
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
    ),
    Mutant(
        "the invalidate leaves out what leads to a new page table",
        "uvm_vattn_ptes.c",
        (("		page_sizes |= UVM_PAGE_SIZE_2M;\n", ""),),
    ),
    Mutant(
        "a page table is made although there is one",
        "uvm_vattn_tables.c",
        (("	if (has_table(tree, &parent, page_size))", "	if (!tree)"),),
    ),
    Mutant(
        "a batch keeps the page tables that it made",
        "uvm_vattn_tables.c",
        (("		uvm_page_tree_put_ptes_async(batch->tree, &table->ptes);\n", ""),),
    ),
    Mutant(
        "a batch keeps what is above its page tables",
        "uvm_vattn_tables.c",
        (("		uvm_page_tree_put_ptes_async(batch->tree, &table->parent);\n", ""),),
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
    ),
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
    ),
)
