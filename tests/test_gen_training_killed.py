"""``kill -9`` at any moment: loss curve and weights are, bit for bit, those of the run that nobody killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gen_fixtures import NETWORK, random_parquet
from safetensors.torch import load_file

from sdesolve_gen.training.checkpoints import checkpoints

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks, and sends SIGKILL")


def killed(folder, *arguments):
    command = [sys.executable, str(ROOT / "tests" / "killed_training.py"), str(folder), *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("processes", "kills"), [(1, 4), (2, 2)])
def test_killed_at_a_few_moments(tmp_path, processes, kills):
    said = killed(tmp_path, "--processes", processes, "--kills", kills, "--steps", 9)
    assert said["kills"] >= kills
    assert said["differ"] == []
    assert said["loss_apart_from_one_process"] < (1e-4 if processes > 1 else 1e-12)  # relative


INTERRUPTED = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from gen_fixtures import random_parquet, tiny_config
from killed_training import start
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would their children
out = Path(sys.argv[2])
out.mkdir()
ids = start(tiny_config(random_parquet(out / "train.parquet"), out / "run", steps=3000, save_every=10_000), 2)
while not (out / "run" / "log.jsonl").exists() or len((out / "run" / "log.jsonl").read_bytes()) < 500:
    time.sleep(0.01)
os.kill(ids[1], signal.SIGINT)
print(sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ids))
"""


def test_two_processes_stop_after_the_same_update_and_keep_it(tmp_path):
    """Whichever is interrupted: the one that writes the checkpoint is the other."""
    command = [sys.executable, "-c", INTERRUPTED, str(ROOT / "tests"), str(tmp_path / "x")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
    assert done.stdout == "[1, 1]\n", done.stdout + done.stderr
    (found,) = checkpoints(tmp_path / "x" / "run")
    last = json.loads((tmp_path / "x" / "run" / "log.jsonl").read_text().splitlines()[-1])["step"]
    assert found.whole() and found.step == last < 3000
    assert (tmp_path / "x" / "run" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_twenty_moments(tmp_path, processes):
    said = killed(tmp_path, "--processes", processes, "--kills", 20, "--steps", 40, "--seed", processes)
    assert said["kills"] >= 20
    assert said["while_saving"] >= 5
    assert said["in_the_epoch_of_the_one_before"] >= 1
    assert said["differ"] == []


@pytest.mark.slow
def test_torchrun_killed_and_one_process(tmp_path):
    """The command line under torchrun on two processes, killed once, ends where it ends unkilled; one process agrees to rounding."""
    data = random_parquet(tmp_path / "train.parquet", 32)
    sets = [f"network={json.dumps(NETWORK)}", "warmup=2", "save_every=3", "log_every=1"]

    def command(out, *launcher):
        options = ["--data", data, "--out", tmp_path / out, "--name", "x", "--steps", 40, "--batch", 8, "--precision", "fp32", "--device", "cpu"]
        chosen = [part for text in sets for part in ("--set", text)]
        return [str(part) for part in (sys.executable, "-m", *launcher, "sdesolve_gen", "train", *options, *chosen)]

    torchrun = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    for out, launcher in (("one", ()), ("two", torchrun)):
        subprocess.run(command(out, *launcher), env=ENVIRONMENT, check=True, capture_output=True)
    with subprocess.Popen(command("killed", *torchrun), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while not list((tmp_path / "killed").glob("checkpoint-*")) and run.poll() is None:
            time.sleep(0.01)
        workers = subprocess.run(["ps", "--ppid", str(run.pid), "-o", "pid="], capture_output=True, text=True, check=True).stdout.split()
        os.kill(int(workers[0]), 9)
        assert run.wait() != 0
    subprocess.run(command("killed", *torchrun), env=ENVIRONMENT, check=True, capture_output=True)
    one, two, again = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "killed"))
    assert all(torch.equal(two[name], again[name]) for name in two)
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
    losses = [[json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("one", "two")]
    assert torch.allclose(*map(torch.tensor, losses), rtol=1e-4)
