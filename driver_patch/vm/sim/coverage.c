// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Line coverage of an instrumented nvidia-uvm, for kernels that are built without gcov:
 * the module's constructors are called here, and the file
 * /proc/gpusim_coverage holds what gcov reads (.gcda).
 */
#include <linux/list.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/module.h>

#include "gpusim.h"

/* The layout that gcc 12 and 13 emit, see gcc's gcov-io.h. */
#define GCOV_COUNTERS 8
#define TAG_FUNCTION 0x01000000
#define TAG_COUNTERS 0x01a10000
#define GCDA_MAGIC 0x67636461

struct gcov_ctr_info {
	unsigned int num;
	s64 *values;
};

struct gcov_fn_info {
	const struct gcov_info *key;
	unsigned int ident;
	unsigned int lineno_checksum;
	unsigned int cfg_checksum;
	struct gcov_ctr_info counters[];
};

struct gcov_info {
	unsigned int version;
	struct gcov_info *next;
	unsigned int stamp;
	unsigned int checksum;
	const char *filename;
	void (*merge[GCOV_COUNTERS])(s64 *counters, unsigned int count);
	unsigned int functions_count;
	struct gcov_fn_info *const *functions;
};

static struct gcov_info *sources;

void __gcov_init(struct gcov_info *info);
void __gcov_init(struct gcov_info *info)
{
	info->next = sources;
	sources = info;
}
EXPORT_SYMBOL(__gcov_init);

void __gcov_exit(void);
void __gcov_exit(void)
{
}
EXPORT_SYMBOL(__gcov_exit);

void __gcov_merge_add(s64 *counters, unsigned int count);
void __gcov_merge_add(s64 *counters, unsigned int count)
{
}
EXPORT_SYMBOL(__gcov_merge_add);

static void put(struct seq_file *file, u32 word)
{
	seq_write(file, &word, sizeof(word));
}

static void put_counters(struct seq_file *file, const struct gcov_ctr_info *counters)
{
	unsigned int i;

	put(file, TAG_COUNTERS);
	put(file, counters->num * 8);
	for (i = 0; i < counters->num; i++) {
		put(file, lower_32_bits(counters->values[i]));
		put(file, upper_32_bits(counters->values[i]));
	}
}

/* Every source file: a line with its name, then the length and bytes of its .gcda. */
static int show(struct seq_file *file, void *unused)
{
	struct gcov_info *info;
	unsigned int i;

	for (info = sources; info; info = info->next) {
		size_t length = 16;

		for (i = 0; i < info->functions_count; i++) {
			struct gcov_fn_info *fn = info->functions[i];

			if (fn && fn->key == info)
				length += 20 + 8 + fn->counters[0].num * 8;
		}
		seq_printf(file, "%s %zu\n", info->filename, length);
		put(file, GCDA_MAGIC);
		put(file, info->version);
		put(file, info->stamp);
		put(file, info->checksum);
		for (i = 0; i < info->functions_count; i++) {
			struct gcov_fn_info *fn = info->functions[i];

			if (!fn || fn->key != info)
				continue;
			put(file, TAG_FUNCTION);
			put(file, 12);
			put(file, fn->ident);
			put(file, fn->lineno_checksum);
			put(file, fn->cfg_checksum);
			put_counters(file, &fn->counters[0]);
		}
	}
	return 0;
}

int sim_coverage_construct(const struct gpusim_constructors *request)
{
	void (**constructor)(void) = (void *)(uintptr_t)request->address;
	u64 i;

	if (sources || request->size % sizeof(*constructor))
		return -EINVAL;
	for (i = 0; i < request->size / sizeof(*constructor); i++)
		constructor[i]();
	return 0;
}

int sim_coverage_init(void)
{
	return proc_create_single("gpusim_coverage", 0400, NULL, show) ? 0 : -ENOMEM;
}

void sim_coverage_exit(void)
{
	remove_proc_entry("gpusim_coverage", NULL);
}
