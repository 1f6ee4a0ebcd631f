// SPDX-License-Identifier: MIT OR GPL-2.0
/* /proc/gpusim_ptes: every valid page-table entry, for scripts/decode_ptes. */
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

#include "gpusim.h"

#define WHOLE_VA_SPACE BIT_ULL(49)

static bool show_pte(const struct gpusim_pte *pte, void *data)
{
	seq_printf(data, "pte 0x%llx 0x%llx 0x%016llx\n", pte->va, pte->size, pte->raw);
	return true;
}

static int show(struct seq_file *file, void *unused)
{
	struct sim_vaspace *vas;
	unsigned int i;

	for (i = 0; i < sim_gpu_count; i++) {
		mutex_lock(&sim_gpus[i]->lock);
		list_for_each_entry(vas, &sim_gpus[i]->vaspaces, node) {
			seq_printf(file, "vaspace gpu %u page directory 0x%llx %s\n", i, vas->pdb,
				   !vas->has_pdb ? "unset" : vas->pdb_aperture == SIM_VID ? "video" : "system");
			sim_for_each_pte(vas, 0, WHOLE_VA_SPACE, show_pte, file);
		}
		mutex_unlock(&sim_gpus[i]->lock);
	}
	return 0;
}

int sim_dump_init(void)
{
	return proc_create_single("gpusim_ptes", 0400, NULL, show) ? 0 : -ENOMEM;
}

void sim_dump_exit(void)
{
	remove_proc_entry("gpusim_ptes", NULL);
}
