# SPDX-License-Identifier: Apache-2.0
"""The emulated computer: QEMU with Xen, a dom0 that runs jobs, and files that take what it has to say."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bed.inside import PATIENCE, Inside
from bed.packages import BedError, say
from bed.xen.images import Images

MEMORY_MIB = 3072
DOM0_MIB = 1280
NEEDED_MIB = 4500  # QEMU keeps up to a gigabyte of translated code besides
# How long a virtual processor keeps its turn: what takes a real computer Xen's 1 ms takes this one some 20.
_XEN_ARGS = (
    f"console=com1 com1=115200,8n1 dom0_mem={DOM0_MIB}M dom0_max_vcpus=2 spec-ctrl=no noreboot "
    "sched_ratelimit_us=20000"
)
# A clock that is no system call: to ask Xen's takes 40 to 80 us on this computer.
_LINUX_ARGS = (
    "console=hvc0 quiet mitigations=off nokaslr random.trust_cpu=on panic=10 cryptomgr.notests "
    "clocksource=tsc tsc=reliable"
)
_BOOT_S, _SAVE_S = 400.0, 300.0


class Computer(Inside):
    """A context manager that switches it on and, at the end, off and forgets what it said.

    ``disk`` is dom0's, as qcow2; ``payload`` see payload.py, its folder takes what the computer says;
    ``memory``: a file that `save` wrote, to go on from. With it, what is written to the disk is forgotten.
    ``out`` and ``results`` hold what was written to /dev/bed-out and /dev/bed-results in dom0.
    """

    def __init__(self, images: Images, disk: Path, payload: Path, memory: Path | None = None) -> None:
        super().__init__("dom0")
        self._images, self._disk, self._payload, self._memory = images, disk, payload, memory
        self._folder = Path(tempfile.mkdtemp(dir=payload.parent))
        self.out = self._folder / "out"
        self.results = self._folder / "results"
        self._process: subprocess.Popen[bytes] | None = None

    def line(self) -> Path | None:
        path = self._folder / "jobs"
        return path if path.exists() else None

    @property
    def console(self) -> Path:
        return self._folder / "console"

    def wait_up(self, deadline_s: float = _BOOT_S) -> None:
        """Until dom0 has started all that it starts by itself, which it tells on the console."""
        shown = 0

        def up() -> bool:
            nonlocal shown
            lines = self.console.read_text(errors="replace").splitlines() if self.console.exists() else []
            told = [line[len("bed: ") :] for line in lines if line.startswith("bed: dom0: ")]
            for line in told[shown:]:
                say(line)
            shown = len(told)
            if any("FAILED" in line or "Panic on CPU" in line for line in lines):
                raise BedError(f"dom0 did not come up\n{self.tail(60)}")
            return any(line.startswith("dom0: up after") for line in told)

        self._wait(up, deadline_s, "dom0")

    def save(self, memory: Path) -> None:
        """Stops it for good, and writes its memory to a file."""
        self._ask("stop")
        self._ask("migrate-set-parameters", **{"max-bandwidth": 1 << 36})
        self._ask("migrate", uri=f"exec:cat >'{memory}'")

        def saved() -> bool:
            state = self._ask("query-migrate")
            if state.get("status") == "failed":
                said = (self._folder / "qemu.log").read_text(errors="replace")[-500:]
                raise BedError(f"QEMU could not save its memory: {state.get('error-desc', '')} {said}")
            return bool(state.get("status") == "completed")

        self._wait(saved, _SAVE_S, "the end of the save")
        self._ask("quit")
        if self._process is not None:
            self._process.wait(_SAVE_S)

    @property
    def ended(self) -> bool:
        """Whether QEMU ended by itself, as it does where it cannot use what it was given."""
        others = (None, 0, -signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM)
        return self._process is not None and self._process.poll() not in others

    def assert_running(self) -> None:
        """Raises BedError, with what QEMU and the console said last, if it has ended."""
        if self._process is None or self._process.poll() is not None:
            log = self._folder / "qemu.log"
            said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            if self._process is not None and self._process.poll() == -signal.SIGKILL:
                said = f"killed, which the kernel does where memory ends; it takes {NEEDED_MIB} MiB. {said}"
            raise BedError(f"the emulated computer ended: {said}\n{self.tail()}")

    def _start(self) -> None:
        with (self._folder / "qemu.log").open("wb") as log:
            # It ends with us, however we end; but not before us, when a terminal tells all of us to.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64", *self._options()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                stdout=log,
                start_new_session=True,
            )
        if self._memory is not None:
            self._wait(lambda: self._ask("query-status")["status"] == "paused", _BOOT_S, "its memory")
            self._ask("cont")

    def _wait(self, condition: Callable[[], bool], deadline_s: float, what: str) -> None:
        deadline = time.monotonic() + PATIENCE * deadline_s
        while not condition():
            self.assert_running()
            if time.monotonic() > deadline:
                raise BedError(f"waited {deadline_s:.0f} s in vain for {what}\n{self.tail(60)}")
            time.sleep(0.1)

    def _ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """One command of QEMU's monitor: https://www.qemu.org/docs/master/interop/qmp-spec.html"""
        path = str(self._folder / "monitor")
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(_SAVE_S)
            # At first there is none, and then nobody listens at it.
            self._wait(lambda: monitor.connect_ex(path) == 0, _BOOT_S, "QEMU's monitor")
            try:
                answer = _exchange(monitor, command, arguments)
            except (OSError, ValueError):
                self.assert_running()
                raise BedError(f"QEMU hung up on {command}") from None
        if "return" not in answer:
            raise BedError(f"QEMU refused {command}: {answer}")
        return dict(answer["return"])

    def _options(self) -> list[str]:
        folder, images = self._folder, self._images
        forget = "off" if self._memory is None else "on"
        incoming = () if self._memory is None else ("-incoming", f"exec:cat '{self._memory}'")
        return [
            *("-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "Nehalem", "-smp", "2"),
            *("-m", str(MEMORY_MIB), "-machine", "pc", "-nodefaults", "-no-user-config", "-no-reboot"),
            *("-display", "none", "-qmp", f"unix:{folder}/monitor,server=on,wait=off"),
            *("-kernel", str(images.xen), "-append", _XEN_ARGS),
            *("-initrd", f"{images.kernel} {_LINUX_ARGS},{images.initrd}"),
            *("-drive", f"file={self._disk},format=qcow2,if=virtio,snapshot={forget},cache=unsafe"),
            *("-drive", f"file={self._payload},format=raw,if=virtio,readonly=on"),
            *("-serial", f"file:{self.console}"),
            *("-chardev", f"socket,id=jobs,path={folder}/jobs,server=on,wait=off", "-serial", "chardev:jobs"),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", f"file,id=out,path={self.out}", "-device", "virtserialport,chardev=out,name=out"),
            *("-chardev", f"file,id=results,path={self.results}"),
            *("-device", "virtserialport,chardev=results,name=results", *incoming),
        ]

    def __enter__(self) -> Computer:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.jobs.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _exchange(monitor: socket.socket, command: str, arguments: dict[str, object]) -> dict[str, Any]:
    """QEMU's answer, whatever it tells meanwhile."""
    with monitor.makefile("rw") as lines:
        lines.readline()  # its greeting
        answer: dict[str, Any] = {}
        for execute, given in (("qmp_capabilities", {}), (command, arguments)):
            lines.write(json.dumps({"execute": execute, "arguments": given}) + "\n")
            lines.flush()
            answer = {"event": ""}
            while "event" in answer:
                answer = json.loads(lines.readline())
    return answer
