"""Every example runs, on one rank and on several, and learns real digits."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
from jobs import ROOT, run, run_job

MNIST = ROOT.parent / "shared" / "data" / "mnist.npz"
HOROVOD = pytest.mark.skipif(
    not importlib.util.find_spec("horovod"), reason="Horovod is not built: collective install-horovod"
)


def accuracy(output: str) -> float:
    return float(re.search(r"test accuracy ([\d.]+)", output).group(1))


@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_an_example_is_a_page_long(example):
    assert len((ROOT / "examples" / example).read_text().splitlines()) < 80


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_numpy_softmax(ranks):
    result = run_job(ranks, sys.executable, "examples/numpy_softmax.py")
    assert result.returncode == 0, result.stderr
    assert accuracy(result.stdout) > 0.9
    assert f"{ranks} ranks" in result.stdout
    assert "weights equal: True" in result.stdout


def test_numpy_softmax_by_plain_python_gives_the_same_answer():
    alone = run([sys.executable, "examples/numpy_softmax.py"], 60)
    assert alone.returncode == 0, alone.stderr
    assert accuracy(alone.stdout) == accuracy(run_job(2, sys.executable, "examples/numpy_softmax.py").stdout)


def check_keras_mnist(result, ranks, epochs=20):
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert accuracy(result.stdout) >= 0.97
    assert len([line for line in lines if re.match(r"Epoch \d+/", line)]) == epochs  # one rank tells, not all
    assert re.search(r"\d+ samples/s", result.stdout)
    assert f"weights equal on all {ranks} ranks: True" in result.stdout
    checksums = re.search(r"checksums (.*)", result.stdout).group(1).split(", ")
    assert len(checksums) == ranks


@pytest.mark.parametrize("ranks", [1, 2])
def test_keras_mnist(ranks):
    check_keras_mnist(run_job(ranks, sys.executable, "examples/keras_mnist.py"), ranks)


def test_keras_survives_being_killed_with_the_same_bits(tmp_path):
    undisturbed = run_job(2, sys.executable, "examples/keras_survives.py", str(tmp_path / "one"), "--epochs", "3")
    assert undisturbed.returncode == 0, undisturbed.stderr
    command = (sys.executable, "examples/keras_survives.py", str(tmp_path / "other"), "--epochs", "3", "--kill", "45")
    killed = run_job(2, *command, timeout=240, options=("--restarts", "1"))
    assert killed.returncode == 0, killed.stderr
    assert "restart 1 of 1, on 2 ranks" in killed.stderr
    # 29 steps an epoch; the last checkpoint before the 45th step was that of the 40th.
    assert re.search("goes on from the checkpoint of step 40 .*: at epoch 2, batch 11", killed.stderr)
    assert re.search(r"accuracy in 3 epochs 0\.\d+, weights .*", killed.stdout).group() in undisturbed.stdout


@pytest.mark.skipif(not MNIST.exists(), reason="no MNIST file beside the checkout (shared/data/mnist.npz)")
def test_keras_mnist_from_a_file():
    command = [sys.executable, "examples/keras_mnist.py", "--data", str(MNIST), "--epochs", "5"]
    check_keras_mnist(run_job(2, *command, timeout=280), 2, epochs=5)


@pytest.mark.parametrize("ranks", [1, 2])
def test_tensorflow_custom_loop(ranks):
    result = run_job(ranks, sys.executable, "examples/tensorflow_custom_loop.py")
    assert result.returncode == 0, result.stderr
    assert accuracy(result.stdout) > 0.95
    assert result.stdout.count("epoch ") == 10


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="PyTorch is not installed")
@pytest.mark.parametrize("ranks", [1, 2])
def test_torch_mnist(ranks):
    check_keras_mnist(run_job(ranks, sys.executable, "examples/torch_mnist.py"), ranks)


def horovodrun(*options: str) -> list[str]:
    return [str(Path(sys.executable).parent / "horovodrun"), *options, sys.executable, "examples/keras_mnist.py"]


@HOROVOD
def test_keras_mnist_through_horovod_under_mpirun():
    check_keras_mnist(run_job(2, sys.executable, "examples/keras_mnist.py", COLLECTIVE_BACKEND="horovod"), 2)


@HOROVOD
@pytest.mark.parametrize("control", ["--gloo", "--mpi"])
def test_keras_mnist_under_horovodrun(control):
    options = ["--gloo"] if control == "--gloo" else ["--mpi", "--binding-args=--bind-to none --map-by slot"]
    # Under --gloo there is no MPI, so the backend is found by itself. horovodrun marks each line with its rank.
    environment = {} if control == "--gloo" else {"COLLECTIVE_BACKEND": "horovod"}
    search_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    result = run(horovodrun("-np", "2", *options), 200, PATH=search_path, **root, **environment)
    result.stdout = re.sub(r"^\[[\d,]+\]<\w+>:\s?", "", result.stdout, flags=re.MULTILINE)
    check_keras_mnist(result, 2)
