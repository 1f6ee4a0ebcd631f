// SPDX-License-Identifier: MIT OR GPL-2.0
/* What the model saw that it should not have seen, and what is alive. */
#include "gpusim.h"

atomic64_t sim_model_errors;
atomic64_t sim_live[SIM_OBJ_COUNT];

static const char *const sim_object_names[SIM_OBJ_COUNT] = {
	[SIM_OBJ_SESSION] = "session",
	[SIM_OBJ_REGISTRATION] = "gpu registration",
	[SIM_OBJ_DEVICE] = "device",
	[SIM_OBJ_VASPACE] = "va space",
	[SIM_OBJ_MAPPING] = "rm mapping",
	[SIM_OBJ_CPU_MAPPING] = "cpu mapping",
	[SIM_OBJ_TSG] = "tsg",
	[SIM_OBJ_CHANNEL] = "channel",
	[SIM_OBJ_MEMORY] = "user memory",
	[SIM_OBJ_DUP] = "duplicated memory",
	[SIM_OBJ_FB_PAGE] = "frame buffer page",
	[SIM_OBJ_FAULT_BUFFER] = "fault buffer",
	[SIM_OBJ_ACCESS_COUNTERS] = "access counter buffer",
	[SIM_OBJ_CLIENT] = "rm client",
	[SIM_OBJ_KERNEL_MEMORY] = "kernel memory",
};

void sim_model_error(const char *format, ...)
{
	struct va_format message;
	va_list args;

	va_start(args, format);
	message.fmt = format;
	message.va = &args;
	pr_err("gpusim: MODEL ERROR: %pV\n", &message);
	va_end(args);
	atomic64_inc(&sim_model_errors);
}

void sim_died(enum sim_object kind)
{
	if (atomic64_dec_return(&sim_live[kind]) < 0)
		sim_model_error("more %s objects freed than made", sim_object_names[kind]);
}

void sim_fill_live(struct gpusim_live *live)
{
	int kind;

	BUILD_BUG_ON(SIM_OBJ_COUNT > GPUSIM_OBJECT_KINDS);
	live->model_errors = atomic64_read(&sim_model_errors);
	live->count = SIM_OBJ_COUNT;
	for (kind = 0; kind < SIM_OBJ_COUNT; kind++) {
		strscpy(live->objects[kind].kind, sim_object_names[kind], sizeof(live->objects[kind].kind));
		live->objects[kind].live = atomic64_read(&sim_live[kind]);
	}
}
