# SPDX-License-Identifier: Apache-2.0
"""What `netrng-hostd status` tells: the model, and its JSON.

A field's name is its JSON key. Rates are bytes per second and None (null) is "none"; sizes are bytes;
times are seconds of the Unix clock. Texts that a domain's owner or a guest's agent chose (names, `agent`)
are data: the daemon passes them on, and whoever shows them escapes them.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

# The states, and what they mean to a person. docs/operating.md lists the same.
SOURCE_STATES = {
    "starting": "opened; the first 1,024 bytes are being tested",
    "healthy": "delivers bytes that pass the health tests",
    "absent": "there is no such device, or nothing behind it",
    "denied": "this user may not read it",
    "stalled": "it gives nothing, or too little",
    "failed": "a health test raised its alarm again and again; nothing of it is used",
    "error": "reading fails",
}
DOMAIN_STATES = {
    "connecting": "not tried yet",
    "unreachable": "the channel's socket does not take the connection; of a [[serve]]: it cannot be made",
    "waiting": "connected; no agent in the VM has answered",
    "open": "served; a virtio-rng, which tells nothing of itself: connected",
    "listening": "of a [[serve]]: its socket takes clients",
    "violated": "the guest broke the protocol; it is offered a new session after a while",
    "incompatible": "the agent speaks no version of the protocol that this daemon speaks",
    "refused": "not served: its reservation does not fit, or there are too many domains",
}
ADMISSION_STATES = {
    "none": "it has no reservation",
    "pending": "not decided yet: the source's capacity is not known, or it has only just come",
    "promised": "the reservation holds",
    "shrunk": "the source gives less than what is promised to all: every reservation holds in proportion",
    "refused": "the reservation does not fit beside those promised already; it is, as soon as there is room",
}
URI_STATES = {
    "connecting": "the first attempt is under way",
    "connected": "libvirt answers",
    "down": "libvirt does not answer; VMs that are connected go on being served",
}


@dataclass(frozen=True)
class SourceStatus:
    """One source. ``virtual``: the device is emulated by this machine's own host; ``upstream``: another
    server stands before it, and ``origin`` is what the configuration claims to be behind that; ``path``:
    where it is read, an address perhaps; ``bytes_conditioned``: the part of ``bytes_discarded`` that was
    compressed away; ``bytes_sent``: to domains, mixed ones as well; ``serving``: whether VMs are served from
    it now;
    ``credit``: whether it counts; ``capacity``: in vetted bytes per second."""

    name: str
    kind: str
    state: str
    path: str = ""
    detail: str = ""
    since: float = 0.0
    rng_current: str | None = None
    virtual: bool = False
    upstream: bool = False
    origin: str | None = None
    bytes_read: int = 0
    bytes_discarded: int = 0
    bytes_conditioned: int = 0
    bytes_sent: int = 0
    serving: bool = False
    credit: bool = True
    min_entropy: float = 8.0
    rate: int = 0
    capacity: int | None = None
    capacity_age_s: float | None = None


@dataclass(frozen=True)
class DomainStatus:
    """One domain's channel, or one [[serve]]. ``kind``: virtio, xen, static, virtio-rng, egd (a [[channel]]
    of that kind) or serve; the last three speak EGD, in which nothing is acknowledged, so what became of the
    bytes sent is None; ``clients``: of a [[serve]]; ``agent``: what the guest says of itself;
    ``quota``: the name of its `[[quota]]`, or "metadata"; ``quota_detail``: why its metadata does not count,
    "" if all is well; ``admission``: one of ADMISSION_STATES; ``last_heard``: of the agent, in the session
    that is open; ``origins``: how many of the bytes sent came from which source, mixes as "a+b"."""

    name: str
    uuid: str
    uri: str
    channel: str | None
    kind: str
    state: str
    since: float
    reservation: int
    reservation_effective: int
    weight: int
    limit: int | None
    burst: int
    bytes_sent: int = 0
    bytes_acked: int | None = 0
    bytes_lost: int | None = 0
    origins: dict[str, int] = field(default_factory=dict)
    rate: int = 0
    agent: dict[str, Any] | None = None
    detail: str = ""
    quota: str = ""
    quota_detail: str = ""
    in_flight: int | None = 0
    seeds: int | None = 0
    clients: int | None = None
    last_heard: float | None = None
    admission: str = "none"


@dataclass(frozen=True)
class UriStatus:
    """One hypervisor."""

    uri: str
    state: str
    detail: str = ""
    since: float = 0.0


@dataclass(frozen=True)
class ReservoirStatus:
    """``stored`` of ``size`` bytes in all; ``seed_stored`` of ``seed_reserve`` bytes are for seeds alone."""

    size: int = 0
    stored: int = 0
    seed_reserve: int = 0
    seed_stored: int = 0


@dataclass(frozen=True)
class AdmissionStatus:
    """What reservations were promised in all, before any shrinking, and how much may be.

    ``capacity``: the one that counts; it follows the source's when that falls, or rises by a sixteenth.
    """

    capacity: int | None = None
    headroom: float = 0.0
    policy: str = ""
    promisable: int = 0
    promised: int = 0
    shrunk: bool = False


@dataclass(frozen=True)
class DaemonStatus:
    """Everything, at ``time``. ``ledger_ok``: every byte ever read is accounted for; ``sample_size``: as
    configured, ``sample_size_effective``: now, with these sources and so many who ask; ``policy`` and
    ``min_sources``: how the sources are used, and how many it takes."""

    version: str
    sources: tuple[SourceStatus, ...] = ()
    domains: tuple[DomainStatus, ...] = ()
    uris: tuple[UriStatus, ...] = ()
    reservoir: ReservoirStatus = field(default_factory=ReservoirStatus)
    without_channel: tuple[str, ...] = ()
    ledger_ok: bool = True
    pid: int = 0
    started: float = 0.0
    time: float = 0.0
    rss_bytes: int = 0
    cpu_percent: float = 0.0
    sample_size: int = 0
    sample_size_effective: int = 0
    admission: AdmissionStatus = field(default_factory=AdmissionStatus)
    policy: str = "failover"
    min_sources: int = 1


def too_few(status: DaemonStatus) -> str:
    """How many sources the policy `xor` has, and how many it needs."""
    counted = [source for source in status.sources if source.credit]
    healthy = sum(source.state == "healthy" for source in counted)
    well = f"{healthy} {'is' if healthy == 1 else 'are'} healthy"
    return f"of {len(counted)} sources that count {well}, and {status.min_sources} are needed"


def to_json(status: DaemonStatus) -> str:
    """One line, ASCII: whatever a guest chose to call itself, a terminal is safe from it."""
    # Not dataclasses.asdict: it copies everything first, which takes five times as long as the encoding.
    return json.dumps(vars(status), default=vars, separators=(",", ":"), allow_nan=False)


def from_json(text: str | bytes) -> DaemonStatus:
    """The reverse; keys of a newer daemon are left out. Raises ValueError if it is no status at all."""
    try:
        values = json.loads(text)
        return _known(
            DaemonStatus,
            values,
            sources=tuple(_known(SourceStatus, item) for item in values["sources"]),
            domains=tuple(_known(DomainStatus, item) for item in values["domains"]),
            uris=tuple(_known(UriStatus, item) for item in values.get("uris", ())),
            reservoir=_known(ReservoirStatus, values.get("reservoir", {})),
            admission=_known(AdmissionStatus, values.get("admission", {})),
            without_channel=tuple(values.get("without_channel", ())),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a status: {error!r}") from None


def run(control: str, *, as_json: bool, watch: bool) -> int:
    """`netrng-hostd status`: asks the daemon at ``control`` and shows what it says. Returns the exit code."""
    from netrng_hostd.operate.show import show

    return show(control, as_json=as_json, watch=watch)


def _known(model: type[T], values: dict[str, Any], **parsed: object) -> T:
    fields = {item.name for item in dataclasses.fields(model)}  # type: ignore[arg-type]
    return model(**{**{key: value for key, value in values.items() if key in fields}, **parsed})
