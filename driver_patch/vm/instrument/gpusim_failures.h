/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Included before our files: what they call of UVM and of the kernel that can fail, and neither
 * an interface function nor an allocation of UVM is; and what they take of the kernel's memory is
 * counted. A limit that the simulated GPU has the memory for, and GPUs that it cannot be.
 */
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/xarray.h>

#include "uvm_pmm_gpu.h"
#include "uvm_push.h"
#include "uvm_va_space.h"

#define UVM_VATTN_MAX_HANDLES 400u

bool gpusim_fails(const char *name);
void gpusim_passes(const char *name);
void *gpusim_taken(void *memory);
void gpusim_given_back(const void *memory);
uvm_gpu_t *gpusim_pretend(uvm_gpu_t *gpu);

#undef kvmalloc
#define kvmalloc(size, flags) \
	(gpusim_fails("kvmalloc") ? NULL : gpusim_taken(kvmalloc_node(size, flags, NUMA_NO_NODE)))

#undef kvzalloc
#define kvzalloc(size, flags) kvmalloc(size, (flags) | __GFP_ZERO)

#define kvfree(memory) \
	(gpusim_given_back(memory), (kvfree)(memory))

#define __uvm_push_begin_acquire_with_info(...)		\
	(gpusim_fails("push") ? NV_ERR_NO_MEMORY :	\
	 (__uvm_push_begin_acquire_with_info)(__VA_ARGS__))

#define xa_alloc_cyclic(...) \
	(gpusim_fails("xa_alloc_cyclic") ? -ENOMEM : (xa_alloc_cyclic)(__VA_ARGS__))

#define uvm_pmm_gpu_free(...) \
	(gpusim_passes("free"), (uvm_pmm_gpu_free)(__VA_ARGS__))

/* In a query. */
#define uvm_va_space_get_gpu_by_uuid(...) \
	gpusim_pretend((uvm_va_space_get_gpu_by_uuid)(__VA_ARGS__))
