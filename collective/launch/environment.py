"""Which environment variables the ranks get: what reaches other hosts is an allow-list, never the whole environment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from collective.errors import LaunchError

NAMES = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR", "LANG", "LC_ALL")
PREFIXES = (
    *("COLLECTIVE_", "HOROVOD_", "PYTHON", "MPI4PY_", "KERAS_", "TF_", "XLA_", "JAX_", "TORCH_", "PYTORCH_"),
    *("OMP_", "KMP_", "MKL_", "OPENBLAS_", "CUDA_", "HIP_", "ROCR_", "NCCL_", "UCX_", "FI_"),
    *("I_MPI_", "MPICH_", "MPIR_CVAR_"),
)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def assigned(requests: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Read the user's ``-x NAME`` and ``-x NAME=VALUE``: the variables asked for, with their values.

    Raises:
        LaunchError: for a name that is no identifier, or that has no value here. It never shows a value.
    """
    values = {}
    for request in requests:
        name, equals, value = request.partition("=")
        if not VARIABLE.fullmatch(name):
            raise LaunchError(
                "-x takes NAME or NAME=VALUE, a name being letters, digits and underscores", received=f"-x {name}"
            )
        if not equals and name not in environment:
            raise LaunchError("-x NAME passes a variable that is set", received=f"-x {name}", fix="Say -x NAME=VALUE")
        values[name] = value if equals else environment[name]
    return values


def forwarded(environment: Mapping[str, str], asked_for: Iterable[str]) -> tuple[str, ...]:
    """Name the variables of ``environment`` that other hosts get: those on the list and those the user asked for."""
    listed = {name for name in environment if name in NAMES or name.startswith(PREFIXES)}
    # Exported bash functions are variables too, under names that no launcher can pass.
    return tuple(sorted(name for name in listed | set(asked_for) if VARIABLE.fullmatch(name)))
