/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Included before our files of the `checked` flavour: what they call of UVM and of the kernel
 * that can fail, and neither an interface function nor an allocation of UVM is.
 */
#include <linux/xarray.h>

#include "uvm_push.h"

bool gpusim_fails(const char *name);

#define __uvm_push_begin_acquire_with_info(...)		\
	(gpusim_fails("push") ? NV_ERR_NO_MEMORY :	\
	 (__uvm_push_begin_acquire_with_info)(__VA_ARGS__))

#define xa_alloc_cyclic(...) \
	(gpusim_fails("xa_alloc_cyclic") ? -ENOMEM : (xa_alloc_cyclic)(__VA_ARGS__))
