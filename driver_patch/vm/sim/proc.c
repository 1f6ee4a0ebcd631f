// SPDX-License-Identifier: MIT OR GPL-2.0
/* What /proc/driver/nvidia says of the driver and of its GPUs. */
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/stringify.h>

#include "gpusim.h"

#define ROOT "driver/nvidia"

static int show_version(struct seq_file *file, void *unused)
{
	seq_printf(file, "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  %s  (gpusim)\n",
		   __stringify(SIM_RELEASE));
	return 0;
}

static int show_gpu(struct seq_file *file, void *unused)
{
	struct sim_gpu *gpu = file->private;

	seq_printf(file, "Model: \t\t simulated GPU\nBus Location: \t %s\nDevice Minor: \t %u\n",
		   pci_name(gpu->pci), gpu->index);
	return 0;
}

static bool make_gpu(struct proc_dir_entry *gpus, struct sim_gpu *gpu)
{
	struct proc_dir_entry *directory = proc_mkdir(pci_name(gpu->pci), gpus);

	return directory && proc_create_single_data("information", 0444, directory, show_gpu, gpu);
}

int sim_proc_init(void)
{
	struct proc_dir_entry *root = proc_mkdir(ROOT, NULL);
	struct proc_dir_entry *gpus = root ? proc_mkdir("gpus", root) : NULL;
	bool made = gpus && proc_create_single("version", 0444, root, show_version);
	unsigned int i;

	for (i = 0; made && i < sim_gpu_count; i++)
		made = make_gpu(gpus, sim_gpus[i]);
	if (made)
		return 0;
	sim_proc_exit();
	return -ENOMEM;
}

void sim_proc_exit(void)
{
	remove_proc_subtree(ROOT, NULL);
}
