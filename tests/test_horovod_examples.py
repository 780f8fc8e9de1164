"""Programs as Horovod's users write them run with another import, learn real digits, and leave the ranks equal."""

import importlib.util
import json
import re
import sys

import pytest
from jobs import ROOT, run, run_job

FOLDER = ROOT / "examples" / "horovod_style"
# Each with the test accuracy that one process reaches as well.
EXAMPLES = {
    "tensorflow2_mnist": 0.96,
    "tensorflow2_keras_mnist": 0.94,
    "keras_mnist_advanced": 0.95,
    "pytorch_mnist": 0.94,
    "pytorch_gradient_accumulation": 0.92,
}


def skip_without_framework(example):
    framework = "torch" if "torch" in example else "tensorflow"
    if not importlib.util.find_spec(framework):
        pytest.skip(f"{framework} is not installed")


def check(result, example, ranks):
    assert result.returncode == 0, result.stderr
    accuracy, told = re.findall(r"^test accuracy ([\d.]+), (.*)$", result.stdout, re.MULTILINE)[-1]
    assert float(accuracy) >= EXAMPLES[example]
    assert told == f"weights equal on {ranks} ranks: True"


def test_every_example_is_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted(EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_import_is_the_only_line_of_ours(example):
    lines = (FOLDER / f"{example}.py").read_text().splitlines()
    code = [line for line in lines if "collective" in line and not line.startswith(("collective run", '"""'))]
    (line,) = code
    new, old = re.fullmatch(r"import collective\.(\S+) as hvd  # was: import horovod\.(\S+) as hvd", line).groups()
    assert new == old


@pytest.mark.parametrize("example", EXAMPLES)
def test_it_learns_on_two_ranks_which_end_equal(example):
    skip_without_framework(example)
    check(run_job(2, sys.executable, str(FOLDER / f"{example}.py"), timeout=200), example, 2)


@pytest.mark.parametrize("example", ["pytorch_mnist", "keras_mnist_advanced"])
def test_it_runs_without_a_launcher_too(example):
    skip_without_framework(example)
    check(run([sys.executable, str(FOLDER / f"{example}.py")], 200), example, 1)


@pytest.mark.parametrize("option", ["--use-adasum", "--fp16-allreduce"])
def test_pytorch_with_another_reduction(option):
    skip_without_framework("pytorch")
    check(run_job(2, sys.executable, str(FOLDER / "pytorch_mnist.py"), option, timeout=200), "pytorch_mnist", 2)


def test_checkpoints_are_kept_by_one_rank_and_load_in_keras_alone(tmp_path):
    skip_without_framework("keras")
    command = [sys.executable, str(FOLDER / "keras_mnist_advanced.py"), "--checkpoints", str(tmp_path), "--epochs", "3"]
    result = run_job(2, *command, timeout=200)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{epoch}.keras" for epoch in (1, 2, 3)]
    code = (
        "import sys, keras\nmodel = keras.saving.load_model(sys.argv[1])\n"
        "kind = type(model.optimizer)\n"
        "print(kind.__module__.split('.')[0], kind.__name__, 'collective' in sys.modules)"
    )
    alone = run([sys.executable, "-c", code, str(tmp_path / "checkpoint-3.keras")], 100)
    assert alone.stdout.split() == ["keras", "SGD", "False"], alone.stderr


def test_the_page_for_horovods_users_names_what_is_there_and_what_is_not():
    skip_without_framework("keras")
    skip_without_framework("torch")
    page = (ROOT / "docs" / "from-horovod.md").read_text()
    rows = re.findall(r"^\| `(collective\S*)` \| (.*) \| (yes|no)\b", page, re.MULTILINE)
    code = (
        "import importlib, json, sys\n"
        "def there(module, name):\n"
        "    if hasattr(importlib.import_module(module), name): return True\n"
        "    return importlib.util.find_spec(f'{module}.{name}') is not None\n"
        "print(json.dumps([[there(module, name) for name in names] for module, names in json.loads(sys.argv[1])]))"
    )
    asked = [(module, re.findall(r"`(\w+)`", names)) for module, names, _ in rows]
    answers = json.loads(run([sys.executable, "-c", code, json.dumps(asked)], 120).stdout)
    assert len(rows) > 20
    for (module, names), answer, (_, _, status) in zip(asked, answers, rows, strict=True):
        wrong = [name for name, there in zip(names, answer, strict=True) if there != (status == "yes")]
        assert not wrong, f"{module}: {wrong} {'lack' if status == 'yes' else 'exist'}"
