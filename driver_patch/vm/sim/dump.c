// SPDX-License-Identifier: MIT OR GPL-2.0
/* /proc/gpusim_ptes: every valid page-table entry, for scripts/decode_ptes. */
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

#include "gpusim.h"

static bool show_pte(const struct gpusim_pte *pte, void *data)
{
	seq_printf(data, "pte 0x%llx 0x%llx 0x%016llx\n", pte->va, pte->size, pte->raw);
	return true;
}

static void show_vaspace(struct seq_file *file, struct sim_vaspace *vas)
{
	const struct sim_mmu_format *mmu = vas->gpu->class->mmu;
	const char *where = !vas->has_pdb ? "unset" : vas->pdb_aperture == SIM_VID ? "video" : "system";

	seq_printf(file, "vaspace gpu %u version %u page directory 0x%llx %s\n", vas->gpu->index, mmu->version,
		   vas->pdb, where);
	sim_for_each_pte(vas, 0, BIT_ULL(mmu->va_bits), show_pte, file);
}

static int show(struct seq_file *file, void *unused)
{
	struct sim_vaspace *vas;
	unsigned int i;

	for (i = 0; i < sim_gpu_count; i++) {
		mutex_lock(&sim_gpus[i]->lock);
		list_for_each_entry(vas, &sim_gpus[i]->vaspaces, node)
			show_vaspace(file, vas);
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
