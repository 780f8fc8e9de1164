"""What docs/security.md promises of the code as a whole: what it never calls, and what it refuses to read."""

import ast
import hashlib
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from jobs import run_job

import collective
from collective import codec, dtypes
from collective.archive import INDEX, Archive
from collective.launch import leftovers
from collective.monitor import link

PACKAGE = Path(collective.__file__).parent
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}

PICKLERS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "torch.load", "numpy.load"}
# The codec, which others ask by name (allow_pickle=True), and collective.run, which takes a function.
MAY_PICKLE = {"codec.py", "launch/call.py", "launch/serve.py"}
# Where the library itself asks for it: Horovod's objects and states, whose names promise to take anything.
ASKS_TO_PICKLE = {
    "common/elastic.py", "common/keeping.py", "common/trees.py", "keras/elastic.py",
    "tensorflow/elastic.py", "tensorflow/objects.py", "torch/objects.py", "torch/state.py",
}  # fmt: skip
# mpi4py's lower-case methods pickle.
MPI_PICKLES = {
    "allgather", "allreduce", "alltoall", "bcast", "exscan", "gather", "ibsend", "irecv", "isend", "issend", "recv",
    "reduce", "scan", "scatter", "sendrecv", "ssend",
}  # fmt: skip
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn"}
STARTS = {"run", "Popen", "call", "check_call", "check_output"}


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def name(node):
    return ast.unparse(node.func)


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_only_the_named_places_pickle():
    found = {path for path, tree in TREES.items() if PICKLERS & {each.split(".")[0] for each in imported(tree)}}
    assert found == MAY_PICKLE
    loads = {path for path, tree in TREES.items() for call in calls(tree) if name(call) in ("np.load", "torch.load")}
    assert loads == set()


def test_only_horovods_names_ask_the_codec_to_pickle():
    def asks(tree):
        given = [word for call in calls(tree) for word in call.keywords if word.arg == "allow_pickle"]
        defaults = [
            default
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
            for argument, default in zip(reversed(node.args.args), reversed(node.args.defaults), strict=False)
            if argument.arg == "allow_pickle"
        ]
        values = [word.value for word in given] + defaults
        return any(isinstance(value, ast.Constant) and value.value is True for value in values)

    assert {path for path, tree in TREES.items() if asks(tree)} <= ASKS_TO_PICKLE


def test_nothing_runs_a_shell_or_code_from_text():
    for path, tree in TREES.items():
        for call in calls(tree):
            assert name(call) not in SHELLS | {"eval", "exec"}, (path, call.lineno)
            assert not any(word.arg == "shell" for word in call.keywords), (path, call.lineno)
            module, _, method = name(call).rpartition(".")
            if module == "subprocess" and method in STARTS:
                assert not isinstance(call.args[0], (ast.Constant, ast.JoinedStr, ast.BinOp)), (path, call.lineno)


def test_messages_between_ranks_are_buffers():
    for path, tree in TREES.items():
        if path.startswith(("transport/", "backends/mpi", "backends/elastic")):
            for call in calls(tree):
                receiver, _, method = name(call).rpartition(".")
                assert not ("comm" in receiver.lower() and method in MPI_PICKLES), (path, call.lineno)


@pytest.mark.parametrize("told", ["object", "O", "U8", "datetime64[s]", "i4,f4", "no such", "V8"])
def test_a_dtype_that_is_not_of_numbers_is_refused_by_name(told):
    with pytest.raises(ValueError, match=r"."):
        dtypes.by_name(told)
    with pytest.raises(ValueError, match=r"."):
        codec.decode(b"J" + json.dumps({"array": [told, [1], "AAAAAAAAAAA="]}).encode())


@pytest.mark.parametrize("told", [["float64", [2**50]], ["float64", [-1]], ["float64", [1.5]], ["object", [3]]])
def test_a_checkpoint_that_announces_other_arrays_than_it_has_is_not_read(tmp_path, told):
    """Its checksums fit: they say that it is what was written, not who wrote it."""
    archive = Archive(tmp_path, keep=2)
    archive.write(1, {"weights": np.ones(3)}, None)
    place = tmp_path / "step-000000000001"
    index = json.loads((place / INDEX).read_text())
    index[3]["weights"] = told
    (place / INDEX).write_text(json.dumps(index))
    complete = json.loads((place / "complete.json").read_text())
    written = (place / INDEX).read_bytes()
    complete[INDEX] = [len(written), hashlib.sha256(written).hexdigest()]
    (place / "complete.json").write_text(json.dumps(complete))
    assert archive.newest() is None


def test_a_checkpoint_is_its_owners_only(tmp_path):
    Archive(tmp_path, keep=1).write(1, {"weights": np.ones(3)}, {"step": 1})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_shared_memory_is_private_and_has_no_name_while_it_is_used():
    code = (
        "import os, collective as c; c.init(); c.empty(1000); c.barrier()\n"
        "for line in open('/proc/self/maps'):\n"
        "    if '/dev/shm/collective-' in line:\n"
        "        span, path = line.split()[0], line.split(maxsplit=5)[5].strip()\n"
        "        print('mapped', oct(os.stat(f'/proc/self/map_files/{span}').st_mode & 0o777), path)\n"
        "c.barrier()\n"
    )
    if subprocess.run([sys.executable, "-c", "import os; os.stat('/proc/self/map_files')"], check=False).returncode:
        pytest.skip("this kernel doesn't show what is mapped (/proc/self/map_files)")
    result = run_job(2, sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
    mapped = [line.split(maxsplit=2)[1:] for line in result.stdout.splitlines() if line.startswith("mapped")]
    assert len(mapped) >= 4
    assert {mode for mode, _ in mapped} == {"0o600"}
    assert all(path.endswith("(deleted)") for _, path in mapped)


def test_memory_that_a_dead_rank_has_left_is_removed_but_none_that_is_open_or_mapped():
    if not os.access(leftovers.MEMORY, os.W_OK):
        pytest.skip(f"there is no {leftovers.MEMORY}")
    began = time.time() - 10
    made = {kind: tempfile.mkstemp(prefix="collective-", dir=leftovers.MEMORY) for kind in ("left", "open", "mapped")}
    descriptors, names = ({kind: pair[index] for kind, pair in made.items()} for index in (0, 1))
    os.write(descriptors["mapped"], b"used")
    with mmap.mmap(descriptors["mapped"], 4):
        for kind in ("left", "mapped"):
            os.close(descriptors[kind])
        leftovers.remove(began)
        found = {kind for kind, name in names.items() if os.path.exists(name)}
    for kind in found:
        os.unlink(names[kind])
    os.close(descriptors["open"])
    assert found == {"open", "mapped"}


def test_the_key_of_the_job_is_in_no_command_line_and_not_in_the_environment_of_the_ranks_children():
    code = (
        "import os, subprocess, sys, collective as c; c.init()\n"
        "told = [sys.executable, '-c', 'import os; print(sorted(os.environ))']\n"
        "print('child', subprocess.run(told, capture_output=True, text=True).stdout)\n"
        "print('launcher', open(f'/proc/{os.getppid()}/cmdline').read())\n"
    )
    result = run_job(2, sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("'PATH'") == 2
    assert "-np" in result.stdout.split("launcher")[1]
    assert link.VARIABLE not in result.stdout
