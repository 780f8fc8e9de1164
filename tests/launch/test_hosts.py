"""The library itself over every MPI there is, and on emulated hosts: four with a rank each, two with two."""

import re
import sys
import time

import pytest
from jobs import ROOT, run_job

# Emulated hosts share this machine's cores, which no launcher can know.
YIELD = ("-x", "OMPI_MCA_mpi_yield_when_idle=1")

CHECK = """
import numpy as np, collective as c, socket
c.init(); r, n = c.rank(), c.size()
for length in (0, 1, 1000, 100_003, 1_000_000):
    mine = np.random.default_rng([length, r]).integers(-50, 50, length).astype(np.float32)
    everyone = [np.random.default_rng([length, k]).integers(-50, 50, length).astype(np.float32) for k in range(n)]
    np.testing.assert_array_equal(c.allreduce(mine, c.Sum), sum(everyone))
    uneven = np.concatenate([array[: k + 1] for k, array in enumerate(everyone)])
    np.testing.assert_array_equal(c.allgather(mine[: r + 1]), uneven)
    np.testing.assert_array_equal(c.broadcast(mine, n - 1), everyone[-1])
    for compression in c.Compression:  # sums up to 200 are exact in all
        np.testing.assert_array_equal(c.allreduce(mine, c.Sum, compression=compression), sum(everyone))
    handles = [c.allreduce_async(mine + k, c.Sum, name=f"tensor {k}") for k in np.random.default_rng(r).permutation(3)]
    for handle, k in zip(handles, np.random.default_rng(r).permutation(3)):
        np.testing.assert_array_equal(handle.wait(), sum(everyone) + n * k)
for ranks in ([0, 1], [1, 2], [0, 3]):
    some = c.add_process_set(ranks)
    if some.included():
        for length in (1, 1000, 1_000_000):
            total = c.allreduce(np.full(length, r), c.Sum, process_set=some)
            np.testing.assert_array_equal(total, np.full(length, sum(ranks)))
for step in range(r + 1):  # the higher the rank, the more batches
    total = c.allreduce(np.full(100_000, 1.0), c.Sum)
    np.testing.assert_array_equal(total, np.full(100_000, float(n - step)))
assert c.join() == n - 1
here = (r, c.local_rank(), c.local_size(), c.cross_rank(), c.cross_size(), socket.gethostname())
everyone = c.allgather_object(here)
if r == 0: print(everyone)
"""


# A batch of one host has an infinite value; the step is left out on both.
SKIP = {
    "torch": """
import numpy as np, torch, collective.torch as hvd
torch.set_num_threads(1); hvd.init(); torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(300, 700), torch.nn.Linear(700, 1))
named = model.named_parameters()
optimizer = hvd.DistributedOptimizer(torch.optim.Adam(model.parameters()), named_parameters=named)
def step(factor):
    optimizer.zero_grad()
    model(torch.full((2, 300), factor)).sum().backward()
    optimizer.step()
def state(): return [*model.parameters(), *(value for each in optimizer.state.values() for value in each.values())]
""",
    "keras": """
import numpy as np, keras, collective.keras as hvd
hvd.init(); keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(700), keras.layers.Dense(1, name="last")])
model.compile(hvd.DistributedOptimizer(keras.optimizers.Adam()), "mse")
def step(factor): model.train_on_batch(np.full((2, 300), factor), np.ones((2, 1)))
def state(): return [*model.weights, *model.optimizer.variables]
""",
}
SKIP_CHECK = """
def bits(): return [(each.detach() if hasattr(each, "detach") else each).numpy().tobytes() for each in state()]
step(1.0)
before = bits()
step(np.inf if hvd.rank() == 1 else 1.0)
assert bits() == before
step(1.0)
assert bits() != before
assert len(set(hvd.allgather_object(b"".join(bits())))) == 1
print("left out on rank", hvd.rank(), "of", hvd.cross_size(), "hosts", flush=True)
"""


