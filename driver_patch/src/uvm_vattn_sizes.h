/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Arithmetic on sizes, in 64 bits throughout. By itself, so that the emulated
 * machine's tests can compile it: no simulated GPU has the memory for it.
 */
#ifndef UVM_VATTN_SIZES_H
#define UVM_VATTN_SIZES_H

#include "uvm_vattn_ioctl.h"

static inline u64 uvm_vattn_bytes(u64 count, u64 page_size)
{
	return count * page_size;
}

/* Pages are large_chunks pieces of 2 MiB, then pieces of 64 KiB. */
static inline u64 uvm_vattn_chunk_index(u64 large_chunks, u64 offset,
					u64 *inside)
{
	u64 large = large_chunks * UVM_VATTN_MAX_PAGE;

	if (offset < large) {
		*inside = offset % UVM_VATTN_MAX_PAGE;
		return offset / UVM_VATTN_MAX_PAGE;
	}
	offset -= large;
	*inside = offset % UVM_VATTN_MIN_PAGE;
	return large_chunks + offset / UVM_VATTN_MIN_PAGE;
}

#endif /* UVM_VATTN_SIZES_H */
