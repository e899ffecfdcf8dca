# SPDX-License-Identifier: Apache-2.0
"""The command line of `netrng-hostd`.  Exit codes: 0 done, 1 failed, 2 misuse or invalid configuration,
3 no daemon answers."""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from netrng_guest.stdio import Parser, complain, drop, fill_closed, flush_output, tell
from netrng_hostd import __version__

if TYPE_CHECKING:
    from netrng_hostd.config import Config

# Before numpy is imported: else its OpenBLAS starts a thread for each processor, with buffers of some
# megabytes each, all of it locked in memory, for matrices that are not multiplied here.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

NAME = "netrng-hostd"
VIRTIO_RNG_HELP = "a virtio-rng device, which needs no agent, in the place of the channel"
EXAMPLES = """\
examples:
  netrng-hostd check                     what is wrong here, and how to mend it
  netrng-hostd check --source hwrng      test a source now (SP 800-90B 4.3)
  netrng-hostd attach web-1              give the domain web-1 a channel, for an agent in it
  netrng-hostd attach --virtio-rng win-1 or a device that needs no agent
  netrng-hostd quota web-1 --weight 300  three times the share of others
  netrng-hostd status --watch            who gets how much, live
  netrng-hostd run --config F            the daemon, in the foreground
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser, also for the man page's test."""
    parser = Parser(
        prog=NAME,
        description="Shares hardware random number generators fairly among the VMs of this hypervisor.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"netrng-hostd {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # what changes a domain should not be guessed
        )

    def add_config(command: argparse.ArgumentParser) -> None:
        command.add_argument("--config", metavar="F", help="configuration file (/etc/netrng/hostd.toml)")

    def add_connect(command: argparse.ArgumentParser) -> None:
        command.add_argument("domain", metavar="DOMAIN", type=_utf8, help="name or UUID")
        command.add_argument(
            "--connect", metavar="URI", type=_utf8, default="qemu:///system", help="libvirt URI (%(default)s)"
        )

    run = add("run", "run the daemon in the foreground (the default)", "netrng-hostd run --config hostd.toml")
    add_config(run)
    check = add("check", "tell what is wrong with the configuration and this host", "netrng-hostd check")
    add_config(check)
    part = check.add_mutually_exclusive_group()
    part.add_argument("--config-only", action="store_true", help="check the configuration alone")
    part.add_argument("--source", metavar="NAME", help="run the health tests on this source now")
    status = add("status", "show sources, domains, quotas and rates", "netrng-hostd status --watch")
    add_config(status)
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument("--watch", action="store_true", help="go on until Ctrl-C")
    for change in (
        add("attach", "add a channel, or a virtio-rng, to a domain", "netrng-hostd attach web-1"),
        add("detach", "remove it from a domain", "netrng-hostd detach web-1"),
    ):
        change.add_argument("--virtio-rng", action="store_true", help=VIRTIO_RNG_HELP)
        add_connect(change)
    quota = add(
        "quota", "show or set the quota in a domain's metadata", "netrng-hostd quota web-1 --limit 10KiB/s"
    )
    quota.add_argument("--reservation", metavar="R", help='at least so much: 100, "10KiB/s", "2kB/s"')
    quota.add_argument("--weight", metavar="W", help="its share of the rest, 1 to 10000")
    quota.add_argument("--limit", metavar="L", help='no more than so much, after the burst, or "none"')
    quota.add_argument("--burst", metavar="B", help='bytes at once above the limit: 4096, "64KiB"')
    quota.add_argument("--reset", action="store_true", help="first remove all that is set")
    add_connect(quota)
    xml = add("xml", "print the libvirt XML of a channel, or a virtio-rng", "netrng-hostd xml")
    variant = xml.add_mutually_exclusive_group()
    variant.add_argument("--xen", action="store_true", help="for a Xen domain")
    variant.add_argument("--virtio-rng", action="store_true", help=VIRTIO_RNG_HELP)
    return parser


def _utf8(argument: str) -> str:
    """What libvirt's binding can pass on."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("it is not UTF-8") from None
    return argument


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    fill_closed()
    given = sys.argv[1:] if arguments is None else arguments
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help", "--version")):
        given = ["run", *given]
    try:
        try:
            return _run_command(build_parser().parse_args(given))
        finally:
            flush_output()
    except ModuleNotFoundError as error:
        complain(
            NAME, f"the Python module {error.name} is missing; install it: pip install 'netrng-vm[hostd]'"
        )
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        drop(sys.stdout)
        return 0
    except OSError as error:
        drop(sys.stdout)
        where = error.filename or "the output cannot be written"
        complain(NAME, f"{where}: {error.strerror or error}")
        return 1


def _run_command(options: argparse.Namespace) -> int:
    # Imported only here and below: without its libraries the command can still say what is missing.
    from netrng_hostd.config import ConfigError

    try:
        return _run_configured(options)
    except ConfigError as error:
        complain(NAME, str(error))
        return 2


def _run_configured(options: argparse.Namespace) -> int:
    from netrng_hostd.config import control_of, load

    command = options.command
    if command == "run":
        from netrng_hostd.sources.identity import refuse_sources

        config = load(options.config)
        refuse_sources(config)
        return _run_daemon(config, options.config)
    if command == "check":
        from netrng_hostd.operate import check
        from netrng_hostd.operate.check import on_demand

        if options.source is not None:
            return on_demand.run(options.config, options.source)
        return check.run(options.config, config_only=options.config_only)
    if command == "status":
        from netrng_hostd.operate import status

        return status.run(control_of(options.config), as_json=options.json, watch=options.watch)
    from netrng_hostd.operate import attach

    if command == "xml":
        tell(attach.xml(xen=options.xen, virtio_rng=options.virtio_rng).rstrip("\n"))
        return 0
    if command == "quota":
        from netrng_hostd.core.quota import KEYS
        from netrng_hostd.operate.quota import quota

        given = {key: text for key in KEYS if (text := getattr(options, key)) is not None}
        result = quota(options.domain, given, options.reset, options.connect)
    else:
        action = attach.attach if command == "attach" else attach.detach
        result = action(options.domain, options.connect, virtio_rng=options.virtio_rng)
    for line in result.lines:
        if result.exit_code:
            complain(NAME, line)
        else:
            tell(line)
    return int(result.exit_code)


def _run_daemon(config: Config, config_path: str | None) -> int:
    from netrng_hostd.daemon import Daemon
    from netrng_hostd.hypervisor.event_thread import shutdown
    from netrng_hostd.operate.lock import Lock, LockHeld
    from netrng_hostd.operate.process import allow_files, forbid_dumps, lock_memory

    # Until the daemon listens for it, a reload that comes early must not end it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format=_log_format(), stream=sys.stderr)

    async def serve() -> int:
        daemon = Daemon(config, config_path)
        await daemon.run()
        return 1 if daemon.failed else 0

    forbid_dumps()
    allow_files()
    try:
        with Lock(config.control):
            unlocked = lock_memory()
            if unlocked is not None:
                logging.getLogger("netrng.daemon").info("%s", unlocked)
            return asyncio.run(serve())
    except LockHeld as error:
        complain(NAME, str(error))
        return 1
    except OSError as error:
        text = f"control: {error.filename or config.control}: {error.strerror or error}"
        mend = "set control" if error.errno == errno.EADDRINUSE else "make its folder, or set control"
        complain(NAME, f"{text}; {mend}")
        return 1
    finally:
        shutdown()


def _log_format() -> str:
    # The journal has its own clock; a terminal has none.
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    return f"{stamp}%(levelname)s %(name)s: %(message)s"
