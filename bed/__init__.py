# SPDX-License-Identifier: Apache-2.0
"""A bed of real VMs for development: a private libvirt, small guests, nothing of the user's touched.

`packages.prepare` fetches a kernel and builds a guest image once, `rundir.RunDirectory` holds what one run
needs, `libvirtd.PrivateLibvirtd` is a libvirt of its own beside the system's, `vm.VM` a guest on it whose
commands are driven over a serial line.  Used by `make demo` and tests/vm; not part of the distribution.
"""
