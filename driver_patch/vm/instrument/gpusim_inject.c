// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Linked into the nvidia-uvm under test, with --wrap: every allocation of UVM can be made to
 * fail by the test interface, under the name "kvmalloc". And what the simulator is not, UVM can be
 * made to believe for the length of a query.
 */
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/types.h>
#include <linux/vmalloc.h>

#include "uvm_global.h"
#include "uvm_gpu.h"
#include "uvm_kvmalloc.h"

#include "vattn/uvm_vattn_release.h"

bool gpusim_fails(const char *name);

/* For lockdep, by UVM's lock order, see name_lock_classes in ../build. */
struct lock_class_key gpusim_lock_classes[64];

#define WRAP(function, first)										\
	void *__real_##function(size_t size, const char *file, int line, const char *caller);		\
	void *__wrap_##function(size_t size, const char *file, int line, const char *caller);		\
	void *__wrap_##function(size_t size, const char *file, int line, const char *caller)		\
	{												\
		first;											\
		return gpusim_fails("kvmalloc") ? NULL : __real_##function(size, file, line, caller);	\
	}

/* So that what is not zeroed is seen: what is freed last is given out first. */
static void leave_garbage(size_t size)
{
	void *memory = size <= UVM_KMALLOC_THRESHOLD ? kmalloc(size, GFP_KERNEL_ACCOUNT) :
						       __vmalloc(size, GFP_KERNEL_ACCOUNT);

	if (memory)
		memset(memory, 0xa5, size);
	kvfree(memory);
}

WRAP(__uvm_kvmalloc, )
WRAP(__uvm_kvmalloc_zero, )
WRAP(__uvm_vattn_kvmalloc_zero, leave_garbage(size))

static char pretence[24];

static int set_pretence(const char *value, const struct kernel_param *parameter)
{
	strscpy(pretence, value, sizeof(pretence));
	g_uvm_global.conf_computing_enabled = !strcmp(pretence, "conf_computing");
	g_uvm_global.ats.enabled = !strcmp(pretence, "ats");
	return 0;
}

static const struct kernel_param_ops pretence_operations = { .set = set_pretence };

module_param_cb(gpusim_pretend, &pretence_operations, NULL, 0200);

/* The GPU, or a copy of it that is another: for one query at a time, which only reads it. */
uvm_gpu_t *gpusim_pretend(uvm_gpu_t *gpu);
uvm_gpu_t *gpusim_pretend(uvm_gpu_t *gpu)
{
	static uvm_parent_gpu_t parent;
	static uvm_gpu_t other;

	if (!gpu || !pretence[0])
		return gpu;
	parent = *gpu->parent;
	other = *gpu;
	other.parent = &parent;
	if (!strcmp(pretence, "sriov_heavy"))
		parent.virt_mode = UVM_VIRT_MODE_SRIOV_HEAVY;
	else if (!strcmp(pretence, "no_memory"))
		other.mem_info.size = 0;
	else if (!strcmp(pretence, "no_64k_chunks"))
		other.pmm.chunk_sizes[UVM_PMM_GPU_MEMORY_TYPE_KERNEL] &= ~UVM_CHUNK_SIZE_64K;
	else if (!strcmp(pretence, "no_2m_chunks"))
		other.pmm.chunk_sizes[UVM_PMM_GPU_MEMORY_TYPE_KERNEL] &= ~UVM_CHUNK_SIZE_2M;
#if UVM_VATTN_BRANCH >= 550
	else if (!strcmp(pretence, "no_2m_pages"))
		other.mem_info.max_vidmem_page_size = UVM_PAGE_SIZE_64K;
	else if (!strcmp(pretence, "no_64k_pages"))
		other.mem_info.max_vidmem_page_size = UVM_PAGE_SIZE_4K;
#endif
	return &other;
}
