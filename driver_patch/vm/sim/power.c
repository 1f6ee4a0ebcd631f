// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Suspend and resume, in RM's order: the work of users stops, UVM is told, the GPU loses its state
 * except for memory that somebody owns, and back. A thread does it, because UVM keeps its locks from
 * one to the other.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/lockdep.h>

#include "gpusim.h"

#define POISON 0x5a
#define IDLE_ATTEMPTS 10000

DECLARE_RWSEM(sim_user_work);

static struct UvmOpsUvmEvents *uvm_events;
static DEFINE_MUTEX(power_lock);
static struct task_struct *sleeper;
static DECLARE_COMPLETION(asleep);
static DECLARE_COMPLETION(wake);
static DECLARE_COMPLETION(awake);
static bool suspended;
static NV_STATUS result;

bool sim_is_suspended(void)
{
	return READ_ONCE(suspended);
}

NV_STATUS nvUvmInterfaceRegisterUvmCallbacks(struct UvmOpsUvmEvents *importedUvmOps)
{
	SIM_MAY_FAIL();
	mutex_lock(&power_lock);
	uvm_events = importedUvmOps;
	mutex_unlock(&power_lock);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceRegisterUvmCallbacks);

void nvUvmInterfaceDeRegisterUvmOps(void)
{
	mutex_lock(&power_lock);
	uvm_events = NULL;
	mutex_unlock(&power_lock);
}
EXPORT_SYMBOL(nvUvmInterfaceDeRegisterUvmOps);

/* What UVM had pushed before is carried out first. */
static void stop_channels(struct sim_gpu *gpu)
{
	int attempt;

	for (attempt = 0; attempt < IDLE_ATTEMPTS; attempt++) {
		mutex_lock(&gpu->lock);
		gpu->suspended = sim_channels_are_idle(gpu);
		mutex_unlock(&gpu->lock);
		if (gpu->suspended)
			return;
		usleep_range(100, 500);
	}
	sim_model_error("the channels do not become idle");
}

/* RM saves the memory that somebody owns; the rest, and what the MMU remembers, is lost. */
static void power_down(struct sim_gpu *gpu)
{
	struct sim_vaspace *vas;
	u64 at;

	stop_channels(gpu);
	mutex_lock(&gpu->lock);
	if (!list_empty(&gpu->channels))
		for (at = 0; at < gpu->fb_size; at += SIM_PAGE_SIZE)
			if (!sim_page_in_use(gpu, at))
				memset(sim_fb(gpu, at), POISON, SIM_PAGE_SIZE);
	list_for_each_entry(vas, &gpu->vaspaces, node)
		sim_tlb_flush(&vas->tlb);
	mutex_unlock(&gpu->lock);
}

static void power_up(struct sim_gpu *gpu)
{
	mutex_lock(&gpu->lock);
	gpu->suspended = false;
	mutex_unlock(&gpu->lock);
}

static int sleep_and_wake(void *unused)
{
	unsigned int i;

	/* UVM holds the locks of all VA spaces at once, and turns its own tracking of locks off for it. */
	lockdep_off();
	down_write(&sim_user_work);
	result = uvm_events->suspend();
	WRITE_ONCE(suspended, true);
	for (i = 0; i < sim_gpu_count; i++)
		power_down(sim_gpus[i]);
	complete(&asleep);

	wait_for_completion(&wake);
	for (i = 0; i < sim_gpu_count; i++)
		power_up(sim_gpus[i]);
	WRITE_ONCE(suspended, false);
	if (result == NV_OK)
		result = uvm_events->resume();
	up_write(&sim_user_work);
	lockdep_on();
	sim_rm_user_reap();
	complete(&awake);
	return 0;
}

/* Returns once the system sleeps: what UVM has begun is finished first. */
int sim_suspend(void)
{
	int error = 0;

	mutex_lock(&power_lock);
	if (sleeper) {
		error = -EBUSY;
	} else if (!uvm_events) {
		error = -ENODEV;
	} else {
		reinit_completion(&asleep);
		reinit_completion(&wake);
		reinit_completion(&awake);
		sleeper = kthread_run(sleep_and_wake, NULL, "gpusim-power");
		error = PTR_ERR_OR_ZERO(sleeper);
		if (error)
			sleeper = NULL;
	}
	if (!error)
		wait_for_completion(&asleep);
	mutex_unlock(&power_lock);
	return error ?: result == NV_OK ? 0 : -EIO;
}

/* Nothing to do where the system is awake. */
int sim_resume(void)
{
	int error = 0;

	mutex_lock(&power_lock);
	if (sleeper) {
		complete(&wake);
		wait_for_completion(&awake);
		sleeper = NULL;
		error = result == NV_OK ? 0 : -EIO;
	}
	mutex_unlock(&power_lock);
	return error;
}
