# SPDX-License-Identifier: Apache-2.0
"""A real Xen on any machine: QEMU emulates a computer that boots Xen, a Debian dom0 with libvirt, and domUs.

`python -m bed.xen` runs tests/xen inside that dom0 and brings their results out.  No Xen hardware, no KVM and
no root at run time; some 4 GB of memory.  What QEMU and Xen need to agree about, each found by trial:

- CPU model Nehalem.  With `max` dom0 crashes (SMAP), with AMD's libvirt's Xen driver does not start.
- No systemd in dom0: xenstored, xenconsoled and libvirtd are started one after another by dom0/sysinit.
- Everything that a domU boots from lies on dom0's own disk.
"""
