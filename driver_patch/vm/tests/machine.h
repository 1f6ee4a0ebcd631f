/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* The machine itself: devices, modules, its two channels to the outside. */
#ifndef MACHINE_H
#define MACHINE_H

#include <stddef.h>

void set_up_machine(void);
void read_file(const char *path, char *text, size_t size);	/* empty where there is none */
void expect_the_worst(bool expected);	/* UVM gives up: its warnings end nothing, and only an oops is printed */
/* Modules of a flavour for a chip; parameters of the simulator and of nvidia-uvm, NULL: those of most tests. */
void load_modules(const char *flavour, const char *chip, const char *gpu, const char *uvm);
/* nvidia-uvm alone goes and comes back: 0, or the errno of its loading. */
int reload_uvm(void);
void start_coverage(void);
void start_python(void);	/* for the tests of user space, where the machine has it */
void run_shell(void);
const char *unload_modules(void);	/* NULL, or what went wrong */
const char *scan_kernel_log(const char *allowed);
void save_coverage(void);
const char *find_kernel_leaks(void);	/* on a kernel with kmemleak: NULL, or what it says */

/* say: to the console; report: also to the channel that only results use. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);
__attribute__((format(printf, 1, 2))) void report(const char *format, ...);

#endif
