"""Host lists: one reader for every MPI's host file and for ``-H``, one writer for each dialect.

Read are ``node1 slots=4 max-slots=8`` (Open MPI), ``node1:4`` (MPICH, Intel MPI) and a bare ``node1`` (one slot); ``#``
starts a comment. A host named twice has the sum of its slots, in every dialect.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from collective.errors import LaunchError

HOST_NAME = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]*")
KEYS = ("slots", "max-slots")
# Open MPI reads these as well.
SPELLINGS = {"max_slots": "max-slots"}
RULE = "a line is 'HOST slots=N [max-slots=M]', 'HOST:N' or 'HOST'"


@dataclasses.dataclass(frozen=True)
class Host:
    """One host of a job.

    Attributes:
        name: Host name or IPv4 address, checked: it can't be taken for an option.
        slots: Ranks it is meant to run.
        max_slots: Ranks it may run at most, oversubscribed or not; 0: no such limit.
        where: What named it first, such as ``hosts.txt, line 3``, for errors.
    """

    name: str
    slots: int = 1
    max_slots: int = 0
    where: str = dataclasses.field(default="", compare=False)


def read(path: Path) -> tuple[Host, ...]:
    """Read the host file at ``path``.

    Raises:
        LaunchError: if it can't be read or has no hosts, and for a line with a typo, with its number and text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError("a host file is a text file", received=f"{path}: {error}") from None
    return parse(text, source=str(path))


def parse(text: str, source: str = "host file", slots: int = 1) -> tuple[Host, ...]:
    """Parse the text of a host file; ``source`` is what errors call it, ``slots`` what a bare name has."""
    hosts = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split("#", maxsplit=1)[0].strip()
        if line:
            hosts.append(_parse_line(line, f"{source}, line {number}", slots))
    if not hosts:
        raise LaunchError("a host file names at least one host", operation=source, received="no host")
    return _merge(hosts)


def parse_list(text: str) -> tuple[Host, ...]:
    """Parse the value of ``-H``: ``a:2,b:2``, where a bare name has one slot."""
    hosts = []
    for number, entry in enumerate(text.split(","), start=1):
        where = f"-H, entry {number}"
        if not entry.strip() or len(entry.split()) > 1:
            raise LaunchError("-H is HOST:N,HOST:N,...", operation=where, received=repr(text))
        hosts.append(_parse_line(entry.strip(), where))
    return _merge(hosts)


def _parse_line(line: str, where: str, slots: int = 1) -> Host:
    head, *options = line.split()
    name, colon, count = head.partition(":")
    if not HOST_NAME.fullmatch(name):
        raise LaunchError(
            "a host name has letters, digits, dots, hyphens and underscores and starts with no hyphen",
            operation=where,
            received=repr(line),
            fix="Give IPv6 hosts by name" if head.count(":") > 1 or "[" in head else "",
        )
    values = {"slots": _count(count, line, where)} if colon else {}
    for option in options:
        key, equals, value = option.partition("=")
        key = SPELLINGS.get(key, key)
        if key not in KEYS or not equals:
            near = difflib.get_close_matches(key, KEYS, n=1)
            fix = f"Did you mean {near[0]}={value or 'N'}?" if near else ""
            raise LaunchError(RULE, operation=where, received=repr(line), fix=fix)
        if key in values:
            raise LaunchError(f"{RULE}; {key} is said once", operation=where, received=repr(line))
        values[key] = _count(value, line, where)
    host = Host(name, values.get("slots", slots), values.get("max-slots", 0), where)
    if host.max_slots and host.max_slots < host.slots:
        raise LaunchError("max-slots is at least slots", operation=where, received=repr(line))
    return host


def _count(text: str, line: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        fix = "Give IPv6 hosts by name" if ":" in text else ""
        raise LaunchError(f"{RULE}; N is a whole number from 1", operation=where, received=repr(line), fix=fix)
    return int(text)


def _merge(hosts: Iterable[Host]) -> tuple[Host, ...]:
    merged: dict[str, Host] = {}
    for host in hosts:
        known = merged.get(host.name)
        merged[host.name] = host if known is None else _add(known, host)
    return tuple(merged.values())


def _add(first: Host, second: Host) -> Host:
    # A line without max-slots has no limit, so the sum has none either.
    max_slots = first.max_slots + second.max_slots if first.max_slots and second.max_slots else 0
    return dataclasses.replace(first, slots=first.slots + second.slots, max_slots=max_slots)
