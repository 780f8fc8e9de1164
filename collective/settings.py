"""All settings in one frozen object, read once from the ``COLLECTIVE_...`` environment variables.

Where one isn't set, Horovod's variable for the same thing counts.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping

from collective.errors import SettingError

PREFIX = "COLLECTIVE_"
BACKENDS = ("mpi", "horovod", "solo")
ALGORITHMS = ("ring", "tree", "star", "doubling", "halving", "native", "shared_memory", "direct", "hierarchical")
LOG_LEVELS = ("debug", "info", "warning", "error")

CHECK_FINITE = ("pass", "raise", "skip")
# What older programs say for these.
CHECK_FINITE_SWITCH = {"0": "pass", "1": "raise"}

TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")
# Horovod's levels that have another name here.
HOROVOD_LOG_LEVELS = {"trace": "debug", "fatal": "error"}

_TYPES: dict[str, type[str] | type[int] | type[float]] = {"str": str, "int": int, "float": float}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a user may set; ``COLLECTIVE_SEGMENT_BYTES=65536`` sets ``segment_bytes`` and so on.

    Attributes:
        backend: What carries the data: ``mpi``, ``horovod`` or ``solo`` (one process); empty: found out at start.
        algorithm: The all-reduce algorithm for every size; empty: chosen by size. ``shared_memory`` and ``direct``
            work inside one host, ``hierarchical`` across hosts with several ranks each; elsewhere they mean the ring.
        small_bytes: Bytes up to which the MPI library's own all-reduce is used; -1: which one is the fastest at which
            size is measured once for a host, a library and a number of ranks, and kept in ``~/.cache/collective``.
        segment_bytes: Bytes of one message of the segmented algorithms; adding one overlaps receiving the next.
        fusion_bytes: Bytes up to which arrays of one dtype are joined to be reduced in place; larger ones travel alone.
            For new results all are joined.
        stall_seconds: Seconds an operation waits for other ranks before it says so on stderr; 0: never.
        timeout_seconds: Seconds after which such a wait is an error that ends the job; 0: never.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
        check_finite: What becomes of a reduced value that is infinite or not a number. ``pass`` (or 0): nothing.
            ``raise`` (or 1): an error, which names the ranks it came from. ``skip``: optimizers leave out the step on
            all ranks, with a warning that names ranks and tensors.
        completion_file: A file that rank 0 makes once all ranks have come to their end, for who supervises the job.
        elastic: 1: ranks that are left when one has died go on without it (``collective run --elastic``).
        min_ranks: The fewest ranks with which an elastic job goes on as it is; 0: ranks that are lost are replaced.
        recovery_seconds: Seconds that each stage of going on may take: to meet, to replace, to begin anew. A rank
            that takes longer ends itself, and the job with it.
        snapshot_folder: Where each host keeps snapshots in memory; who supervises the job says it, and removes it.
        monitor: Where ``collective run`` listens to the ranks, and the key; set by it.
        lost_seconds: Seconds without a word from a host's ranks after which ``collective run`` ends the job; 0: never.
        timeline: Where rank 0 writes what every operation waited for; empty or ``DYNAMIC``: when it is told to.
        timeline_mark_cycles: 1: also when the ranks compare what they call.
    """

    backend: str = ""
    algorithm: str = ""
    small_bytes: int = -1
    segment_bytes: int = 256 * 1024
    fusion_bytes: int = 4 * 1024 * 1024
    stall_seconds: float = 60.0
    timeout_seconds: float = 1800.0
    log_level: str = "warning"
    check_finite: str = "pass"
    completion_file: str = ""
    elastic: int = 0
    min_ranks: int = 0
    recovery_seconds: float = 60.0
    snapshot_folder: str = ""
    monitor: str = ""
    lost_seconds: float = 120.0
    timeline: str = ""
    timeline_mark_cycles: int = 0

    def __post_init__(self) -> None:
        _check_choice("backend", self.backend, ("", *BACKENDS))
        _check_choice("algorithm", self.algorithm, ("", *ALGORITHMS))
        _check_choice("log_level", self.log_level, LOG_LEVELS)
        _check_choice("check_finite", self.check_finite, CHECK_FINITE)
        _check_range("small_bytes", self.small_bytes, least=-1)
        _check_range("segment_bytes", self.segment_bytes, least=64)
        _check_range("fusion_bytes", self.fusion_bytes, least=0)
        _check_range("stall_seconds", self.stall_seconds, least=0)
        _check_range("timeout_seconds", self.timeout_seconds, least=0)
        _check_range("min_ranks", self.min_ranks, least=0)
        _check_range("recovery_seconds", self.recovery_seconds, least=0.1)
        _check_range("lost_seconds", self.lost_seconds, least=0)


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Read the settings from ``environment`` (such as ``os.environ``).

    Raises:
        SettingError: for an unknown ``COLLECTIVE_...`` name or a value that is not allowed.
    """
    types = {field.name: _TYPES[str(field.type)] for field in dataclasses.fields(Settings)}
    told = {name: (variable, text) for variable, name, text in _from_horovod(environment)}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in types:
            allowed = sorted(PREFIX + known.upper() for known in types)
            raise SettingError(
                f"a setting is one of {', '.join(allowed)}",
                received=f"{variable}={text}",
                fix=_did_you_mean(variable, allowed) or "Unset it",
            )
        told[name] = variable, CHECK_FINITE_SWITCH.get(text, text) if name == "check_finite" else text
    values: dict[str, str | int | float] = {}
    for name, (variable, text) in told.items():
        try:
            values[name] = types[name](text)
        except ValueError:
            kind = "a whole number" if types[name] is int else "a number"
            raise SettingError(f"{variable} is {kind}", received=f"{variable}={text}") from None
    return Settings(**values)  # type: ignore[arg-type]  # each value was made by its field's own type


def _from_horovod(environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Horovod's variables that are set, as variable, setting, and the setting's text; later ones count more."""
    for variable, (name, translate) in HOROVOD.items():
        text = translate(environment.get(variable, "").strip())
        if text:
            yield variable, name, text


def _switch(text: str) -> str:
    return "1" if text.lower() in TRUE else "0" if text.lower() in FALSE else text


def _never_if_on(text: str) -> str:
    return "0" if _switch(text) == "1" else ""


def _log_level(text: str) -> str:
    return HOROVOD_LOG_LEVELS.get(text.lower(), text.lower())


# Horovod's variable: the setting it means, and how its value is said here.
HOROVOD: dict[str, tuple[str, Callable[[str], str]]] = {
    "HOROVOD_TIMELINE": ("timeline", str),
    "HOROVOD_TIMELINE_MARK_CYCLES": ("timeline_mark_cycles", _switch),
    "HOROVOD_STALL_CHECK_TIME_SECONDS": ("stall_seconds", str),
    "HOROVOD_STALL_CHECK_DISABLE": ("stall_seconds", _never_if_on),
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": ("timeout_seconds", str),
    "HOROVOD_LOG_LEVEL": ("log_level", _log_level),
    "HOROVOD_FUSION_THRESHOLD": ("fusion_bytes", str),
}


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        names = [choice for choice in allowed if choice]
        raise SettingError(
            f"{name} is one of {', '.join(names)}", received=f"{name}={value}", fix=_did_you_mean(value, names)
        )


def _check_range(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise SettingError(f"{name} is at least {least}", received=f"{name}={value}")


def _did_you_mean(word: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(word, allowed, n=1)
    return f"Did you mean {near[0]}?" if near else ""
