// SPDX-License-Identifier: MIT OR GPL-2.0
/* libnvidia-ml.so.1 of the emulated machine: its GPU is whole, neither MIG nor vGPU. */
#define NOT_SUPPORTED 3

int nvmlInit_v2(void)
{
	return 0;
}

int nvmlShutdown(void)
{
	return 0;
}

const char *nvmlErrorString(int result)
{
	return result == NOT_SUPPORTED ? "Not Supported" : "Success";
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device)
{
	*device = (void *)uuid;
	return 0;
}

int nvmlDeviceGetMigMode(void *device, unsigned int *current, unsigned int *pending)
{
	return NOT_SUPPORTED;
}

int nvmlDeviceGetVirtualizationMode(void *device, int *mode)
{
	*mode = 0;
	return 0;
}

int nvmlSystemGetConfComputeState(void *state)
{
	return NOT_SUPPORTED;
}
