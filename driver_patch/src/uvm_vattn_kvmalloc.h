/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Included in the middle of uvm_kvmalloc.c, whose static functions it needs: memory
 * that UVM will free with uvm_kvfree(), on the caller's memory cgroup. UVM's own
 * allocations are on none.
 */
#include "uvm_vattn.h"

static void *vattn_vzalloc(size_t size)
{
	gfp_t flags = NV_UVM_GFP_FLAGS | __GFP_ACCOUNT | __GFP_ZERO;
	uvm_vmalloc_hdr_t *hdr;

#if defined(NV_VMALLOC_HAS_PGPROT_T_ARG)
	hdr = __vmalloc(sizeof(*hdr) + size, flags, PAGE_KERNEL);
#else
	hdr = __vmalloc(sizeof(*hdr) + size, flags);
#endif
	if (!hdr)
		return NULL;
	hdr->alloc_size = size;
	return hdr->ptr;
}

/* As __uvm_kvmalloc_zero(). */
void *__uvm_vattn_kvmalloc_zero(size_t size, const char *file, int line,
				const char *function)
{
	void *p = size <= UVM_KMALLOC_THRESHOLD ?
		  kzalloc(size, NV_UVM_GFP_FLAGS | __GFP_ACCOUNT) :
		  vattn_vzalloc(size);

	if (uvm_leak_checker && p)
		alloc_tracking_add(p, file, line, function);
	return p;
}
