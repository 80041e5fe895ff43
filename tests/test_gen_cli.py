"""The command line: what it writes, what it says, and how it ends."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from gen_fixtures import NETWORK, random_parquet, tiny_model
from PIL import Image
from typer.testing import CliRunner

import sdesolve_gen as gen
from sdesolve_gen import cli, outputs
from sdesolve_gen.training import loop

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model().save(tmp_path_factory.mktemp("model") / "tiny")


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def sample(model, *arguments):
    return run("sample", "--model", model, "--steps", 4, *arguments)


def test_sample_writes_three_files_that_agree(model, tmp_path):
    result = sample(model, "--n", 5, "--seed", 3, "--batch-size", 2, "--snr", 0.1, "--option", "corrector_steps=2", "--out", tmp_path / "new" / "a.png")
    assert result.exit_code == 0, result.output
    png, npz, manifest = (tmp_path / "new" / f"a.{suffix}" for suffix in ("png", "npz", "json"))
    assert all(str(file) in result.output for file in (png, npz, manifest))
    said = json.loads(manifest.read_text())
    assert said["files"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (png, npz)}
    assert said["model"] == {"name": "tiny", "sha256": gen.load(model).card["sha256"]}
    assert (said["method"], said["steps"], said["seed"], said["ids"]) == ("pc", 4, 3, [0, 1, 2, 3, 4])
    assert said["options"] == {"corrector_steps": 2, "snr": 0.1}
    assert said["nfe"] == [4 * 3 + 1] * 5
    assert said["status"] == ["ok"] * 5
    assert set(said["versions"]) == {"sdesolve", "torch", "numpy", "python"}
    with np.load(npz) as file:
        expected = gen.load(model).sample(5, steps=4, seed=3, batch_size=2, snr=0.1, corrector_steps=2)
        assert np.array_equal(file["images"], expected.numpy())
    with Image.open(png) as picture:
        assert picture.mode == "L"
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("5 images, 13 network calls each, ")
    assert last.endswith("images/s, 5 ok")
    assert sorted(file.name for file in png.parent.iterdir()) == ["a.json", "a.npz", "a.png"]


def test_the_same_command_writes_the_same_images(model, tmp_path):
    for name in ("a", "b"):
        assert sample(model, "--out", tmp_path / f"{name}.png").exit_code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("nfe", [11, 2])
def test_nfe_instead_of_steps(model, tmp_path, nfe):
    """Network calls, that of the denoiser among them; for pc two a step: ten steps are 21 calls, five 11, and none fits into 2."""
    assert run("sample", "--model", model, "--nfe", nfe, "--method", "ddim", "--n", 2, "--out", tmp_path / "a.png").exit_code == 0
    said = json.loads((tmp_path / "a.json").read_text())
    assert (said["nfe"], said["steps"], said["options"]) == ([nfe] * 2, nfe - 1, {"nfe": nfe})
    with np.load(tmp_path / "a.npz") as file:
        assert np.array_equal(file["images"], gen.load(model).sample(2, "ddim", nfe=nfe, seed=0).numpy())
    result = run("sample", "--model", model, "--nfe", nfe, "--n", 2, "--out", tmp_path / "pc.png")
    if nfe == 11:
        assert json.loads((tmp_path / "pc.json").read_text())["steps"] == 5
    else:
        assert result.exit_code == 2 and "the smallest that works is nfe=3" in result.output


def test_evaluate_takes_as_options_what_it_has_no_flag_for(model, monkeypatch):
    def evaluate(*_, nfe, snr, rtol, atol, steps, **__):
        raise ValueError(f"{nfe} {snr} {rtol} {atol} {steps}")

    monkeypatch.setattr("sdesolve_gen.commands_evaluate.evaluate", evaluate)
    options = [part for option in ("nfe=9", "snr=0.1", "rtol=0.5", "atol=2") for part in ("--option", option)]
    assert "9 0.1 0.5 2 7" in run("evaluate", "--model", model, "--data", "any", "--steps", 7, *options).output
    assert "as in --steps" in run("evaluate", "--model", model, "--data", "any", "--option", "steps=7").output


def test_a_folder_gets_names(model, tmp_path):
    assert sample(model, "--method", "ddim", "--n", 1, "--out", tmp_path).exit_code == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"tiny-ddim-seed0.{suffix}" for suffix in ("json", "npz", "png")]


def test_files_are_not_replaced_unasked(model, tmp_path):
    (tmp_path / "a.npz").write_text("mine")
    result = sample(model, "--out", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "add --overwrite" in result.output
    assert (tmp_path / "a.npz").read_text() == "mine"
    assert not (tmp_path / "a.png").exists()
    assert sample(model, "--out", tmp_path / "a.png", "--overwrite").exit_code == 0


BAD = {
    "method": (["--method", "pcc"], "'pcc' is not known as method"),
    "model": (["--model", "nothing-like-it"], "is not known; expected"),
    "option name": (["--option", "snrr=0.1"], "Did you mean"),
    "option value": (["--option", "corrector_steps=many"], "corrector_steps"),
    "option form": (["--option", "snr"], "expected KEY=VALUE"),
    "option twice": (["--option", "norm=batch", "--option", "norm=expected"], "given twice"),
    "option with a flag": (["--option", "batch_size=3"], "--batch-size"),
    "snr": (["--snr", "3"], "expected a number, 0 < snr < 1"),
    "rtol": (["--rtol", "1e-3"], "rtol and atol choose steps"),
    "n": (["--n", "0"], "--n"),
    "seed": (["--seed", "-1"], "--seed"),
    "steps": (["--steps", "none"], "--steps"),
    "nfe": (["--nfe", "0"], "--nfe"),
    "nfe and steps": (["--nfe", "5", "--steps", "4"], "steps=4 and nfe=5 were both given; expected one of them"),
    "nfe and a tolerance": (["--nfe", "50", "--method", "rk45", "--rtol", "1e-3"], "rtol and atol choose steps"),
    "option nfe": (["--option", "nfe=5"], "as in --nfe"),
    "device": (["--device", "nowhere"], "device='nowhere' cannot be used"),
    "out": (["--out", "a.jpg"], "'.jpg' was taken for a file type, and pictures are written as .png; expected a name that ends in .png, as in --out a.png"),
    "out with a dot": (["--out", "o/v1.5"], "as in --out o/v1.5.png, or for a folder of that name a slash at its end: --out o/v1.5/"),
    "out without a name": (["--out", "o/.png"], "there is no name before .png; expected one, as in --out o/samples.png"),
    "out of nobody": (["--out", "~nobody-like-this/a.png"], "--out ~nobody-like-this/a.png: Could not determine home directory"),
    "out too long": (["--out", f"{250 * 'a'}.png"], "nothing can be written beside"),
    "out under a file": (["--out", f"{__file__}/a.png"], "nothing can be written beside"),
    "option x": (["--option", "x=3"], "--option x=3: that is given by other flags"),
    "option model": (["--option", "model=mnist"], "--option model=mnist: that is given by other flags"),
    "option problem": (["--option", "problem=3"], "--option problem=3: that is given by other flags"),
    "option progress": (["--option", "progress=false"], "--option progress=False: that is given by other flags"),
    "option seed": (["--option", "seed=3"], "as in --seed"),
    "option sample_ids": (["--option", "sample_ids=3"], "sample_ids=[3] (1 of them); expected n = 16 integers"),
    "option throw": (["--option", "throw=maybe"], "throw='maybe'; expected True or False"),
    "method in capitals": (["--method", "PC"], "Did you mean 'pc'?"),
    "n beyond any list": (["--n", str(10**22)], "expected an integer, 1 <= n < 2**63"),
    "n beyond any float": (["--n", str(10**400)], "expected an integer, 1 <= n < 2**63"),
    "unknown flag": (["--colour"], "--colour"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_value_is_a_message_and_exit_code_2(model, tmp_path, monkeypatch, case):
    arguments, message = BAD[case]
    calls = []
    monkeypatch.setattr(gen.networks.UNet, "forward", lambda self, x, time: calls.append(x.device.type) or x)
    monkeypatch.chdir(tmp_path)
    result = run("sample", "--model", model, *arguments)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")
    assert "Traceback" not in result.output
    assert "cpu" not in calls  # loading tries the network without memory, and nothing else may call it
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


@pytest.mark.parametrize("suffix", ["png", "npz", "json"])
def test_a_folder_where_a_file_shall_be_is_told_before_the_first_call(model, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(gen.Model, "draw", lambda *arguments, **options: pytest.fail("sampled"))
    (tmp_path / f"tiny-pc-seed0.{suffix}").mkdir()
    for more in ([], ["--overwrite"]):
        result = sample(model, "--out", tmp_path, *more)
        assert result.exit_code == 2 and len(result.output.splitlines()) == 1, result.output
        assert f"--out {tmp_path}: " in result.output and "is a folder; expected another --out" in result.output


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="wants a file system in which nobody can make a file")
def test_where_no_file_can_be_made_is_told_before_the_first_call(model, monkeypatch):
    monkeypatch.setattr(gen.Model, "draw", lambda *arguments, **options: pytest.fail("sampled"))
    result = sample(model, "--out", "/proc/x.png")
    assert result.exit_code == 2 and len(result.output.splitlines()) == 1, result.output
    assert "--out /proc/x.png: nothing can be written beside /proc/x.png" in result.output


def test_a_slash_makes_a_folder_of_a_name_with_a_dot(model, tmp_path):
    assert sample(model, "--n", 1, "--out", f"{tmp_path}/v1.5/").exit_code == 0
    assert (tmp_path / "v1.5" / "tiny-pc-seed0.png").is_file()


def test_the_manifest_has_the_steps_that_were_walked(model, tmp_path):
    assert run("sample", "--model", model, "--method", "ddim", "--nfe", 4, "--n", 2, "--out", tmp_path / "grid.png").exit_code == 0
    assert json.loads((tmp_path / "grid.json").read_text())["steps"] == 3  # and a call for the denoiser
    result = run("sample", "--model", model, "--method", "bosh3", "--rtol", "0.1", "--atol", "0.1", "--n", 3, "--batch-size", 2, "--out", tmp_path / "own.png")
    assert result.exit_code == 0, result.output
    expected = gen.load(model).draw(3, "bosh3", rtol=0.1, atol=0.1, seed=0).steps
    said = json.loads((tmp_path / "own.json").read_text())["steps"]
    assert expected.min() > 0 and torch.equal(torch.as_tensor(said).expand(3), expected)


@pytest.mark.parametrize("damage", [b"", b"not tensors"], ids=["empty", "text"])
def test_a_damaged_model_is_a_message(model, tmp_path, damage):
    (tmp_path / "card.json").write_bytes((model / "card.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(damage)
    result = sample(tmp_path, "--out", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "model.safetensors" in result.output


def test_failed_images_are_told_and_exit_code_1(model, tmp_path):
    result = run("sample", "--model", model, "--method", "rk45", "--option", "max_steps=2", "--n", 2, "--out", tmp_path / "a.png")
    assert result.exit_code == 1
    assert "2 of 2 images did not arrive (sample id 0: max_steps" in result.output
    assert json.loads((tmp_path / "a.json").read_text())["statuses"] == {"max_steps": 2}


@pytest.mark.parametrize("when", ["save_png", "save_npz"])
def test_an_interruption_leaves_the_old_set_or_none(model, tmp_path, monkeypatch, when):
    def interrupted(temporary, *rest):
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    for suffix in ("png", "npz", "json"):
        (tmp_path / f"old.{suffix}").write_text("old")
    monkeypatch.setattr(outputs, when, interrupted)
    for name in ("new", "old"):
        result = sample(model, "--n", 1, "--out", tmp_path / f"{name}.png", "--overwrite")
        assert result.exit_code == 130
        assert "interrupted" in result.output
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(("old.png", "old.npz", "old.json"), "old")


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_in_the_middle(model, tmp_path):
    command = [sys.executable, "-m", "sdesolve_gen", "sample", "--model", str(model), "--steps", "1000000", "--out", str(tmp_path / "a.png")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ready = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a shell's background jobs ignore it, and so would their children
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path, preexec_fn=ready) as process:
        assert process.stderr is not None
        assert process.stderr.read(9).strip() == "sampling"  # the bar: under way
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130
    assert "interrupted: no file was left half written" in rest
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("moment", ["numpy", "torch._C", "torch.nn.modules", "sdesolve.processes", "typer", "sdesolve_gen.cli"])
def test_ctrl_c_while_it_is_being_imported(moment, tmp_path):
    """At the moment at which a module has been imported, and the last of them is when the arguments are read."""
    command = [sys.executable, "-X", "importtime", "-c", "import sdesolve_gen_command as c; c.main()", "sample", "--steps", "1000000", "--out", str(tmp_path / "new" / "a.png")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ready = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - as above
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path, preexec_fn=ready) as process:
        assert process.stderr is not None
        imported = any(line.split("|")[-1].strip() == moment for line in process.stderr)
        process.send_signal(signal.SIGINT)
        try:
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    assert imported and process.returncode == 130
    said = [line for line in rest.splitlines() if line.strip() and not line.startswith("import time:") and "sampling" not in line]
    assert said == ["interrupted: no file was left half written."] and list(tmp_path.iterdir()) == []


def test_an_interrupt_that_is_ignored_stays_so(tmp_path):
    """As for the background jobs of a shell."""
    line = "import signal as s; s.signal(s.SIGINT, s.SIG_IGN); import sdesolve_gen_command as c, sdesolve_gen.cli as d; "
    line += "d.app = lambda: print(s.getsignal(s.SIGINT) is s.SIG_IGN); c.main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, env=environment, check=True).stdout == "True\n"


@pytest.mark.parametrize("arguments", [["--option", "nonsense=1"], ["--method", "nothing"], ["--snr", "7"], ["--labels", "3"]])
def test_a_bad_option_leaves_no_folder(model, tmp_path, arguments):
    result = sample(model, "--out", f"{tmp_path}/new/within/", *arguments)
    assert result.exit_code == 2 and list(tmp_path.iterdir()) == []


def test_train_then_sample(tmp_path):
    data = random_parquet(tmp_path / "train.parquet")
    sets = ["--set", f"network={json.dumps(NETWORK)}", "--set", "network.width=16", "--set", "process=ve", "--set", "process_options.sigma_max=20", "--set", "warmup=2"]
    result = run("train", "--data", data, "--out", tmp_path / "run", "--name", "mine", "--steps", 3, "--batch", 4, "--precision", "fp32", *sets)
    assert result.exit_code == 0, result.output
    m = gen.load(tmp_path / "run")
    assert (m.card["name"], m.process.sigma_max, m.network.stem.out_channels) == ("mine", 20, 16)
    assert sample(tmp_path / "run", "--n", 1, "--out", tmp_path / "a.png").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "rate=1"], "expected a field of TrainConfig"),
        (["--set", "learning_rate=fast"], "learning_rate='fast'; expected a finite number"),
        (["--set", "warmup=1.5"], "warmup=1.5; expected an integer"),
        (["--set", "steps=3"], "--steps is given too"),
        (["--set", "clip.x=3"], "expected a field"),
        (["--precision", "fp8"], "precision='fp8'"),
        (["--name", "../x"], "name='../x'"),
        (["--batch", "1000"], "fewer than batch=1000"),
        (["--data", "none.parquet"], "is not a file"),
        (["--set", "network.width=9"], "width=9"),
        (["--resume", "maybe"], "resume='maybe'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_training_is_a_message_and_exit_code_2(tmp_path, arguments, message):
    data = random_parquet(tmp_path / "train.parquet")
    result = run("train", "--data", data, "--out", tmp_path / "run", "--name", "x", "--steps", 1, "--batch", 4, *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "run").exists()


def test_an_interrupted_training_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train", interrupted)
    result = run("train", "--data", random_parquet(tmp_path / "train.parquet"), "--out", tmp_path, "--name", "x")
    assert result.exit_code == 130
    assert "the same command goes on from the newest" in result.output


@pytest.mark.usefixtures("heard")
def test_an_interrupted_training_says_where_it_stands_and_can_be_sampled(tmp_path, monkeypatch):
    apply = loop._Run._apply
    monkeypatch.setattr(loop._Run, "_apply", lambda run, *rest: (signal.raise_signal(signal.SIGINT) if run.step == 1 else None, apply(run, *rest)))
    sets = ["--set", f"network={json.dumps(NETWORK)}", "--set", "warmup=2", "--steps", 9, "--batch", 4, "--precision", "fp32"]
    result = run("train", "--data", random_parquet(tmp_path / "train.parquet"), "--out", tmp_path / "run", "--name", "x", *sets)
    assert result.exit_code == 130, result.output
    assert re.search(r"interrupted: 2 of 9 updates are done; .*checkpoint-00000002-\w+.pt is whole, .* the same command goes on from it\.\n$", result.output)
    assert sample(tmp_path / "run", "--n", 1, "--out", tmp_path / "a.png").exit_code == 0


@pytest.mark.parametrize("command", ["sample", "train"])
def test_help_teaches_by_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Examples" in result.output
    assert f"sdesolve-gen {command}" in result.output
    assert "--seed" in result.output
    assert "--out" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "restart", "--option", 'intervals={"a": 1}'], "intervals has 'a'; expected (low, high, repeats, steps)"),
        (["--method", "restart", "--option", "intervals=3"], "intervals=3; expected a list of (low, high, repeats, steps)"),
        (["--method", "annealed_langevin", "--option", "corrector=langevin"], "annealed_langevin has its own; expected method='pc' with it"),
        (["--option", "grid=[1, 2]"], "grid runs from 1.0 to 2.0"),
        (["--nfe", "1000000000000000000000000000000"], "expected at most 1000000"),
        (["--n", str(10**15)], "GiB are free; expected fewer at a time, as in n=1000"),
    ],
)
def test_what_a_sampler_cannot_do_is_one_line(model, tmp_path, options, message):
    result = run("sample", "--model", model, "--out", tmp_path / "a.png", *options)
    assert result.exit_code == 2 and message in result.output and len(result.output.splitlines()) == 1, result.output


def test_no_memory_is_one_line_and_a_defect_is_not(model, tmp_path, monkeypatch):
    full = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    for error, code in ((MemoryError(), 1), (full, 1), (RuntimeError("ours"), None), (IndexError("ours"), None)):

        def fails(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr(gen.Model, "draw", fails)
        result = sample(model, "--out", tmp_path / "a.png")
        if code is None:
            assert result.exception is error
        else:
            assert result.exit_code == code and "expected less at a time" in result.output and len(result.output.splitlines()) == 1


def test_pictures_for_which_there_is_no_room_are_told_before_they_are_made(tmp_path):
    data = random_parquet(tmp_path / "train.parquet", n=60)
    start = time.process_time()
    result = run("train", "--data", data, "--out", tmp_path / "out", "--name", "a", "--size", 100_000)
    assert result.exit_code == 2 and "60 images of 100000 x 100000 take 558.8 GiB of memory" in result.output, result.output
    assert "--size 64" in result.output and time.process_time() - start < 2 and not (tmp_path / "out").exists()
