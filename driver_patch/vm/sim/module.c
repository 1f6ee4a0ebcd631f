// SPDX-License-Identifier: MIT OR GPL-2.0
/* Start and end of the simulator: one GPU for each pci-testdev of the machine. */
#include <linux/module.h>
#include <linux/slab.h>

#include "gpusim.h"

#define TEST_DEVICE_VENDOR 0x1b36
#define TEST_DEVICE_ID 0x0005

static unsigned int fb_mb = 64;
module_param(fb_mb, uint, 0444);
MODULE_PARM_DESC(fb_mb, "frame buffer of each GPU in MB, a multiple of 2");

static unsigned int gpus = SIM_MAX_GPUS;
module_param(gpus, uint, 0444);
MODULE_PARM_DESC(gpus, "most GPUs to simulate");

static char *chip = "gp102";
module_param(chip, charp, 0444);
MODULE_PARM_DESC(chip, "gp102, tu102, ga100 or gh100");

struct sim_gpu *sim_gpus[SIM_MAX_GPUS];
unsigned int sim_gpu_count;

static void destroy_gpu(struct sim_gpu *gpu)
{
	if (!IS_ERR_OR_NULL(gpu->engine))
		sim_engine_stop(gpu);
	sim_pma_exit(gpu);
	sim_fb_exit(gpu);
	pci_dev_put(gpu->pci);
	kfree(gpu);
}

static int create_gpu(struct pci_dev *pci)
{
	struct sim_gpu *gpu = kzalloc(sizeof(*gpu), GFP_KERNEL);
	int result;

	if (!gpu)
		return -ENOMEM;
	gpu->class = sim_find_class(chip);
	gpu->index = sim_gpu_count;
	gpu->pci = pci_dev_get(pci);
	mutex_init(&gpu->lock);
	INIT_LIST_HEAD(&gpu->channels);
	INIT_LIST_HEAD(&gpu->vaspaces);
	memcpy(gpu->uuid.uuid, "gpusim-uuid-000", 16);
	gpu->uuid.uuid[15] = gpu->index;
	result = dma_set_mask_and_coherent(&pci->dev, DMA_BIT_MASK(47));
	if (!result)
		result = sim_fb_init(gpu, (u64)fb_mb << 20);
	if (!result)
		result = sim_pma_init(gpu);
	if (!result)
		result = sim_engine_start(gpu);
	if (result) {
		destroy_gpu(gpu);
		return result;
	}
	sim_gpus[sim_gpu_count++] = gpu;
	return 0;
}

static void destroy_gpus(void)
{
	while (sim_gpu_count)
		destroy_gpu(sim_gpus[--sim_gpu_count]);
}

static int __init gpusim_init(void)
{
	struct pci_dev *pci = NULL;
	int result = 0;

	if (!fb_mb || fb_mb % 2 || !sim_find_class(chip))
		return -EINVAL;
	while (!result && sim_gpu_count < min(gpus, (unsigned int)SIM_MAX_GPUS) &&
	       (pci = pci_get_device(TEST_DEVICE_VENDOR, TEST_DEVICE_ID, pci)))
		result = create_gpu(pci);
	pci_dev_put(pci);
	if (!result && !sim_gpu_count)
		result = -ENODEV;
	if (result)
		goto no_gpus;
	result = sim_rm_user_init();
	if (result)
		goto no_gpus;
	result = sim_coverage_init();
	if (result)
		goto no_coverage;
	result = sim_dump_init();
	if (result)
		goto no_dump;
	result = sim_proc_init();
	if (result)
		goto no_proc;
	result = sim_test_device_init();
	if (result)
		goto no_test_device;
	return 0;

no_test_device:
	sim_proc_exit();
no_proc:
	sim_dump_exit();
no_dump:
	sim_coverage_exit();
no_coverage:
	sim_rm_user_exit();
no_gpus:
	destroy_gpus();
	return result;
}

static void __exit gpusim_exit(void)
{
	sim_test_device_exit();
	sim_proc_exit();
	sim_dump_exit();
	sim_coverage_exit();
	sim_rm_user_exit();
	destroy_gpus();
}

module_init(gpusim_init);
module_exit(gpusim_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_VERSION(__stringify(SIM_RELEASE));
MODULE_DESCRIPTION("Simulated GPU for tests of nvidia-uvm");
