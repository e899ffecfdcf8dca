# SPDX-License-Identifier: Apache-2.0
"""`netrng-hostd quota`: the quota in a domain's libvirt metadata, which moves with the domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from netrng_hostd.core.quota import KEYS, QuotaRule, format_metadata, parse_metadata
from netrng_hostd.core.spelling import QuotaError
from netrng_hostd.hypervisor.administration import Definition
from netrng_hostd.hypervisor.domain_xml import QuotaElement
from netrng_hostd.operate.administer import ANSWER_S, DEFAULT_URI, Refused, Result, administer, command_line

_ALL_FROM_FILE = "all comes from hostd.toml"
_IN_FORCE = "netrng-hostd status tells what is in force, which hostd.toml may cap"
_NEXT_START = "in force from its next start on"
_SAVED = "in force from its next full start on: the next one restores a saved state, with that state's quota"
_TRANSIENT = "it is transient: what creates it next time has to bring the quota along"


def quota(
    domain: str,
    given: Mapping[str, str],
    reset: bool = False,
    uri: str = DEFAULT_URI,
    answer_s: float = ANSWER_S,
) -> Result:
    """Set the keys that are ``given``, as they are written, in the metadata of the domain (a name or UUID).

    The others stay as they are, or go if ``reset``. With neither, show what is set. Exit code 2 if a value
    is bad, or the reservation is above the limit that comes of it; nothing is changed then.
    """
    try:
        parse_metadata(given.items())
    except QuotaError as error:
        return Result((str(error),), 2)

    def work(definition: Definition, lines: list[str]) -> None:
        if given or reset:
            _change(definition, given, reset, lines)
        else:
            _show(definition, lines)

    return administer(uri, domain, work, answer_s)


class _Place(NamedTuple):
    """Where a domain has metadata: in its definition (kept) and while it runs (live)."""

    name: str
    live: bool
    element: QuotaElement | None


def _places(domain: Definition) -> list[_Place]:
    """The definition first: what it says lasts."""
    places = []
    if domain.persistent:
        places.append(_Place("definition", False, domain.kept_quota()))
    if domain.active:
        places.append(_Place("running domain", True, domain.live_quota()))
    return places


def _show(domain: Definition, lines: list[str]) -> None:
    said = {place.name: _said(domain, place.element) for place in _places(domain)}
    if len(set(said.values())) == 1:
        said = {" and ".join(said): next(iter(said.values()))}
    lines += [f"{domain.name}: {where}: {text}" for where, text in said.items()]
    if len(said) > 1:
        lines.append(f"{domain.name}: the two differ; what the definition says is {_NEXT_START}")
    if domain.active:
        lines.append(_IN_FORCE)
    elif domain.has_saved_state():
        lines.append(f"{domain.name}: what the definition says is {_SAVED}")


def _said(domain: Definition, element: QuotaElement | None) -> str:
    if element is None:
        return _spelled(parse_metadata(()))
    try:
        return _spelled(element.rule())
    except QuotaError as error:
        mend = command_line("quota", domain.name, domain.uri, "--reset")
        return f"malformed, so hostd.toml's is used: {error}; mend it: {mend}"


def _spelled(rule: QuotaRule) -> str:
    given = format_metadata(rule)
    if not given:
        return f"nothing set, {_ALL_FROM_FILE}"
    rest = "; the rest from hostd.toml" if len(given) < len(KEYS) else ""
    return f"set: {', '.join(f'{key} {text}' for key, text in given)}{rest}"


def _change(domain: Definition, given: Mapping[str, str], reset: bool, lines: list[str]) -> None:
    # All are worked out before the first is set: a mistake changes nothing.
    wanted = [(place, _changed(domain.name, place, given, reset)) for place in _places(domain)]
    for place, rule in wanted:
        attributes = format_metadata(rule)
        if not attributes and place.element is None:
            lines.append(f"{domain.name}: {place.name}: has no quota in its metadata")
            continue
        domain.set_quota(attributes or None, live=place.live)
        done = _spelled(rule) if attributes else f"quota removed, {_ALL_FROM_FILE}"
        lines.append(f"{domain.name}: {place.name}: {done}{_note(domain, place)}")
    if domain.active:
        lines.append(_IN_FORCE)


def _changed(name: str, place: _Place, given: Mapping[str, str], reset: bool) -> QuotaRule:
    values: dict[str, str] = {}
    if place.element is not None and not reset:
        try:
            values.update(format_metadata(place.element.rule()))
        except QuotaError as error:
            raise Refused(
                f"{name}: {place.name}: the quota in its metadata is malformed: {error};"
                " nothing was changed; begin anew with --reset"
            ) from None
    values.update(given)
    try:
        return parse_metadata(values.items())
    except QuotaError as error:
        raise Refused(f"{name}: {place.name}: {error}; nothing was changed", 2) from None


def _note(domain: Definition, place: _Place) -> str:
    if not domain.active:
        return f"; {_SAVED if domain.has_saved_state() else _NEXT_START}"
    return f"; {_TRANSIENT}" if not domain.persistent else ""
