# SPDX-License-Identifier: MIT OR GPL-2.0
# The emulated machine that proves the patched module. See driver_patch/vm/README.md.
VM := driver_patch/vm
VM_RELEASES ?= 535.261.03 550.163.01
VM_RELEASE ?= $(lastword $(VM_RELEASES))

.PHONY: vm-test vm-shell vm-hardening vm-mutants vm-coverage

vm-test: $(VENV)/.build ## Test the patched kernel module on a simulated GPU in QEMU
	$(VM)/test-all $(VM_RELEASES)

vm-shell: ## A shell in the emulated machine (VM_RELEASE=…)
	scripts/vm-shell $(VM_RELEASE)

vm-hardening: ## The same tests with UVM's assertions, on kernels that check themselves (KASAN, lockdep, kmemleak); races on two CPUs
	$(VM)/test-races $(VM_RELEASES)
	$(VM)/test-hardening $(VM_RELEASES)

vm-coverage: ## Lines of uvm_vattn*.[ch] that the tests execute
	$(VM)/test-coverage $(VM_RELEASE)

vm-mutants: ## Break the kernel code in each way of driver_patch/vm/mutants; every one must be caught
	$(VM)/test-mutants $(VM_RELEASE)
