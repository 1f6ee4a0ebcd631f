// SPDX-License-Identifier: MIT OR GPL-2.0
/* The one call of nvidia-modeset's that the patch makes: it compares releases. */
#include <linux/module.h>
#include <linux/string.h>
#include <linux/stringify.h>

#include "nv-modeset-interface.h"

static char release[24] = __stringify(SIM_RELEASE);
module_param_string(release, release, sizeof(release), 0644);
MODULE_PARM_DESC(release, "What nvidia.ko says that it is.");

NV_STATUS nvidia_get_rm_ops(nvidia_modeset_rm_ops_t *rm_ops)
{
	if (!strcmp(rm_ops->version_string, release))
		return NV_OK;
	rm_ops->version_string = release;
	return NV_ERR_GENERIC;
}
EXPORT_SYMBOL(nvidia_get_rm_ops);
