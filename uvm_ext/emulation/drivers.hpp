// SPDX-License-Identifier: Apache-2.0
// The drivers of an emulated machine: the real ones, on libraries and ioctls of our own.
#pragma once

namespace pyvattn::emulation {

// Makes cumem-emulated, stock-uvm-emulated and patched-emulated known, once.
void register_drivers();

}  // namespace pyvattn::emulation
