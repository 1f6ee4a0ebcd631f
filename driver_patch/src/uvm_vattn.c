// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The ioctls' entry: parameters in and out, the VA space's state, query and
 * statistics.
 */
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/random.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "uvm_global.h"

#include "uvm_vattn_internal.h"

static bool uvm_vattn_enable = true;
module_param(uvm_vattn_enable, bool, 0444);
MODULE_PARM_DESC(uvm_vattn_enable,
		 "Offer the pyvattn ioctls; 0 makes the module answer like a stock one. (bool)");

static ulong uvm_vattn_max_mbytes;
module_param(uvm_vattn_max_mbytes, ulong, 0444);
MODULE_PARM_DESC(uvm_vattn_max_mbytes,
		 "Most MiB that one VA space (process) may allocate through the pyvattn ioctls; 0 is no limit but the GPU's memory. (ulong)");

union uvm_vattn_params {
	struct uvm_vattn_query query;
	struct uvm_vattn_alloc alloc;
	struct uvm_vattn_free free;
	struct uvm_vattn_map map;
	struct uvm_vattn_unmap unmap;
	struct uvm_vattn_stats stats;
};

/* uvm_vattn_ioctl() finds the status by the size of the structure alone. */
#define STATUS_IS_LAST(type) \
	static_assert(offsetofend(type, rm_status) == sizeof(type))

STATUS_IS_LAST(struct uvm_vattn_query);
STATUS_IS_LAST(struct uvm_vattn_alloc);
STATUS_IS_LAST(struct uvm_vattn_free);
STATUS_IS_LAST(struct uvm_vattn_map);
STATUS_IS_LAST(struct uvm_vattn_unmap);
STATUS_IS_LAST(struct uvm_vattn_stats);

u64 uvm_vattn_limit_bytes(void)
{
	u64 mbytes = uvm_vattn_max_mbytes;

	if (!mbytes || mbytes > U64_MAX >> 20)
		return U64_MAX;
	return mbytes << 20;
}

struct uvm_vattn_va_space *uvm_vattn_state(uvm_va_space_t *va_space)
{
	uvm_assert_rwsem_locked(&va_space->lock);
	return va_space->vattn;
}

NV_STATUS uvm_vattn_state_create(uvm_va_space_t *va_space,
				 struct uvm_vattn_va_space **state_out)
{
	struct uvm_vattn_va_space *state;

	uvm_assert_rwsem_locked_write(&va_space->lock);

	if (!va_space->vattn) {
		state = uvm_kvmalloc_zero(sizeof(*state));
		if (!state)
			return NV_ERR_NO_MEMORY;
		xa_init_flags(&state->pages, XA_FLAGS_ALLOC1);
		get_random_bytes(&state->cookie, sizeof(state->cookie));
		va_space->vattn = state;
	}
	*state_out = va_space->vattn;
	return NV_OK;
}

void uvm_vattn_va_space_destroy(uvm_va_space_t *va_space)
{
	struct uvm_vattn_va_space *state = va_space->vattn;

	if (!state)
		return;

	/* Unregistering the GPUs dropped every handle and every mapping. */
	UVM_ASSERT(xa_empty(&state->pages));
	UVM_ASSERT(atomic64_read(&state->bytes_allocated) == 0);

	xa_destroy(&state->pages);
	va_space->vattn = NULL;
	uvm_kvfree(state);
}

static NV_STATUS query(uvm_va_space_t *va_space, struct uvm_vattn_query *params)
{
	u64 limit = uvm_vattn_limit_bytes();
	uvm_gpu_t *gpu;

	if (params->reserved)
		return NV_ERR_INVALID_ARGUMENT;

	params->version = UVM_VATTN_VERSION;
	params->features = UVM_VATTN_FEATURE_READ_ONLY | UVM_VATTN_FEATURE_REPLACE;
	params->max_batch = UVM_VATTN_MAX_BATCH;
	params->max_batch_ptes = UVM_VATTN_MAX_BATCH_PTES;
	params->limit_bytes = limit;
	params->max_alloc_bytes = limit;
	params->page_sizes = 2 * UVM_VATTN_MAX_PAGE - UVM_VATTN_MIN_PAGE;

	if (!memchr_inv(params->gpu_uuid, 0, sizeof(params->gpu_uuid)))
		return NV_OK;
	if (!va_space)
		return NV_ERR_ILLEGAL_ACTION;

	uvm_va_space_down_read(va_space);
	gpu = uvm_va_space_get_gpu_by_uuid(va_space, (void *)params->gpu_uuid);
	if (gpu) {
		params->page_sizes = uvm_vattn_gpu_page_sizes(gpu);
		params->max_alloc_bytes = min_t(u64, limit, gpu->mem_info.size);
	}
	uvm_va_space_up_read(va_space);

	return gpu ? NV_OK : NV_ERR_INVALID_DEVICE;
}

