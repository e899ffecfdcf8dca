# SPDX-License-Identifier: Apache-2.0
"""`make demo`: three small VMs with different quotas, fed from this machine's hardware RNG, seen live.

Everything lies in one folder under /tmp and ends with the demo, on Ctrl-C too; the user's own libvirt is
not touched, no service is started.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import libvirt
from rich import box
from rich.console import Console
from rich.table import Table

from bed.libvirtd import PrivateLibvirtd
from bed.packages import ROOT, BedError, prepare
from bed.rundir import RunDirectory
from bed.vm import VM

PYZ = ROOT / "dist" / "netrng-guest.pyz"
HWRNG = Path("/dev/hwrng")
START_S, STOP_S = 300, 90  # at rest it takes seconds; a busy machine takes its time
AGENT_RATE = "50kB/s"  # far more than each is due, so that the quotas decide
# One line per RNDADDENTROPY: which process called it and how many bits it credited; no bytes (-s 0).
TRACE = "strace -f -qq -s 0 -e trace=ioctl -o /run/credits"
COUNT_CREDITS = (
    "grep -o 'RNDADDENTROPY, {entropy_count=[0-9]*' /run/credits |"
    " awk -F= '{ calls++; bits += $2 } END { print calls + 0, bits / 8 }'"
)


class DemoQuota(NamedTuple):
    """A line of the demo's hostd.toml; rates in bytes per second."""

    domain: str
    reservation: int
    weight: int
    limit: int | None


QUOTAS = (
    DemoQuota("db-1", 1024, 300, None),
    DemoQuota("web-1", 0, 100, None),
    DemoQuota("batch-1", 0, 100, 800),
)


def main() -> int:
    """Runs the demo; 0 when every VM was fed and its kernel credited."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    libvirt.registerErrorHandler(lambda *_: None, None)  # it would print what is raised as well
    console = Console(highlight=False)
    try:
        return run(console, feeding_seconds(os.environ.get("DEMO_SECONDS", "60")))
    except KeyboardInterrupt:
        console.print("\ninterrupted; everything is cleaned up")
        return 130
    except (BedError, subprocess.SubprocessError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def feeding_seconds(given: str) -> int:
    """What DEMO_SECONDS says.  Raises BedError."""
    if not (given.isdecimal() and len(given) <= 5 and 1 <= int(given) <= 86400):
        raise BedError(f"DEMO_SECONDS={given}: allowed: 1 to 86400")
    return int(given)


def run(console: Console, seconds: int) -> int:
    """One demo of ``seconds`` of feeding."""
    step = _steps(console)
    step("the kernel and the image that the VMs boot (downloaded once, into .cache/)")
    artefacts = prepare()
    become_root = [] if os.geteuid() == 0 else ["sudo"]
    try:
        subprocess.run([*become_root, "true"], check=True)  # asks for the password, and waits for it
    except (OSError, subprocess.CalledProcessError):
        raise BedError("hostd reads the hardware RNG as root: run make demo as root, or allow sudo") from None
    kind, path = choose_source(become_root, console)
    with contextlib.ExitStack() as stack:
        run_directory = stack.enter_context(RunDirectory())
        step("a private libvirt, unprivileged, in " + str(run_directory.path))
        libvirtd = stack.enter_context(PrivateLibvirtd(run_directory))
        config = run_directory.path / "hostd.toml"
        control = run_directory.path / "hostd.sock"
        config.write_text(hostd_toml(control, libvirtd.uri, kind, path))
        step(f"netrng-hostd on {path}: {' '.join(become_root)} netrng-hostd run --config {config}")
        hostd = [sys.executable, "-m", "netrng_hostd"]
        log_path = run_directory.path / "hostd.log"
        log = stack.enter_context(log_path.open("wb"))
        command = [*hostd, "run", "--config", str(config)]
        daemon = Daemon(stack.enter_context(process(command, become_root, log)), log_path)
        step(f"{len(QUOTAS)} VMs, each with netrng-guest and rngd")
        vms = [
            VM(
                libvirtd,
                artefacts,
                quota.domain,
                files={"/opt/netrng-guest.pyz": PYZ},
                main=f"{TRACE} python3 -I -S /opt/netrng-guest.pyz run --rate {AGENT_RATE}",
                rngd=artefacts.rngd[index % len(artefacts.rngd)],
            )
            for index, quota in enumerate(QUOTAS)
        ]
        for vm in vms:
            stack.callback(vm.close)
            vm.start(wait=False)
        status = [*hostd, "status", "--config", str(config)]
        query = [*become_root, *status]
        wait_until(lambda: all_open(query), daemon, START_S, "all agents to answer")
        before, credited_before = answer_of(query, daemon), credits(vms)
        step(f"{seconds} s of feeding, as `netrng-hostd status --watch` shows it (Ctrl-C ends the demo)")
        watch(status, become_root, seconds, console, daemon)
        after, credited_after = answer_of(query, daemon), credits(vms)
        credited = {name: now - credited_before[name] for name, now in credited_after.items()}
        done = report(console, before, after, credited)
        step("cleaning up")
    return 0 if done else 1


class Credits(NamedTuple):
    """RNDADDENTROPY calls of a guest, and the bytes that they credited."""

    calls: int
    n_bytes: int

    def __sub__(self, other: Credits) -> Credits:
        return Credits(self.calls - other.calls, self.n_bytes - other.n_bytes)


def credits(vms: list[VM]) -> dict[str, Credits]:
    """What each guest's kernel has been credited with so far, from strace's record; all asked at once."""
    jobs = [(vm.name, vm.spawn(COUNT_CREDITS)) for vm in vms]
    return {name: Credits(*map(int, job.result(60).out.split())) for name, job in jobs}


def choose_source(become_root: list[str], console: Console) -> tuple[str, str]:
    """(kind, path): /dev/hwrng where it delivers, else a PRNG, and says so."""
    try:
        probe = subprocess.run(
            [*become_root, "head", "-c", "16", str(HWRNG)], capture_output=True, timeout=30, check=False
        )
        if probe.returncode == 0 and len(probe.stdout) == 16:
            return "device", str(HWRNG)
        reason = probe.stderr.decode(errors="replace").strip() or "it delivers nothing"
    except subprocess.TimeoutExpired:
        reason = "it delivers nothing within 30 s"
    console.print(f"[bold yellow]no usable {HWRNG} here ({reason}): the source is a PRNG, and labelled so[/]")
    return "prng", "/dev/urandom"


def hostd_toml(control: Path, uri: str, kind: str, path: str) -> str:
    """The demo's configuration; a slow source needs no large reserve for three seeds."""
    quotas = "".join(
        f'\n[[quota]]\nname = "{q.domain}"\nmatch = ["{q.domain}"]\nreservation = {q.reservation}\n'
        f"weight = {q.weight}\n" + (f"limit = {q.limit}\n" if q.limit else "")
        for q in QUOTAS
    )
    return f"""\
control = "{control}"

[reservoir]
size = "16KiB"
seed_reserve = "1KiB"

[libvirt]
uris = ["{uri}"]

[[source]]
name = "{Path(path).name}"
kind = "{kind}"
path = "{path}"
{quotas}"""


