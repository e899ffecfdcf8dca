# SPDX-License-Identifier: Apache-2.0
"""What happened in a guest, in order: sessions, each with its bytes, seed and reseeds, and rngd's credits.

From the traces that rig.boot_with_agent makes strace write, one file for each process: the agent's tells in
which session a seed and a reseed came, because one thread reads, credits and reseeds.
"""

from __future__ import annotations

import base64
import io
import json
import re
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bed.inside import Inside
from bed.libvirtd import PrivateLibvirtd
from bed.vm import VM
from tests.edge.rig import Hostd, wait_for
from tests.vm.rig import TRACE, hostd_config, wait_for_credits

from netrng_guest import wire
from netrng_guest.wire import SEED_SIZE

WINDOW = 4096
BLOCK_CREDITS = 39  # what rng-tools5 credits of a block

# Run in the guest, so that only what matters crosses the slow serial line.  A record: process, what it did,
# bits, length; and the bytes.  Of those that rngd credited the first are enough to tell which they are.
TOLD = 16
_HEADER = ">IBII"
_READ, _CREDIT, _RESEED = range(3)
_EXCERPT = f"""
import binascii, glob, re, struct
call = re.compile(
    r'readv\\(\\d+</dev/(?:vport|hvc)[^>]*>, \\[{{iov_base="((?:\\\\x[0-9a-f]{{2}})+)"'
    r'|RNDADDENTROPY, {{entropy_count=(\\d+), buf_size=\\d+, buf="((?:\\\\x[0-9a-f]{{2}})+)"'
    r'|RNDRESEEDCRNG'
)
records = bytearray()
for name in sorted(glob.glob("{TRACE}.*"), key=lambda name: int(name.rsplit(".", 1)[1])):
    pid = int(name.rsplit(".", 1)[1])
    told = {TOLD}
    with open(name, encoding="ascii", errors="replace") as trace:
        for line in trace:
            found = call.search(line)
            if found is None:
                continue
            read, bits, paid = found.groups()
            data = bytes.fromhex((read or paid or "").replace("\\\\x", ""))
            if read:
                told = {SEED_SIZE}  # the agent
            elif paid:
                data = data[:told]
            what = {_READ} if read else {_CREDIT} if paid else {_RESEED}
            records += struct.pack("{_HEADER}", pid, what, int(bits or 0), len(data)) + data
print(binascii.b2a_base64(records, newline=False).decode())
"""


@dataclass
class Session:
    """One session as the agent saw it."""

    name: bytes
    data: bytearray = field(default_factory=bytearray)  # all that arrived, in order
    credits: list[tuple[int, bytes]] = field(default_factory=list)  # of the agent: bits, first 64 bytes
    reseeds: int = 0

    def assert_seeded(self) -> None:
        """The agent credited its first 64 bytes and nothing else, and told the kernel once to reseed."""
        self.assert_seed_first()
        assert (len(self.credits), self.reseeds) == (1, 1), self.name.hex()

    def assert_seed_first(self) -> None:
        """Its first 64 bytes were credited in full before anything else, and the kernel told to reseed."""
        assert self.credits[0] == (512, bytes(self.data[:64])), self.name.hex()
        assert self.reseeds >= 1, self.name.hex()


@dataclass
class Diary:
    """`sessions`: those in which bytes came, or were credited.

    `rngd`: the first 16 bytes of each of its credits, the first rngd first.
    """

    sessions: list[Session]
    rngd: list[list[bytes]]

    @property
    def credits(self) -> list[bytes]:
        """What all rngds credited."""
        return [piece for one in self.rngd for piece in one]

    @property
    def last(self) -> Session:
        """The newest session."""
        return self.sessions[-1]


