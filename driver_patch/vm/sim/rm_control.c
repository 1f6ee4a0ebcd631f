// SPDX-License-Identifier: MIT OR GPL-2.0
/* The three questions about GPUs that user space asks RM by NV_ESC_RM_CONTROL. */
#include <linux/uaccess.h>

#include "gpusim.h"

#define GET_ATTACHED_IDS 0x201
#define GET_ID_INFO 0x205
#define GET_UUID_FROM_GPU_ID 0x275
#define UUID_BINARY_SHA1 2
#define INVALID_ID 0xffffffff

struct rm_attached_ids {	/* NV0000_CTRL_GPU_GET_ATTACHED_IDS_PARAMS */
	u32 ids[32];
};

struct rm_id_info {		/* NV0000_CTRL_GPU_GET_ID_INFO_V2_PARAMS */
	u32 id, flags, device_instance, subdevice_instance, sli_status, board, gpu_instance;
	s32 numa;
};

struct rm_uuid {		/* NV0000_CTRL_GPU_GET_UUID_FROM_GPU_ID_PARAMS */
	u32 id, flags;
	u8 uuid[256];
	u32 uuid_size;
};

/* No number of a GPU is another's: an id taken for an index is found out. */
static u32 id_of(unsigned int index)
{
	return 0x2300 + 0x100 * index;
}

static struct sim_gpu *gpu_of(u32 id)
{
	unsigned int i;

	for (i = 0; i < sim_gpu_count; i++)
		if (id_of(i) == id)
			return sim_gpus[i];
	return NULL;
}

static NV_STATUS attached_ids(void __user *user)
{
	struct rm_attached_ids answer;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(answer.ids); i++)
		answer.ids[i] = i < sim_gpu_count ? id_of(i) : INVALID_ID;
	return copy_to_user(user, &answer, sizeof(answer)) ? NV_ERR_INVALID_POINTER : NV_OK;
}

static NV_STATUS id_info(void __user *user)
{
	struct rm_id_info answer;
	struct sim_gpu *gpu;

	if (copy_from_user(&answer, user, sizeof(answer)))
		return NV_ERR_INVALID_POINTER;
	gpu = gpu_of(answer.id);
	if (!gpu)
		return NV_ERR_INVALID_ARGUMENT;
	answer.device_instance = gpu->index;
	answer.gpu_instance = gpu->index;
	return copy_to_user(user, &answer, sizeof(answer)) ? NV_ERR_INVALID_POINTER : NV_OK;
}

static NV_STATUS uuid_from_id(void __user *user)
{
	struct rm_uuid answer;
	struct sim_gpu *gpu;

	if (copy_from_user(&answer, user, sizeof(answer)))
		return NV_ERR_INVALID_POINTER;
	gpu = gpu_of(answer.id);
	if (!gpu || answer.flags != UUID_BINARY_SHA1)
		return NV_ERR_INVALID_ARGUMENT;
	answer.uuid_size = sizeof(gpu->uuid.uuid);
	memcpy(answer.uuid, gpu->uuid.uuid, sizeof(gpu->uuid.uuid));
	return copy_to_user(user, &answer, sizeof(answer)) ? NV_ERR_INVALID_POINTER : NV_OK;
}

NV_STATUS sim_rm_control(u32 command, void __user *params, u32 size)
{
	static const struct {
		u32 command, size;
		NV_STATUS (*answer)(void __user *user);
	} commands[] = {
		{ GET_ATTACHED_IDS, sizeof(struct rm_attached_ids), attached_ids },
		{ GET_ID_INFO, sizeof(struct rm_id_info), id_info },
		{ GET_UUID_FROM_GPU_ID, sizeof(struct rm_uuid), uuid_from_id },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(commands); i++)
		if (commands[i].command == command)
			return commands[i].size == size ? commands[i].answer(params) :
							  NV_ERR_INVALID_PARAM_STRUCT;
	sim_model_error("RM control 0x%x is not modelled", command);
	return NV_ERR_NOT_SUPPORTED;
}