@contextlib.contextmanager
def process(
    command: list[str], become_root: list[str], log: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """``command``, as root, until the block ends; stderr goes to ``log``.

    In its own process group, for Ctrl-C is ours to handle; but in our session, for sudo remembers a password
    by terminal and session. A process group in the background could not ask for it.
    """
    started = subprocess.Popen(
        [*become_root, *(["-n"] if become_root else []), *command],
        stderr=log,
        stdin=subprocess.DEVNULL,
        # One system call, so it is safe; Popen's own way came with Python 3.11.
        preexec_fn=os.setpgrp,  # noqa: PLW1509
    )
    try:
        yield started
    finally:
        # Through sudo the process belongs to root, and only root may end it; its group has its leader's pid.
        if started.poll() is None:
            end = "import os, signal, sys; os.killpg(int(sys.argv[1]), signal.SIGTERM)"
            subprocess.run([*become_root, sys.executable, "-c", end, str(started.pid)], check=False)
        started.wait(STOP_S)


class Daemon(NamedTuple):
    """netrng-hostd, or the sudo that runs it, and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    def must_run(self) -> None:
        """Raises BedError, with the last line of the log, when it has ended."""
        code = self.process.poll()
        if code is not None:
            last = self.log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise BedError(f"netrng-hostd ended with exit code {code}: {last}")


def status_of(query: list[str]) -> dict[str, Any]:
    """`status --json`; empty while no daemon answers."""
    answer = subprocess.run([*query, "--json"], capture_output=True, check=False)
    return dict(json.loads(answer.stdout)) if answer.returncode == 0 else {}


def answer_of(query: list[str], daemon: Daemon) -> dict[str, Any]:
    """The same; raises BedError when none answers."""
    status = status_of(query)
    if not status:
        daemon.must_run()
        raise BedError("netrng-hostd does not answer")
    return status


def all_open(query: list[str]) -> bool:
    domains = status_of(query).get("domains", [])
    return len(domains) == len(QUOTAS) and all(
        domain["state"] == "open" and domain["bytes_acked"] > 0 for domain in domains
    )


def wait_until(condition: Callable[[], bool], daemon: Daemon, deadline_s: float, what: str) -> None:
    """Raises BedError when the deadline passes or the daemon ends."""
    end = time.monotonic() + deadline_s
    while not condition():
        daemon.must_run()
        if time.monotonic() > end:
            raise BedError(f"waited {deadline_s:.0f} s for {what}")
        time.sleep(0.3)


def watch(status: list[str], become_root: list[str], seconds: int, console: Console, daemon: Daemon) -> None:
    """Shows the status live on a terminal, every ten seconds elsewhere; ends early only with an error."""
    end = time.monotonic() + seconds
    if not console.is_terminal:
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(10.0, left))
            daemon.must_run()
            subprocess.run([*become_root, *status], check=False)
        return
    # A sudo in the background does not pass the terminal's size on.
    size = ["env", f"COLUMNS={console.width}", f"LINES={console.height}"]
    with process([*size, *status, "--watch"], become_root) as live:
        while (left := end - time.monotonic()) > 0:
            daemon.must_run()
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise BedError(f"netrng-hostd status ended with exit code {live.wait(min(1.0, left))}")


def due(quotas: tuple[DemoQuota, ...], total: float) -> dict[str, float]:
    """Each domain's rate when all ask: clamp(λ · weight, reservation, limit), λ such that they add up."""

    def shares(factor: float) -> dict[str, float]:
        return {
            q.domain: min(max(factor * q.weight, q.reservation), q.limit if q.limit else total)
            for q in quotas
        }

    low, high = 0.0, total
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares(middle).values()) < total else (low, middle)
    return shares(low)


