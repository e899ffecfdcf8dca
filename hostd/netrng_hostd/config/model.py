# SPDX-License-Identifier: Apache-2.0
"""The shape of the configuration and its built-in defaults.

conf/hostd.toml shows the same defaults to people; tests/edge/test_config.py compares the two.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from netrng_hostd.config.table import ConfigError
from netrng_hostd.core.quota import QuotaRule

DEFAULT_FILE = "/etc/netrng/hostd.toml"
SYSTEM_CONTROL = "/run/netrng/hostd.sock"
DEFAULT_PATHS = {"device": "/dev/hwrng", "prng": "/dev/urandom"}


@dataclass(frozen=True)
class ReservoirConfig:
    """Bytes of vetted entropy kept, and how many of them only seeds may spend."""

    size: int = 65536
    seed_reserve: int = 16384


@dataclass(frozen=True)
class LibvirtConfig:
    """Which hypervisors to watch, and how the channels of their domains are reached.

    ``transport`` "socket" needs read-only connections; "stream" needs read-write ones.
    """

    uris: tuple[str, ...] = ("qemu:///system",)
    transport: str = "socket"
    trust_metadata: bool = True


@dataclass(frozen=True)
class SourceConfig:
    """One source, at a ``path`` or, some of kind egd, at an ``address``; the other of the two is empty.

    ``min_entropy`` is what its maker claims, in bits per byte; ``rng_current`` names the only one of the
    kernel's RNGs that may be behind it, "" any. One without ``credit`` is mixed in, and counts for nothing.
    ``origin``: where the bytes of one of kind egd are said to come from, which nobody here can verify.
    """

    name: str = "hwrng"
    kind: str = "device"
    path: str = DEFAULT_PATHS["device"]
    address: str = ""
    min_entropy: float = 8.0
    rng_current: str = ""
    credit: bool = True
    stall_timeout: float = 5.0
    origin: str = ""

    @property
    def upstream(self) -> bool:
        """Whether another server stands between the noise and us."""
        return self.kind == "egd"

    @property
    def place(self) -> str:
        """Where it is read, for a person."""
        return self.path or self.address


@dataclass(frozen=True)
class AdmissionConfig:
    """How much of the capacity may be promised, and to how many domains."""

    headroom: float = 0.1
    policy: str = "best-effort"
    max_domains: int = 4096

    @property
    def headroom_thousandths(self) -> int:
        return round(self.headroom * 1000)


@dataclass(frozen=True)
class ChannelConfig:
    """A socket of a QEMU that no libvirt manages, or with ``*`` and ``?`` in ``path`` many of them.

    ``kind``: what is spoken there, "agent" (netrng's own protocol) or "egd" (a virtio-rng asks).
    """

    name: str
    path: str
    kind: str = "agent"

    @property
    def is_pattern(self) -> bool:
        """Whether it stands for all sockets that match."""
        return "*" in self.path or "?" in self.path


@dataclass(frozen=True)
class ServeConfig:
    """A UNIX socket on which hostd itself listens, for those who speak EGD."""

    name: str
    path: str


@dataclass(frozen=True)
class Config:
    """One hostd.toml. ``file`` is None when there was none and the defaults stand alone."""

    control: str
    file: str | None = None
    sample_size: int = 512
    reservoir: ReservoirConfig = ReservoirConfig()
    libvirt: LibvirtConfig = LibvirtConfig()
    sources: tuple[SourceConfig, ...] = (SourceConfig(),)
    policy: str = "failover"
    min_sources: int = 1
    quotas: tuple[QuotaRule, ...] = ()
    admission: AdmissionConfig = AdmissionConfig()
    channels: tuple[ChannelConfig, ...] = ()
    serves: tuple[ServeConfig, ...] = ()


def default_control() -> str:
    """Where the daemon is asked: the system's place for root, the user's own otherwise.

    Raises ConfigError for a user without XDG_RUNTIME_DIR.
    """
    if os.geteuid() == 0:
        return SYSTEM_CONTROL
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not runtime.startswith("/"):
        raise ConfigError(
            "control: not root and XDG_RUNTIME_DIR is not set, so there is no place for the control socket; "
            'allowed: control = "/an/absolute/path", or run as root'
        )
    return f"{runtime.rstrip('/')}/netrng/hostd.sock"
