# SPDX-License-Identifier: Apache-2.0
"""All of netrng on the bed: the agent in a guest under strace, what it was given, a daemon beside it."""

from __future__ import annotations

import base64
import re
import shlex
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from bed.inside import Inside, Job
from bed.libvirtd import PrivateLibvirtd
from bed.packages import ROOT
from bed.vm import VM
from tests.edge.rig import Hostd

from netrng_guest import wire

PYZ = ROOT / "dist" / "netrng-guest.pyz"
AGENT = "/opt/netrng-guest.pyz"
TRACE = "/run/trace"
# Small stores: a slow source's bytes soon reach the VMs.
SMALL = '[reservoir]\nsize = "8KiB"\nseed_reserve = "1KiB"\n'
DRAIN = "--sink stdout >/dev/null"  # an agent that asks for whatever its window allows
BootVM = Callable[..., VM]

# An agent that ends a stopped rngd after an hour, not after 15 s: on a slow machine a test takes longer.
_PATIENT = (
    f"import sys; sys.path.insert(0, '{AGENT}'); from netrng_guest import main, rngd; "
    "rngd.PARKED_NS *= 240; sys.exit(main.main())"
)

# Whole buffers in hexadecimal (-x -s), with the path behind each descriptor (-y), a file for each process
# (-ff), so that no line is cut in two by another: only for tests, whose source is no secret.
STRACE = f"strace -ff -qq -y -x -s 70000 -e trace=readv,ioctl -o {TRACE}"
_PAID = re.compile(r"RNDADDENTROPY, \{entropy_count=(\d+)")
# Run in the guest: the serial line is slow, so only the bytes that were read cross it.
_BYTES_READ = f"""
import binascii, glob, re
read = re.compile(r'readv\\(\\d+</dev/(?:vport|hvc)[^>]*>, \\[{{iov_base="((?:\\\\x[0-9a-f]{{2}})+)"')
found = []
for name in sorted(glob.glob("{TRACE}.*"), key=lambda name: int(name.rsplit(".", 1)[1])):
    with open(name, encoding="ascii", errors="replace") as trace:
        found += [escaped for line in trace for escaped in read.findall(line)]
data = bytes.fromhex("".join(found).replace("\\\\x", ""))
print(binascii.b2a_base64(data, newline=False).decode())
"""


class Evidence(NamedTuple):
    """What strace saw of an agent and its rngd."""

    samples: list[wire.Sample]
    credited: list[int]  # bits of each RNDADDENTROPY
    reseeds: int

    @property
    def pieces(self) -> list[bytes]:
        return [bytes(sample.data) for sample in self.samples]

    @property
    def sessions(self) -> list[bytes]:
        """In the order of their first samples."""
        return list(dict.fromkeys(sample.session for sample in self.samples))


def boot_with_agent(
    boot_vm: BootVM,
    name: str,
    *,
    trace: bool = True,
    arguments: str = "",
    patient: bool = False,
    **options: object,
) -> VM:
    """A guest whose main program is the agent; its log is /run/main.out.

    ``patient``: it lets an rngd be that takes nothing.
    """
    run = f"{STRACE} " if trace else ""
    program = f"-c {shlex.quote(_PATIENT)}" if patient else AGENT
    main = f"exec {run}python3 -I -S {program} run {arguments}"
    return boot_vm(name, files={AGENT: PYZ}, main=main, **options)


def start_agent(vm: Inside, arguments: str = "", trace: bool = True) -> Job:
    """Starts one by hand, in a guest that has the file."""
    run = f"{STRACE} " if trace else ""
    return vm.spawn(f"exec {run}python3 -I -S {AGENT} run {arguments}")


def evidence(vm: Inside) -> Evidence:
    """What the agent in ``vm`` has been given so far, from the trace of its reads."""
    read = vm.python(_BYTES_READ, 180)
    calls = vm.check(f"grep -o 'RNDADDENTROPY, .entropy_count=[0-9]*\\|RNDRESEEDCRNG' -h {TRACE}.*", 60)
    decoder = wire.Decoder(from_host=True, max_payload=wire.MAX_DATA + 8)
    samples = []
    for frame in decoder.feed(base64.b64decode(read)):
        if isinstance(frame, wire.Sample):
            samples.append(wire.Sample(frame.session, frame.offset, bytearray(frame.data)))
    return Evidence(samples, [int(bits) for bits in _PAID.findall(calls)], calls.count("RNDRESEEDCRNG"))


def evidence_of(vms: Sequence[VM]) -> list[Evidence]:
    """`evidence` of several, at once: what takes time is the guests' serial lines."""
    with ThreadPoolExecutor(len(vms)) as pool:
        return list(pool.map(evidence, vms))


def credits(vm: Inside) -> int:
    """How often the guest's kernel has been credited so far."""
    return int(vm.check(f"cat {TRACE}.* | grep -c 'RNDADDENTROPY, ' || true").split()[0])


def wait_for_credits(vm: Inside, above: int, deadline_s: float = 60) -> int:
    """Waits until the guest's kernel was credited more often than that; says how often."""
    vm.wait_for(lambda: credits(vm) > above, deadline_s, f"more than {above} credits")
    return credits(vm)


def wait_for_acked(hostd: Hostd, vm: Inside, at_least: int, deadline_s: float = 60) -> int:
    """Waits until the daemon has so many bytes acknowledged by the guest; says how many."""
    what = f"{at_least} bytes acknowledged by {vm.name}"
    vm.wait_for(lambda: hostd.domain(vm.name)["bytes_acked"] >= at_least, deadline_s, what)
    return int(hostd.domain(vm.name)["bytes_acked"])


def wait_for_state(hostd: Hostd, vm: Inside, state: str, deadline_s: float = 60) -> dict[str, Any]:
    """Waits until the daemon shows ``vm`` in that state; its status then.  "": it shows no such domain."""

    def seen() -> dict[str, Any] | None:
        domain = hostd.domain(vm.name)
        return domain if domain["state"] == state else None

    return vm.wait_for(seen, deadline_s, f"the state {state!r} in {hostd.log_path}") or {}


def wait_for_ok(hostd: Hostd, vm: Inside) -> None:
    """Waits until the agent has told that its sink took what came."""
    vm.wait_for(lambda: (hostd.domain(vm.name)["agent"] or {}).get("sink_state") == "ok", 30, "its sink")


def uri_state(hostd: Hostd) -> str:
    """How the daemon shows its one URI: "connecting", "connected" or "down"."""
    (uri,) = hostd.status()["uris"]
    return str(uri["state"])


def hostd_config(
    uri: str, source: Path | str, kind: str = "prng", *, transport: str = "socket", extra: str = ""
) -> str:
    """hostd.toml for a private libvirtd; the caller's ``extra`` comes last."""
    return (
        f'[libvirt]\nuris = ["{uri}"]\ntransport = "{transport}"\n'
        f'[[source]]\nname = "test"\nkind = "{kind}"\npath = "{source}"\n{extra}'
    )


def make_hostd(folder: Path, libvirtd: PrivateLibvirtd, source: Path | str, **options: str) -> Hostd:
    """A daemon (not started) for the guests of ``libvirtd``, in a folder of its own."""
    own = folder / f"hostd-{uuid.uuid4().hex[:6]}"
    own.mkdir()
    return Hostd(own, hostd_config(libvirtd.uri, source, **options))