static void read_counters(struct uvm_vattn_stats *params,
			  struct uvm_vattn_va_space *state)
{
	struct uvm_vattn_counters *counters = &state->counters;
	unsigned int i;

	for (i = 0; i < UVM_VATTN_PAGE_SIZE_SLOTS; i++) {
		params->pages_allocated[i] = atomic64_read(&counters->pages_allocated[i]);
		params->bytes_mapped[i] = atomic64_read(&counters->bytes_mapped[i]);
	}
	params->bytes_allocated = atomic64_read(&state->bytes_allocated);
	params->handles = atomic64_read(&state->handles);
	params->alloc_calls = atomic64_read(&counters->alloc_calls);
	params->free_calls = atomic64_read(&counters->free_calls);
	params->map_calls = atomic64_read(&counters->map_calls);
	params->unmap_calls = atomic64_read(&counters->unmap_calls);
	params->failed_calls = atomic64_read(&counters->failed_calls);
	params->map_entries = atomic64_read(&counters->map_entries);
	params->unmap_entries = atomic64_read(&counters->unmap_entries);
	params->ptes_written = atomic64_read(&counters->ptes_written);
	params->pte_pushes = atomic64_read(&counters->pte_pushes);
	params->tlb_invalidates = atomic64_read(&counters->tlb_invalidates);
	params->clear_pushes = atomic64_read(&counters->clear_pushes);
}

static NV_STATUS stats(uvm_va_space_t *va_space, struct uvm_vattn_stats *params)
{
	struct uvm_vattn_va_space *state;

	if (params->reserved)
		return NV_ERR_INVALID_ARGUMENT;

	memset(params, 0, sizeof(*params));
	params->limit_bytes = uvm_vattn_limit_bytes();

	uvm_va_space_down_read(va_space);
	state = uvm_vattn_state(va_space);
	if (state)
		read_counters(params, state);
	uvm_va_space_up_read(va_space);

	return NV_OK;
}

static void count_call(uvm_va_space_t *va_space, unsigned int cmd,
		       NV_STATUS status)
{
	struct uvm_vattn_va_space *state;

	uvm_va_space_down_read(va_space);
	state = uvm_vattn_state(va_space);
	uvm_va_space_up_read(va_space);

	if (!state)
		return;
	if (status != NV_OK)
		atomic64_inc(&state->counters.failed_calls);
	else if (cmd == UVM_VATTN_ALLOC)
		atomic64_inc(&state->counters.alloc_calls);
	else if (cmd == UVM_VATTN_FREE)
		atomic64_inc(&state->counters.free_calls);
	else if (cmd == UVM_VATTN_MAP)
		atomic64_inc(&state->counters.map_calls);
	else if (cmd == UVM_VATTN_UNMAP)
		atomic64_inc(&state->counters.unmap_calls);
}

static NV_STATUS dispatch(uvm_va_space_t *va_space, unsigned int cmd,
			  union uvm_vattn_params *params)
{
	NV_STATUS status = uvm_global_get_status();

	if (status != NV_OK)
		return status;
	if (cmd == UVM_VATTN_QUERY)
		return query(va_space, &params->query);

	/* As UVM answers before UVM_INITIALIZE. */
	if (!va_space)
		return NV_ERR_ILLEGAL_ACTION;

	switch (cmd) {
	case UVM_VATTN_ALLOC:
		status = uvm_vattn_alloc(va_space, &params->alloc);
		break;
	case UVM_VATTN_FREE:
		status = uvm_vattn_free(va_space, &params->free);
		break;
	case UVM_VATTN_MAP:
		status = uvm_vattn_map(va_space, &params->map);
		break;
	case UVM_VATTN_UNMAP:
		status = uvm_vattn_unmap(va_space, &params->unmap);
		break;
	case UVM_VATTN_STATS:
		return stats(va_space, &params->stats);
	}
	count_call(va_space, cmd, status);
	return status;
}

bool uvm_vattn_is_ioctl(unsigned int cmd)
{
	if (!uvm_vattn_enable)
		return false;

	switch (cmd) {
	case UVM_VATTN_QUERY:
	case UVM_VATTN_ALLOC:
	case UVM_VATTN_FREE:
	case UVM_VATTN_MAP:
	case UVM_VATTN_UNMAP:
	case UVM_VATTN_STATS:
		return true;
	}
	return false;
}

long uvm_vattn_ioctl(struct file *filp, unsigned int cmd, unsigned long arg)
{
	void __user *user = (void __user *)arg;
	union uvm_vattn_params params;
	size_t size = _IOC_SIZE(cmd);
	u32 *rm_status = (u32 *)((u8 *)&params + size) - 1;

	if (copy_from_user(&params, user, size))
		return -EFAULT;

	/* The answer must fit back before anything is done that it reports. */
	if (copy_to_user(user, &params, size))
		return -EFAULT;

	*rm_status = dispatch(uvm_fd_va_space(filp), cmd, &params);

	if (copy_to_user(user, &params, size))
		return -EFAULT;
	return 0;
}