def report(
    console: Console, before: dict[str, Any], after: dict[str, Any], credited: dict[str, Credits]
) -> bool:
    """Prints what each VM got beside what it was due; False when one got nothing or was not credited."""
    elapsed = after["time"] - before["time"]
    first = {domain["name"]: domain for domain in before["domains"]}
    got = {d["name"]: d["bytes_acked"] - first[d["name"]]["bytes_acked"] for d in after["domains"]}
    total = sum(got.values())
    expected = due(QUOTAS, total / elapsed)
    read = sum(s["bytes_read"] for s in after["sources"]) - sum(s["bytes_read"] for s in before["sources"])
    stored = after["reservoir"]["stored"] - before["reservoir"]["stored"]
    table = Table(title=f"received in {elapsed:.0f} s, beside what was due", box=box.SIMPLE, padding=0)
    columns = (
        "VM", "weight", "reserved\nB/s", "limit\nB/s", "received\nB", "share", "due", "credited\nB", "calls",
    )  # fmt: skip
    for name in columns:
        table.add_column(name, justify="left" if name == "VM" else "right", no_wrap=True)
    for quota in QUOTAS:
        table.add_row(
            quota.domain,
            str(quota.weight),
            f"{quota.reservation:,}",
            f"{quota.limit:,}" if quota.limit else "none",
            f"{got[quota.domain]:,}",
            f"{100 * got[quota.domain] / max(1, total):.1f} %",
            f"{100 * expected[quota.domain] * elapsed / max(1, total):.1f} %",
            f"{credited[quota.domain].n_bytes:,}",
            f"{credited[quota.domain].calls:,}",
        )
    console.print(table)
    console.print("received: acknowledged by the agent, which counts rngd's blocks of 2,500 bytes")
    console.print("credited: to the guest's kernel in that time, in so many RNDADDENTROPY calls")
    (source,) = after["sources"]
    label = (
        f"{source['path']} ({source['kind']}{', ' + source['rng_current'] if source['rng_current'] else ''})"
    )
    console.print(
        f"source {label}: {read:,} B read, {total:,} B acknowledged "
        f"({100 * total / max(1, read):.1f} %), {stored:+,} B in the reservoir"
    )
    console.print(
        "every byte ever read is accounted for" if after["ledger_ok"] else "[red]the books do not add up[/]"
    )
    fed = all(got[q.domain] > 0 and credited[q.domain].calls > 0 for q in QUOTAS)
    return bool(after["ledger_ok"]) and fed


def _steps(console: Console) -> Callable[[str], None]:
    begun = time.monotonic()

    def step(text: str) -> None:
        console.print(f"[bold]==> {time.monotonic() - begun:5.1f} s[/]  {text}")

    return step


if __name__ == "__main__":
    sys.exit(main())
