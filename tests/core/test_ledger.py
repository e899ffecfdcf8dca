# SPDX-License-Identifier: Apache-2.0
"""The books always balance: the ledger against a model that moves each byte from place to place."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from netrng_hostd.core.ledger import DomainCount, Ledger, LedgerError, Origin, SourceCount, Totals

NOTHING = Totals(0, 0, 0, 0, 0, 0)
RNG = ("rng",)
MIXED = ("one", "two")


def ledger_with(read: int = 0, sent: int = 0) -> Ledger:
    ledger = Ledger()
    ledger.read("rng", read)
    ledger.sent("a", sent, RNG)
    return ledger


def test_a_new_one_is_all_zero_and_balanced() -> None:
    ledger = Ledger()
    assert ledger.totals == NOTHING
    assert ledger.source("rng") == SourceCount(0, 0, 0, 0, 0)
    assert ledger.domain("a") == DomainCount(0, 0, 0, 0)
    ledger.check(held={}, stored={}, in_flight={})


def test_a_byte_from_source_to_sink() -> None:
    ledger = Ledger()
    ledger.read("rng", 1000)
    ledger.check(held={"rng": 1000}, stored={})
    ledger.discarded("rng", 100)
    ledger.check(held={"rng": 0}, stored={RNG: 900})
    ledger.sent("a", 500, RNG)
    ledger.check(held={}, stored={RNG: 400}, in_flight={"a": 500})
    ledger.acked("a", 300)
    ledger.lost("a", 50)
    ledger.check(held={"rng": 300}, stored={RNG: 100}, in_flight={"a": 150})
    assert ledger.in_flight("a") == 150
    assert ledger.domain("a") == DomainCount(sent=500, acked=300, lost=50, in_flight=150)
    assert ledger.source("rng") == SourceCount(1000, discarded=100, destroyed=0, conditioned=0, sent=500)
    assert ledger.totals == Totals(read=1000, discarded=100, sent=500, acked=300, lost=50, in_flight=150)


def test_sources_and_domains_are_kept_apart() -> None:
    ledger = Ledger()
    ledger.read("one", 100)
    ledger.read("two", 50)
    ledger.discarded("two", 7)
    ledger.sent("a", 20, ("one",))
    ledger.sent("b", 30, ("two",))
    ledger.acked("b", 10)
    assert ledger.source("one") == SourceCount(100, 0, 0, 0, 20)
    assert ledger.source("two") == SourceCount(50, 7, 0, 0, 30)
    assert ledger.domain("a") == DomainCount(20, 0, 0, 20)
    assert ledger.domain("b") == DomainCount(30, 10, 0, 20)
    assert ledger.totals == Totals(150, 7, 50, 10, 0, 40)


def test_destroyed_bytes_count_as_discarded() -> None:
    ledger = ledger_with(read=100)
    ledger.discarded("rng", 10)
    ledger.destroyed(RNG, 60)
    ledger.conditioned("rng", 5)
    assert ledger.source("rng") == SourceCount(100, discarded=75, destroyed=60, conditioned=5, sent=0)
    ledger.check(held={}, stored={RNG: 25})


def test_a_mixed_byte_counts_for_each_of_its_sources() -> None:
    ledger = Ledger()
    ledger.read("one", 100)
    ledger.read("two", 70)
    ledger.check(held={"one": 30}, stored={MIXED: 70})
    ledger.sent("a", 50, MIXED)
    ledger.destroyed(MIXED, 15)
    ledger.sent("a", 30, ("one",))
    assert ledger.source("one") == SourceCount(100, 15, 15, 0, 80)
    assert ledger.source("two") == SourceCount(70, 15, 15, 0, 50)
    assert ledger.origins("a") == {MIXED: 50, ("one",): 30}
    assert ledger.domain("a").sent == ledger.totals.sent == 80
    ledger.check(held={}, stored={MIXED: 5})
    with pytest.raises(LedgerError, match=r"^origin one\+two: destroyed 6 bytes where 5 are left$"):
        ledger.destroyed(MIXED, 6)
    with pytest.raises(LedgerError, match=r"^domain a: sent 6 bytes where 5 are left$"):
        ledger.sent("a", 6, MIXED)
    assert ledger.origins("b") == {}


def test_a_forgotten_domain_lives_on_in_the_totals() -> None:
    ledger = ledger_with(read=100, sent=60)
    ledger.acked("a", 30)
    ledger.lost("a", 10)
    assert ledger.forget("a") == 20
    assert ledger.totals == Totals(100, 0, 60, 30, 30, 0)
    assert ledger.domain("a") == DomainCount(0, 0, 0, 0)
    ledger.check(held={}, stored={RNG: 40}, in_flight={})
    assert ledger.forget("a") == 0
    assert ledger.origins("a") == {}
    ledger.sent("a", 5, RNG)
    assert ledger.domain("a") == DomainCount(5, 0, 0, 5)
    assert ledger.totals == Totals(100, 0, 65, 30, 30, 5)


def test_vanished_domains_take_no_memory() -> None:
    ledger = Ledger()
    ledger.read("rng", 1000)
    for n in range(100):
        ledger.sent(f"domain-{n}", 1, RNG)
        ledger.forget(f"domain-{n}")
    assert not ledger._domains
    with pytest.raises(LedgerError):
        ledger.acked("never seen", 1)
    ledger.lost("never seen", 0)
    assert not ledger._domains


def test_check_names_each_place_where_a_byte_is_missing() -> None:
    ledger = ledger_with(read=100, sent=60)
    ledger.discarded("rng", 10)
    with pytest.raises(LedgerError, match=r"^source rng: 30 bytes are left, but 29 are held or stored$"):
        ledger.check(held={"rng": 20}, stored={RNG: 9})
    with pytest.raises(LedgerError, match=r"^source rng: 30 bytes are left, but 31 "):
        ledger.check(held={"rng": 20}, stored={RNG: 11})
    with pytest.raises(LedgerError, match=r"^source two: 0 bytes are left, but 30 "):
        ledger.check(held={}, stored={("rng", "two"): 30})


@pytest.mark.parametrize(
    ("in_flight", "uuid", "here", "there"),
    [({"a": 59}, "a", 60, 59), ({}, "a", 60, 0), ({"a": 60, "b": 1}, "b", 0, 1)],
)
def test_check_compares_with_the_sessions(
    in_flight: dict[str, int], uuid: str, here: int, there: int
) -> None:
    ledger = ledger_with(read=100, sent=60)
    ledger.check(held={}, stored={RNG: 40})
    ledger.check(held={}, stored={RNG: 40}, in_flight={"a": 60, "idle": 0})
    text = f"^domain {uuid}: {here} bytes in flight, but its session says {there}$"
    with pytest.raises(LedgerError, match=text):
        ledger.check(held={}, stored={RNG: 40}, in_flight=in_flight)


@pytest.mark.parametrize(
    ("posting", "who", "n", "text"),
    [
        ("read", "rng", -1, "source rng: read -1 bytes"),
        ("discarded", "rng", -1, "source rng: discarded -1 bytes where 35 are left"),
        ("discarded", "rng", 36, "source rng: discarded 36 bytes where 35 are left"),
        ("discarded", "unknown", 1, "source unknown: discarded 1 bytes where 0 are left"),
        ("discarded", "small", 6, "source small: discarded 6 bytes where 5 are left"),
        ("conditioned", "rng", -1, "source rng: discarded -1 bytes where 35 are left"),
        ("conditioned", "rng", 36, "source rng: discarded 36 bytes where 35 are left"),
        ("conditioned", "unknown", 1, "source unknown: discarded 1 bytes where 0 are left"),
        ("destroyed", "rng", -1, "origin rng: destroyed -1 bytes where 35 are left"),
        ("destroyed", "rng", 36, "origin rng: destroyed 36 bytes where 35 are left"),
        ("destroyed", "unknown", 1, "origin unknown: destroyed 1 bytes where 0 are left"),
        ("sent", "a", -1, "domain a: sent -1 bytes where 35 are left"),
        ("sent", "a", 36, "domain a: sent 36 bytes where 35 are left"),
        ("sent", "unknown", 36, "domain unknown: sent 36 bytes where 35 are left"),
        ("acked", "a", -1, "domain a: -1 bytes acknowledged where 30 are in flight"),
        ("acked", "a", 31, "domain a: 31 bytes acknowledged where 30 are in flight"),
        ("acked", "unknown", 1, "domain unknown: 1 bytes acknowledged where 0 are in flight"),
        ("lost", "a", -1, "domain a: -1 bytes lost where 30 are in flight"),
        ("lost", "a", 31, "domain a: 31 bytes lost where 30 are in flight"),
        ("lost", "unknown", 1, "domain unknown: 1 bytes lost where 0 are in flight"),
    ],
)
def test_impossible_postings_are_refused_and_change_nothing(
    posting: str, who: str, n: int, text: str
) -> None:
    ledger = ledger_with(read=95, sent=60)
    ledger.read("small", 5)
    ledger.acked("a", 20)
    ledger.lost("a", 10)

    def state() -> object:
        names = ("rng", "small", "unknown", "a")
        return (
            ledger.totals,
            [ledger.source(name) for name in names],
            [ledger.domain(name) for name in names],
            [ledger.origins(name) for name in names],
            sorted(ledger._sources),
            sorted(ledger._domains),
        )

    before = state()
    with pytest.raises(LedgerError, match=f"^{re.escape(text)}$"):
        if posting == "sent":
            ledger.sent(who, n, RNG)
        elif posting == "destroyed":
            ledger.destroyed((who,), n)
        else:
            getattr(ledger, posting)(who, n)
    assert state() == before


class LedgerMachine(RuleBasedStateMachine):
    """Moves bytes between named places; every place is counted here and, differently, in the ledger."""

    sources = st.sampled_from(["one", "two", "three"])
    origins = st.sampled_from([("one",), ("two",), ("three",), ("one", "two"), ("one", "two", "three")])
    domains = st.sampled_from(["a", "b", "c", "d"])
    fates = st.sampled_from(["acked", "lost", "unconfirmed"])

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.read: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.stored: Counter[Origin] = Counter()
        self.sent: Counter[str] = Counter()
        self.from_where: dict[str, Counter[Origin]] = {}
        self.conditioned: Counter[str] = Counter()
        self.discarded: Counter[str] = Counter()
        self.destroyed: Counter[str] = Counter()
        self.in_flight: Counter[str] = Counter()
        self.acked: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.unconfirmed: Counter[str] = Counter()
        self.vanished_acked = self.vanished_lost = self.vanished_unconfirmed = 0

    @rule(source=sources, n=st.integers(0, 2000))
    def reads(self, source: str, n: int) -> None:
        self.ledger.read(source, n)
        self.read[source] += n
        self.held[source] += n

    @rule(origin=origins)
    def passes(self, origin: Origin) -> None:
        n = min(self.held[name] for name in origin)
        for name in origin:
            self.held[name] -= n
        self.stored[origin] += n

    @rule(source=sources, data=st.data())
    def is_conditioned(self, source: str, data: st.DataObject) -> None:
        n = data.draw(st.integers(0, self.held[source]))
        self.ledger.conditioned(source, n)
        self.held[source] -= n
        self.discarded[source] += n
        self.conditioned[source] += n

    @rule(source=sources)
    def alarms(self, source: str) -> None:
        n = self.held.pop(source, 0)
        self.ledger.discarded(source, n)
        self.discarded[source] += n

    @rule(source=sources)
    def quarantines(self, source: str) -> None:
        for origin in [origin for origin in self.stored if source in origin]:
            n = self.stored.pop(origin)
            self.ledger.destroyed(origin, n)
            for name in origin:
                self.discarded[name] += n
                self.destroyed[name] += n

    @rule(origin=origins, uuid=domains, n=st.integers(0, 600))
    def sends(self, origin: Origin, uuid: str, n: int) -> None:
        n = min(n, self.stored[origin])
        self.ledger.sent(uuid, n, origin)
        self.stored[origin] -= n
        for name in origin:
            self.sent[name] += n
        self.from_where.setdefault(uuid, Counter())[origin] += n
        self.in_flight[uuid] += n

    @rule(uuid=domains, data=st.data(), fate=fates)
    def ends(self, uuid: str, data: st.DataObject, fate: str) -> None:
        n = data.draw(st.integers(0, self.in_flight[uuid]))
        getattr(self.ledger, fate)(uuid, n)
        getattr(self, fate)[uuid] += n
        self.in_flight[uuid] -= n

    @rule(uuid=domains, beyond=st.integers(1, 5), posting=fates)
    def ends_too_much(self, uuid: str, beyond: int, posting: str) -> None:
        with pytest.raises(LedgerError):
            getattr(self.ledger, posting)(uuid, self.in_flight[uuid] + beyond)

    @rule(uuid=domains)
    def vanishes(self, uuid: str) -> None:
        in_flight = self.in_flight.pop(uuid, 0)
        self.from_where.pop(uuid, None)
        assert self.ledger.forget(uuid) == in_flight
        self.vanished_acked += self.acked.pop(uuid, 0)
        self.vanished_lost += self.lost.pop(uuid, 0) + in_flight
        self.vanished_unconfirmed += self.unconfirmed.pop(uuid, 0)

    @precondition(lambda self: self.read)
    @rule(held=st.integers(-3, 3), stored=st.integers(-3, 3), source=sources)
    def a_missing_byte_is_noticed(self, held: int, stored: int, source: str) -> None:
        held_by_all, stored_in_all = self.held + Counter(), self.stored + Counter()
        held_by_all[source] += held
        stored_in_all[(source,)] += stored
        if held + stored:
            with pytest.raises(LedgerError):
                self.ledger.check(held_by_all, stored_in_all)
        else:
            self.ledger.check(held_by_all, stored_in_all)

    @invariant()
    def the_books_balance(self) -> None:
        self.ledger.check(self.held, self.stored, self.in_flight)

    @invariant()
    def the_counts_are_the_model_s(self) -> None:
        for name in ("one", "two", "three"):
            counts = (self.read, self.discarded, self.destroyed, self.conditioned, self.sent)
            assert self.ledger.source(name) == tuple(count[name] for count in counts)
        for uuid in ("a", "b", "c", "d"):
            acked, lost, in_flight = self.acked[uuid], self.lost[uuid], self.in_flight[uuid]
            unconfirmed = self.unconfirmed[uuid]
            sent = acked + lost + in_flight + unconfirmed
            assert self.ledger.domain(uuid) == (sent, acked, lost, in_flight, unconfirmed)
            assert self.ledger.in_flight(uuid) == in_flight
            assert self.ledger.origins(uuid) == self.from_where.get(uuid, {})

    @invariant()
    def the_totals_are_the_sums(self) -> None:
        acked = sum(self.acked.values()) + self.vanished_acked
        lost = sum(self.lost.values()) + self.vanished_lost
        in_flight = sum(self.in_flight.values())
        unconfirmed = sum(self.unconfirmed.values()) + self.vanished_unconfirmed
        sent = acked + lost + in_flight + unconfirmed
        read, discarded = sum(self.read.values()), sum(self.discarded.values())
        assert self.ledger.totals == Totals(read, discarded, sent, acked, lost, in_flight, unconfirmed)


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestLedger = LedgerMachine.TestCase