def diary(vm: Inside) -> Diary:
    """All that happened in ``vm`` so far; in a restored guest that begins before it was saved."""
    sessions: dict[bytes, Session] = {}
    rngd: dict[int, list[bytes]] = {}
    agent = 0
    decoder = wire.Decoder(from_host=True, max_payload=wire.GUEST_MAX_PAYLOAD)
    records = io.BytesIO(base64.b64decode(vm.python(_EXCERPT, 180)))
    while header := records.read(struct.calcsize(_HEADER)):
        pid, what, bits, length = struct.unpack(_HEADER, header)
        data = records.read(length)
        if what == _READ:
            agent = pid
            for frame in decoder.feed(data):
                if isinstance(frame, wire.Accept):
                    sessions.setdefault(frame.session, Session(frame.session))
                elif isinstance(frame, wire.Sample):
                    sessions[frame.session].data.extend(frame.data)
        elif pid != agent:
            rngd.setdefault(pid, []).append(data)
        elif what == _CREDIT:
            list(sessions.values())[-1].credits.append((bits, data))
        else:
            list(sessions.values())[-1].reseeds += 1
    used = [one for one in sessions.values() if one.data or one.credits or one.reseeds]
    return Diary(used, list(rngd.values()))


def park_a_window(hostd: Hostd, vm: VM) -> int:
    """Stops the rngd of a patient agent and waits until all is full; the bytes acknowledged then."""
    vm.check("kill -STOP $(pidof rngd)")

    def full() -> dict[str, Any] | None:
        domain = at(hostd, vm.host.uri)
        return domain if domain["in_flight"] == WINDOW else None

    return int((vm.wait_for(full, 60, "a full window") or {})["bytes_acked"])


def assert_dropped(hostd: Hostd, vm: VM, old: Diary, parked: bytes) -> Diary:
    """Lets rngd go on in a new session: it takes a block of that, and nothing ``parked`` in an old one.

    There may be two new sessions: libvirt tells twice that a machine goes on, and the second time may come
    when the session that followed the first is open.
    """
    # It opens when the agent has ended the old one.  Before that, rngd would be right to take what is parked.
    vm.wait_for(lambda: at(hostd, vm.host.uri).get("state") == "open", 60, "a new session")
    vm.check("kill -CONT $(pidof rngd)")
    wait_for_credits(vm, len(old.sessions) + len(old.credits) + 1 + BLOCK_CREDITS)
    seen = diary(vm)
    known, new = seen.sessions[: len(old.sessions)], seen.sessions[len(old.sessions) :]
    assert [one.name for one in known] == [one.name for one in old.sessions]
    assert known == old.sessions, "nothing more of an old session arrives, or is credited"
    assert 1 <= len(new) <= 2
    for one in new:
        one.assert_seeded()
    since = seen.credits[len(old.credits) :]
    assert not any(piece in parked for piece in since), "a byte that was parked was handed on"
    assert any(piece in one.data for piece in since for one in new)
    return seen


def wait_for_lost(hostd: Hostd, name: str) -> list[int]:
    """Waits until the log tells of the end of a session of ``name``; what was lost in flight, of each end."""
    ended = rf"{re.escape(name)}: session ended: .*; (\d+) bytes in flight lost"
    found = wait_for(lambda: re.findall(ended, hostd.log), f"the end of a session, in {hostd.log_path}", 60)
    return [int(n_bytes) for n_bytes in found]


def at(hostd: Hostd, uri: str) -> dict[str, Any]:
    """The status of the one domain at ``uri``; {} while there is none."""
    found = [one for one in hostd.status()["domains"] if one["uri"] == uri]
    assert len(found) <= 1
    return found[0] if found else {}


def hostd_for(folder: Path, libvirtds: Sequence[PrivateLibvirtd], source: Path, extra: str = "") -> Hostd:
    """A daemon (not started) that watches several."""
    own = folder / f"hostd-{uuid.uuid4().hex[:6]}"
    own.mkdir()
    config = hostd_config(libvirtds[0].uri, source, extra=extra)
    return Hostd(own, config.replace(f'["{libvirtds[0].uri}"]', json.dumps([one.uri for one in libvirtds])))