def on(hosts: str, agent: object, *command: str, timeout: float = 60):
    ranks = sum(int(host.rsplit(":", 1)[1]) for host in hosts.split(","))
    options = ("-H", hosts, "--launch-agent", str(agent), *YIELD)
    return run_job(ranks, sys.executable, *command, timeout=timeout, options=options)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_suite_of_the_operations_over_every_mpi(mpi_python, ranks, tmp_path):
    suite = str(ROOT / "tests" / "parallel" / "main.py")
    chosen = ("-k", "test_collectives or test_life_cycle or test_process_sets or test_join")
    result = run_job(ranks, mpi_python, suite, str(tmp_path), *chosen, PYTHONPATH=str(ROOT))
    logs = [path.read_text() for path in sorted(tmp_path.glob("rank*.txt"))]
    assert result.returncode == 0, "\n".join([*logs, result.stderr])
    assert len(logs) == ranks
    assert all(" passed" in log for log in logs)


@pytest.mark.parametrize("ranks_a_host", [1, 2])
def test_operations_across_hosts_equal_numpy(four_hosts, ranks_a_host):
    count = 4 // ranks_a_host
    hosts = ",".join(f"{address}:{ranks_a_host}" for address in four_hosts.addresses[:count])
    result = on(hosts, four_hosts.agent, "-c", CHECK)
    assert result.returncode == 0, result.stderr
    expected = [
        (rank, rank % ranks_a_host, ranks_a_host, rank // ranks_a_host, count, four_hosts.names[rank // ranks_a_host])
        for rank in range(4)
    ]
    assert str(expected) in result.stdout


def test_training_across_four_hosts_gives_the_answer_of_one_process(four_hosts):
    hosts = ",".join(f"{address}:1" for address in four_hosts.addresses)
    spread = on(hosts, four_hosts.agent, str(ROOT / "examples" / "numpy_softmax.py"))
    assert spread.returncode == 0, spread.stderr
    alone = run_job(1, sys.executable, "examples/numpy_softmax.py")
    assert spread.stdout.replace("4 ranks", "1 ranks") == alone.stdout


def test_an_exception_on_one_host_ends_the_job_on_all(four_hosts):
    code = (
        "import collective as c, numpy as np, time; c.init(); print('started', time.time(), flush=True)\n"
        "if c.rank() == 2: raise ValueError('disk full')\n"
        "c.allreduce(np.ones(1_000_000))"
    )
    hosts = ",".join(f"{address}:1" for address in four_hosts.addresses)
    result = on(hosts, four_hosts.agent, "-c", code)
    ended = time.time()
    assert result.returncode != 0
    assert f"rank 2 of 4 on host {four_hosts.names[2]}: uncaught ValueError: disk full" in result.stderr
    assert ended - max(float(line.split()[1]) for line in result.stdout.splitlines()) < 5


@pytest.mark.parametrize(("example", "package"), [("keras_mnist", "keras"), ("torch_mnist", "torch")])
def test_gradients_sent_while_others_are_computed_leave_equal_weights(four_hosts, example, package):
    """Across hosts gradients go bucket by bucket, in another thread than the one that computes."""
    pytest.importorskip(package, reason=f"{package} is not installed")
    hosts = ",".join(f"{address}:1" for address in four_hosts.addresses[:2])
    result = on(hosts, four_hosts.agent, str(ROOT / "examples" / f"{example}.py"), timeout=200)
    assert result.returncode == 0, result.stderr
    assert "weights equal on all 2 ranks: True" in result.stdout
    assert float(re.search(r"test accuracy ([\d.]+)", result.stdout)[1]) >= 0.97


@pytest.mark.parametrize(("package", "name"), [("keras", "last/kernel"), ("torch", "1.weight")])
def test_a_step_that_is_not_finite_on_one_host_is_left_out_on_all(four_hosts, package, name):
    pytest.importorskip(package, reason=f"{package} is not installed")
    hosts = ",".join(f"{address}:1" for address in four_hosts.addresses[:2])
    options = ("-H", hosts, "--launch-agent", str(four_hosts.agent), *YIELD, "-x", "COLLECTIVE_CHECK_FINITE=skip")
    result = run_job(2, sys.executable, "-c", SKIP[package] + SKIP_CHECK, options=options)
    assert result.returncode == 0, result.stderr
    assert sorted(re.findall(r"left out on rank \d of \d hosts", result.stdout)) == [
        f"left out on rank {rank} of 2 hosts" for rank in range(2)
    ]
    (warning,) = [line for line in result.stderr.splitlines() if "This step is left out on all ranks" in line]
    assert f"{name}: not finite on rank 1" in warning
