"""Kill a training run with SIGKILL again and again, and see whether it ends where the run ends that nobody killed.

    python tests/killed_training.py FOLDER --kills 20 --processes 2

Processes are forked from this one, which has imported everything, so that a try costs no more than what it trains.  Most kills come at a random
moment; every fourth comes from within, while a checkpoint is written: when half of the file is there, before it gets its name, before the oldest
is removed, or before the model is written.  Of two processes either is killed, at random, and then the other, as torchrun does.  Prints one JSON object; exit code 1 where
anything differs.
"""

import argparse
import itertools
import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import accelerate  # noqa: F401 - before the forks
from gen_fixtures import random_parquet, tiny_config
from safetensors.torch import load_file

import sdesolve_gen as gen
from sdesolve_gen.training import checkpoints

IMAGES, BATCH = 32, 8  # four updates an epoch
MOMENTS = ("half written", "no name yet", "before the oldest goes", "before the model is written")


def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def half(state, path):
    with open(path, "wb") as file:
        file.write(os.urandom(1000))
        file.flush()
        die()


def doomed(moment, save):
    """Die at a moment of the ``save``-th checkpoint from here."""
    count = itertools.count(1)
    write = checkpoints.save_checkpoint

    def written(*arguments):
        if next(count) == save:
            {
                "half written": lambda: setattr(checkpoints.torch, "save", half),
                "no name yet": lambda: setattr(checkpoints.os, "replace", die),
                "before the oldest goes": lambda: setattr(Path, "unlink", die),
                "before the model is written": lambda: setattr(gen.Model, "save", die),
            }[moment]()
        return write(*arguments)

    gen.training.loop.save_checkpoint = written


def start(config, processes, plan=None):
    """Fork the processes of a run; their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ids = []
    for rank in range(processes):
        if pid := os.fork():
            ids.append(pid)
            continue
        try:
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)
                os.dup2(nothing.fileno(), 2)
                if processes > 1:
                    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                if plan:
                    doomed(*plan)
                gen.train(config, progress=False, device="cpu")
                os._exit(0)
        finally:
            os._exit(1)
    return ids


def wait(ids, now=lambda: False):
    """Exit codes of the processes, all of which are dead then; once ``now()`` holds one of them is killed, and after that the others."""
    codes, left = {}, list(ids)
    while left:
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.remove(pid)
                codes[pid] = os.waitstatus_to_exitcode(status)
                if codes[pid]:
                    for other in left:
                        os.kill(other, signal.SIGKILL)
        if len(left) == len(ids) and now():
            os.kill(random.choice(left), signal.SIGKILL)
        time.sleep(0.002)
    return [codes[pid] for pid in ids]


class Moment:
    """So many seconds from now, or from the next line of the log."""

    def __init__(self, seconds, path=None):
        self.path, self.size, self.seconds = path, size(path), seconds
        self.due = None if path else time.monotonic() + seconds

    def __call__(self):
        if self.due is None and size(self.path) > self.size:
            self.due = time.monotonic() + self.seconds
        return self.due is not None and time.monotonic() >= self.due


def size(path):
    return path.stat().st_size if path and path.exists() else 0


def log(folder):
    """The loss curve: what does not depend on the clock."""
    path = folder / "log.jsonl"
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []
    lines = [json.loads(line) for line in whole]
    return [{name: value for name, value in line.items() if name not in ("time", "images_per_second")} for line in lines]


def same(a, b):
    first, second = (load_file(folder / "model.safetensors") for folder in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    data = random_parquet(options.folder / "train.parquet", IMAGES)

    def config(name):
        precision = "bf16" if options.processes == 1 else "fp32"  # in which several processes agree with one to more digits
        return tiny_config(data, options.folder / name, steps=options.steps, batch=BATCH, save_every=3, keep=2, precision=precision)

    began = time.monotonic()
    straight = options.folder / "straight"
    assert wait(start(config("straight"), options.processes)) == [0] * options.processes
    lasts = time.monotonic() - began
    every = [line["time"] for line in map(json.loads, (straight / "log.jsonl").read_text().splitlines())]
    stretch = max(0.05, min(every[-1] - every[0], 8 * (every[-1] - every[0]) / len(every)))  # about two epochs
    startup = lasts - (every[-1] - every[0])

    assert wait(start(config("alone"), 1)) == [0]
    pairs = zip(log(straight), log(options.folder / "alone"), strict=True)
    apart = max(abs(a["loss"] / b["loss"] - 1) for a, b in pairs)

    kills = saving = twice = runs = 0
    reached, differs = [], []
    while kills < options.kills or not runs:
        folder = options.folder / f"killed-{runs}"
        epoch = None
        while True:
            last = kills >= options.kills
            plan = (random.choice(MOMENTS), random.randint(1, 3)) if kills % 4 == 3 and not last else None
            early = random.random() < 0.15  # before it has begun
            moment = Moment(random.uniform(0, startup)) if early else Moment(random.uniform(0, stretch), folder / "log.jsonl")
            there = set(folder.glob(".*"))
            codes = wait(start(config(folder.name), options.processes, plan), (lambda: False) if plan or last else moment)
            if not any(codes):
                break
            assert -signal.SIGKILL in codes, codes  # and nothing else ended it
            kills += 1
            saving += plan is not None or any("checkpoint" in path.name for path in set(folder.glob(".*")) - there)
            curve = log(folder)
            now = (curve[-1]["step"] - 1) // (IMAGES // BATCH) if curve else 0
            reached.append(curve[-1]["step"] if curve else 0)
            twice += now == epoch
            epoch = now
        runs += 1
        if [line["step"] for line in log(folder)] != list(range(1, options.steps + 1)) or log(folder) != log(straight) or not same(folder, straight):
            differs.append(folder.name)
    print(json.dumps({
        "processes": options.processes, "kills": kills, "while_saving": saving, "in_the_epoch_of_the_one_before": twice, "log_stood_at": reached,
        "runs": runs, "differ": differs, "loss_apart_from_one_process": apart, "seconds": round(time.monotonic() - began, 1),
    }))  # fmt: skip
    return bool(differs)


if __name__ == "__main__":
    sys.exit(main())
