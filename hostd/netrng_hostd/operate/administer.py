# SPDX-License-Identifier: Apache-2.0
"""How a command changes a domain: with the caller's rights, for no longer than it is waited for."""

from __future__ import annotations

import shlex
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Callable, NamedTuple

from netrng_hostd.core.spelling import printable
from netrng_hostd.hypervisor.administration import Administration, Definition
from netrng_hostd.hypervisor.domain_xml import DomainXmlError
from netrng_hostd.hypervisor.errors import HypervisorError
from netrng_hostd.hypervisor.worker import Worker

DEFAULT_URI = "qemu:///system"

# libvirt itself waits at most seconds for a guest to let a device go.
ANSWER_S = 60.0


class Result(NamedTuple):
    """What to print, and the exit code: 0, or 1 or 2 when the last line is an error."""

    lines: tuple[str, ...]
    exit_code: int


class Refused(Exception):
    """What was asked for cannot be: one line that says why, and the exit code."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def command_line(command: str, domain: str, uri: str, *options: str) -> str:
    """What to type in a shell, for a person who shall run the command on the domain (a name or UUID)."""
    connect = () if uri == DEFAULT_URI else ("--connect", uri)
    end = ("--",) if domain.startswith("-") else ()
    return " ".join(map(shlex.quote, ("netrng-hostd", command, *options, *connect, *end, domain)))


def administer(
    uri: str, domain: str, change: Callable[[Definition, list[str]], None], answer_s: float = ANSWER_S
) -> Result:
    """Run ``change`` on the domain (a name or UUID); it adds its lines, raises HypervisorError or Refused."""
    lines: list[str] = []

    def work() -> None:
        with Administration(uri) as administration:
            change(administration.find(domain), lines)

    # In a thread: a call into a libvirtd that hangs would not even end by Ctrl-C.
    worker = Worker(f"libvirt {uri}")
    job = worker.submit(work)
    worker.stop()
    exit_code = 1
    try:
        job.result(answer_s)
        exit_code = 0
    except Refused as error:
        lines.append(str(error))
        exit_code = error.exit_code
    except HypervisorError as error:
        lines.append(str(error))
    except DomainXmlError as error:
        lines.append(f"{uri}: {domain}: {error}")
    except FutureTimeoutError:
        lines.append(f"{uri}: libvirtd did not answer within {answer_s:.0f} s")
    return Result(tuple(map(printable, lines)), exit_code)
