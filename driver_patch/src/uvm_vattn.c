// SPDX-License-Identifier: MIT OR GPL-2.0
/* The ioctls' entry: parameters in and out, query and statistics. */
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "uvm_global.h"

#include "uvm_vattn_internal.h"

static bool uvm_vattn_enable = true;
module_param(uvm_vattn_enable, bool, 0444);
MODULE_PARM_DESC(uvm_vattn_enable,
		 "Offer the pyvattn ioctls; 0 makes the module answer like a stock one. (bool)");

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

static NV_STATUS stats(uvm_va_space_t *va_space, struct uvm_vattn_stats *params)
{
	struct uvm_vattn_va_space *state;

	if (params->reserved)
		return NV_ERR_INVALID_ARGUMENT;

	memset(params, 0, sizeof(*params));
	params->limit_bytes = uvm_vattn_limit_bytes();
	params->limit_mappings = uvm_vattn_limit_mappings();

	uvm_va_space_down_read(va_space);
	state = uvm_vattn_state(va_space);
	if (state)
		uvm_vattn_state_read(state, params);
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

	if (state)
		uvm_vattn_state_count_call(state, cmd, status);
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

	if (cmd == UVM_VATTN_STATS)
		return stats(va_space, &params->stats);

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
