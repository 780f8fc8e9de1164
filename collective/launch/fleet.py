"""The hosts of a job that may be started again: which can be used now, for how many ranks, and when that changes."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

from collective.errors import LaunchError
from collective.launch import machines
from collective.launch.attempt import say
from collective.launch.cooldown import Cooldown
from collective.launch.hostfile import Host
from collective.launch.plan import place

# How often the hosts are looked at, and how long one that didn't answer isn't asked again while a job runs, in seconds.
LOOK_SECONDS, SILENT_SECONDS = 1.0, 10.0

Hosts = tuple[Host, ...]
# Called with the hosts that can be used, and whether a job that is started now would have other places on them.
Listener = Callable[[Hosts, bool], None]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large a job may be, in ranks.

    Attributes:
        first: What it needs to start.
        fewest: What it needs to be started again.
        most: What it takes if there is room.
        seconds: How long to wait until there is room.
        oversubscribe: Whether hosts take more ranks than they have slots.
    """

    first: int
    fewest: int
    most: int
    seconds: float = 600.0
    oversubscribe: bool = False


class Fleet:
    """The hosts of one job.

    Args:
        listed: Tells which hosts are meant to be used now; it may raise ``LaunchError``. None: there is only this
            machine, or what a scheduler has given.
        sizes: How large the job may be.
        launch_agent: Program in place of ssh.
        cooldown: Which hosts are left out.
        discovered: Whether hosts come and go by themselves; others are taken as they are at the first start.
    """

    def __init__(
        self,
        listed: Callable[[], Hosts] | None,
        sizes: Sizes,
        launch_agent: str = "",
        cooldown: Cooldown | None = None,
        discovered: bool = False,
    ) -> None:
        self._listed, self._sizes, self._agent = listed, sizes, launch_agent
        self._cooldown, self.is_discovered = cooldown or Cooldown(), discovered
        self._trouble = ""
        self._silent: dict[str, float] = {}
        self.used: set[str] = set()
        self._in_use: set[str] = set()
        # Whether the job that runs, or was the last, has been told of other hosts.
        self.has_told = False

    @property
    def is_known(self) -> bool:
        """Whether the hosts have names that this process knows."""
        return self._listed is not None

    def gather(self, again: bool) -> tuple[int, Hosts]:
        """Wait until there is room for the job, and return the number of ranks and the hosts.

        Args:
            again: Whether the job has run before: it may be smaller then.

        Raises:
            LaunchError: when there isn't in time, or the hosts can't be told at the first start.
        """
        if self._listed is None:
            return self._sizes.first, ()
        if not again and not self.is_discovered:
            hosts = self._listed()
            return self._taken(max(self._sizes.first, min(self._room(hosts), self._sizes.most)), hosts)
        if not again:
            self._listed()  # one that never works is an error at once
        needed = self._sizes.fewest if again else self._sizes.first
        deadline, said = time.monotonic() + self._sizes.seconds, ""
        in_use, self._in_use = self._in_use, set()
        while True:
            self._silent.clear()
            hosts = self._usable()
            for name in in_use & set(self._silent):
                self.blame(name)
            in_use = set()
            if self._room(hosts) >= needed:
                return self._taken(min(self._room(hosts), self._sizes.most), hosts)
            there = _text(hosts)
            if time.monotonic() >= deadline:
                raise LaunchError(
                    f"the hosts that answer take at least {needed} ranks",
                    received=f"{there}, after {self._sizes.seconds:g} s",
                    fix="Raise --elastic-timeout, or lower --min-np",
                )
            if there != said:
                said = there
                say(f"waiting up to {deadline - time.monotonic():.0f} s for {needed} slots; hosts: {there}")
            time.sleep(LOOK_SECONDS)

    def _taken(self, ranks: int, hosts: Hosts) -> tuple[int, Hosts]:
        self._in_use = {host.name for host in hosts}
        self.used |= self._in_use
        return ranks, hosts

    def blame(self, name: str) -> None:
        """Tell that the job has failed on a host, if it has; one that doesn't answer afterwards is blamed by itself."""
        seconds = self._cooldown.blame(name) if name else 0
        if seconds:
            say(f"host {name} is left out for {seconds:g} s, because the job has failed there")

    @contextlib.contextmanager
    def watched(self, ranks: int, hosts: Hosts, on_hosts_updated: Listener) -> Iterator[None]:
        """Look for hosts that come and go, as long as the job runs.

        Args:
            ranks: The job's size now.
            hosts: What ``gather`` gave it.
            on_hosts_updated: Called in a thread: every second as long as a job that is started now would have other
                places than this one (ranks that come late have to hear of it), and once when it no longer would.
        """
        self.has_told = False
        if self._listed is None:
            yield
            return
        stop = threading.Event()
        begun = (self._places(ranks, hosts), hosts)
        watcher = threading.Thread(target=self._watch, args=(stop, *begun, on_hosts_updated), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()

    def _watch(self, stop: threading.Event, places: Hosts, in_use: Hosts, on_hosts_updated: Listener) -> None:
        names, last = {host.name for host in in_use}, places
        while not stop.wait(LOOK_SECONDS):
            hosts = self._usable(names)
            if self._trouble:
                continue  # no news is not bad news
            now = self._places(min(self._room(hosts), self._sizes.most), hosts)
            if now != last:
                say(f"hosts have come or gone; now there are {_text(hosts)}")
            if (now != places or last != places) and not stop.is_set():
                self.has_told = True
                on_hosts_updated(hosts, now != places)
            last = now

    def _usable(self, in_use: frozenset[str] | set[str] = frozenset()) -> Hosts:
        """The hosts that are listed, aren't left out, and answer or are in use."""
        try:
            listed = self._listed() if self._listed else ()
            self._trouble = ""
        except LaunchError as error:
            if str(error) != self._trouble:
                say(f"the hosts can't be told: {error}")
            self._trouble = str(error)
            return ()
        listed = self._cooldown.over(listed)
        now = time.monotonic()
        asked = [host for host in listed if host.name not in in_use and self._silent.get(host.name, now) <= now]
        answering = machines.answering(asked, self._agent) if asked else ()
        for host in set(asked) - set(answering):
            self._silent[host.name] = time.monotonic() + SILENT_SECONDS
        return tuple(host for host in listed if host.name in in_use or host in answering)

    def _room(self, hosts: Hosts) -> int:
        if self._sizes.oversubscribe and hosts:
            return max(self._sizes.first, sum(host.slots for host in hosts))
        return sum(host.slots for host in hosts)

    def _places(self, ranks: int, hosts: Hosts) -> Hosts:
        return place(ranks, hosts, self._sizes.oversubscribe) if ranks and hosts else ()


def _text(hosts: Hosts) -> str:
    return ", ".join(f"{host.name}:{host.slots}" for host in hosts) or "none that answers"
