// SPDX-License-Identifier: MIT OR GPL-2.0
/* Address spaces of the GPU: UVM's own, and those that users of /dev/nvidiactl made. */
#include <linux/slab.h>

#include "gpusim.h"

struct sim_vaspace *sim_vaspace_create(struct sim_gpu *gpu)
{
	struct sim_vaspace *vas = kzalloc(sizeof(*vas), GFP_KERNEL);

	if (!vas)
		return NULL;
	kref_init(&vas->ref);
	vas->gpu = gpu;
	vas->next_va = gpu->class->rm_base;
	INIT_LIST_HEAD(&vas->mappings);
	sim_tlb_init(&vas->tlb);
	mutex_lock(&gpu->lock);
	list_add(&vas->node, &gpu->vaspaces);
	mutex_unlock(&gpu->lock);
	sim_born(SIM_OBJ_VASPACE);
	return vas;
}

static void release(struct kref *ref)
{
	struct sim_vaspace *vas = container_of(ref, struct sim_vaspace, ref);

	mutex_lock(&vas->gpu->lock);
	if (vas->has_pdb)
		sim_model_error("an address space goes with its page directory still set");
	sim_free_mappings(vas);
	sim_tlb_flush(&vas->tlb);
	list_del(&vas->node);
	mutex_unlock(&vas->gpu->lock);
	kfree(vas);
	sim_died(SIM_OBJ_VASPACE);
}

void sim_vaspace_put(struct sim_vaspace *vas)
{
	kref_put(&vas->ref, release);
}

static void fill_info(struct sim_gpu *gpu, UvmGpuAddressSpaceInfo *info)
{
	memset(info, 0, sizeof(*info));
	info->bigPageSize = UVM_PAGE_SIZE_64K;
	info->time0Offset = &gpu->time[0];
	info->time1Offset = &gpu->time[1];
	info->maxSubctxCount = 1;
}

static NV_STATUS create(struct sim_gpu *gpu, uvmGpuAddressSpaceHandle *handle, UvmGpuAddressSpaceInfo *info)
{
	struct sim_vaspace *vas = sim_vaspace_create(gpu);

	if (!vas)
		return NV_ERR_NO_MEMORY;
	fill_info(gpu, info);
	*handle = (uvmGpuAddressSpaceHandle)vas;
	return NV_OK;
}

#if SIM_BRANCH >= 550
NV_STATUS nvUvmInterfaceAddressSpaceCreate(uvmGpuDeviceHandle device, unsigned long long vaBase,
					   unsigned long long vaSize, NvBool enableAts,
					   uvmGpuAddressSpaceHandle *vaSpace,
					   UvmGpuAddressSpaceInfo *vaSpaceInfo)
{
	SIM_MAY_FAIL();
	if (enableAts)
		return SIM_NOT_MODELLED();
	return create(sim_device(device), vaSpace, vaSpaceInfo);
}
#else
NV_STATUS nvUvmInterfaceAddressSpaceCreate(uvmGpuDeviceHandle device, unsigned long long vaBase,
					   unsigned long long vaSize,
					   uvmGpuAddressSpaceHandle *vaSpace,
					   UvmGpuAddressSpaceInfo *vaSpaceInfo)
{
	SIM_MAY_FAIL();
	return create(sim_device(device), vaSpace, vaSpaceInfo);
}
#endif
EXPORT_SYMBOL(nvUvmInterfaceAddressSpaceCreate);

NV_STATUS nvUvmInterfaceDupAddressSpace(uvmGpuDeviceHandle device, NvHandle hUserClient,
					NvHandle hUserVASpace, uvmGpuAddressSpaceHandle *vaSpace,
					UvmGpuAddressSpaceInfo *vaSpaceInfo)
{
	struct sim_vaspace *vas;

	SIM_MAY_FAIL();
	vas = sim_user_vaspace_get(hUserClient, hUserVASpace);
	if (!vas)
		return NV_ERR_INVALID_OBJECT_HANDLE;
	if (vas->gpu != sim_device(device)) {
		sim_vaspace_put(vas);
		return NV_ERR_INVALID_DEVICE;
	}
	fill_info(vas->gpu, vaSpaceInfo);
	*vaSpace = (uvmGpuAddressSpaceHandle)vas;
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceDupAddressSpace);

void nvUvmInterfaceAddressSpaceDestroy(uvmGpuAddressSpaceHandle vaSpace)
{
	sim_vaspace_put(sim_vas(vaSpace));
}
EXPORT_SYMBOL(nvUvmInterfaceAddressSpaceDestroy);

NV_STATUS nvUvmInterfaceSetPageDirectory(uvmGpuAddressSpaceHandle vaSpace, NvU64 physAddress,
					 unsigned int numEntries, NvBool bVidMemAperture, NvU32 pasid)
{
	struct sim_vaspace *vas = sim_vas(vaSpace);
	NV_STATUS status = NV_OK;

	SIM_MAY_FAIL();
	mutex_lock(&vas->gpu->lock);
	if (vas->has_pdb) {
		status = NV_ERR_NOT_SUPPORTED;
	} else {
		vas->pdb = physAddress;
		vas->pdb_aperture = bVidMemAperture ? SIM_VID : SIM_SYS;
		vas->has_pdb = true;
		sim_tlb_flush(&vas->tlb);
	}
	mutex_unlock(&vas->gpu->lock);
	return status;
}
EXPORT_SYMBOL(nvUvmInterfaceSetPageDirectory);

NV_STATUS nvUvmInterfaceUnsetPageDirectory(uvmGpuAddressSpaceHandle vaSpace)
{
	struct sim_vaspace *vas = sim_vas(vaSpace);

	mutex_lock(&vas->gpu->lock);
	vas->has_pdb = false;
	sim_tlb_flush(&vas->tlb);
	mutex_unlock(&vas->gpu->lock);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceUnsetPageDirectory);
