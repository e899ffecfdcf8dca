# SPDX-License-Identifier: Apache-2.0
"""The quota of each domain, and how much of its reservation is in force."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from netrng_hostd.config import AdmissionConfig
from netrng_hostd.core.admission import NONE, PENDING, REFUSED, Admission, Claim, Verdict
from netrng_hostd.core.quota import Quota, QuotaRule, resolve
from netrng_hostd.core.spelling import format_rate

log = logging.getLogger("netrng.admission")

SETTLE_S = 0.05  # changes that come together are decided on together


@dataclass
class Holding:
    """One domain's: ``rank`` is the place of the first rule that matches it; ``claims``: whether it may be
    promised anything.
    """

    name: str
    metadata: QuotaRule | None
    rank: int
    quota: Quota
    claims: bool
    verdict: Verdict

    @property
    def in_force(self) -> Quota:
        return replace(self.quota, reservation=min(self.quota.reservation, self.verdict.reservation))


class Promises:
    """By UUID, one for each, however many connections show it; call everything from the event loop.

    ``changed(uuid)``: another quota is in force; ``decided()``: verdicts were given anew.
    """

    def __init__(
        self,
        rules: Sequence[QuotaRule],
        config: AdmissionConfig,
        changed: Callable[[str], None],
        decided: Callable[[], None],
    ) -> None:
        self.admission = Admission(config.headroom_thousandths)
        self._rules = tuple(rules)
        self._changed = changed
        self._decided = decided
        self._holdings: dict[str, Holding] = {}
        self._due: asyncio.TimerHandle | None = None

    def __getitem__(self, uuid: str) -> Holding:
        return self._holdings[uuid]

    def hold(self, uuid: str, name: str, metadata: QuotaRule | None, claims: bool) -> None:
        """The domain is there, or something about it has changed. All but a reservation counts at once."""
        known = self._holdings.get(uuid)
        matching = (place for place, rule in enumerate(self._rules) if rule.matches(name, uuid))
        rank = next(matching, len(self._rules))
        quota = resolve(self._rules, name, uuid, metadata)
        verdict = known.verdict if known is not None else _undecided(quota)
        self._holdings[uuid] = Holding(name, metadata, rank, quota, claims, verdict)
        if known is not None and known.in_force != self._holdings[uuid].in_force:
            self._changed(uuid)
        if quota.reservation or verdict.state != NONE:
            self.decide_soon()

    def drop(self, uuid: str) -> None:
        """The domain is gone, and what was promised to it is free."""
        if self._holdings.pop(uuid).quota.reservation:
            self.decide_soon()

    def use_rules(self, rules: Sequence[QuotaRule]) -> None:
        """New rules from a reload."""
        self._rules = tuple(rules)
        for uuid, holding in list(self._holdings.items()):
            self.hold(uuid, holding.name, holding.metadata, holding.claims)

    def use_headroom(self, thousandths: int) -> None:
        self.admission.headroom = thousandths
        self.decide_soon()

    def learn(self, capacity: int | None) -> None:
        """What the source gives, in bytes per second, as it was measured last."""
        if self.admission.learn(capacity, time.monotonic_ns()):
            self.decide_soon()

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()

    def decide_soon(self) -> None:
        """Verdicts anew, on all changes of the moment together."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(SETTLE_S, self._decide)

    def _decide(self) -> None:
        self._due = None
        was_shrunk = self.admission.shrunk
        verdicts = self.admission.decide(
            Claim(holding.rank, holding.name, uuid, holding.quota.reservation)
            for uuid, holding in self._holdings.items()
            if holding.quota.reservation and holding.claims
        )
        if self.admission.shrunk != was_shrunk:
            self._log_shrinking()
        for uuid, holding in self._holdings.items():
            before, in_force = holding.verdict, holding.in_force
            holding.verdict = verdicts.get(uuid, _undecided(holding.quota))
            if (holding.verdict.state == REFUSED) != (before.state == REFUSED):
                self._log_verdict(holding)
            if holding.in_force != in_force:
                self._changed(uuid)
        self._decided()

    def _log_verdict(self, holding: Holding) -> None:
        reservation = format_rate(holding.quota.reservation)
        if holding.verdict.state == REFUSED:
            kept = holding.verdict.reservation
            log.warning(
                "%s: its reservation of %s is refused: of %s, %s are promised already%s",
                holding.name, reservation, format_rate(self.admission.promisable),
                format_rate(self.admission.promised), f"; it keeps {format_rate(kept)}" if kept else "",
            )  # fmt: skip
        elif holding.quota.reservation:
            log.info("%s: its reservation of %s is promised now", holding.name, reservation)

    def _log_shrinking(self) -> None:
        admission = self.admission
        if admission.shrunk:
            log.warning(
                "the source gives %s, less than the %s that are promised: every reservation holds to %d %%",
                format_rate(admission.capacity), format_rate(admission.promised),
                100 * admission.promisable // admission.promised,
            )  # fmt: skip
        else:
            log.info("the source gives %s: every reservation holds again", format_rate(admission.capacity))


def _undecided(quota: Quota) -> Verdict:
    return Verdict(PENDING if quota.reservation else NONE, 0)
