// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Before anything else is done. A driver upgrade may leave this module where
 * modprobe still prefers it, and only kernels with MODVERSIONS look at the
 * interface between the two; so nvidia.ko is asked for its release, as
 * nvidia-modeset asks.
 */
#include "nv-modeset-interface.h"

#include "uvm_api.h"
#include "uvm_global.h"

#include "uvm_vattn.h"

NV_STATUS uvm_vattn_global_init(void)
{
	nvidia_modeset_rm_ops_t rm = { .version_string = NV_VERSION_STRING };

	if (nvidia_get_rm_ops(&rm) == NV_OK)
		return uvm_global_init();

	pr_err("this nvidia-uvm with the pyvattn patch was built from release %s, but nvidia.ko is of %s: not loaded. Build and install it anew, or take it out (pyvattn driver uninstall), and load nvidia-uvm again.\n",
	       NV_VERSION_STRING, rm.version_string);
	return NV_ERR_LIB_RM_VERSION_MISMATCH;
}
