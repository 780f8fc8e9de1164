"""What Horovod's users catch and raise, by its names."""

from __future__ import annotations

from collective.errors import CollectiveError

# Whatever goes wrong in an operation is caught by this name.
HorovodInternalError = CollectiveError


class HostsUpdatedInterrupt(RuntimeError):
    """The hosts of an elastic job have changed.

    Args:
        skip_sync: Whether ranks were only lost, so that those that are left hold the same state already.
        ranks: With how many ranks the job is to go on; None: not said.
    """

    def __init__(self, skip_sync: bool, ranks: int | None = None) -> None:
        super().__init__(skip_sync)
        self.skip_sync, self.ranks = skip_sync, ranks


class HorovodVersionMismatchError(ImportError):
    """A framework has another version than the one that was built for; never raised here, as nothing is built.

    Args:
        name: The framework.
        version: The version found.
        installed_version: The version built for.
    """

    def __init__(self, name: str, version: str, installed_version: str | None) -> None:
        super().__init__(get_version_mismatch_message(name, version, installed_version), name=name)
        self.version, self.installed_version = version, installed_version


def get_version_mismatch_message(name: str, version: str, installed_version: str | None) -> str:
    """The text of ``HorovodVersionMismatchError``."""
    return (
        f"{name} has the version it was installed for. Received: version={version}, installed for {installed_version}."
    )
