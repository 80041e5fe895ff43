"""Folders and pickles to import, from anywhere: damaged in 200 places and more, or made to harm.  One clear error, no code run, 2 seconds, 1 GiB.

They are read by the process of :mod:`test_gen_hostile_files`, whose address space may grow by 1 GiB.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_gen_hostile_files as files
import torch
from safetensors.torch import load_file, save_file

import sdesolve_gen as gen

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

from gen_diffusers import saved, unet  # noqa: E402
from test_gen_edm import written  # noqa: E402

INDEX, UNET, SCHEDULER, WEIGHTS = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "unet/diffusion_pytorch_model.safetensors"
BIN = WEIGHTS.replace(".safetensors", ".bin")
HUGE = {"down_block_types": ["AttnDownBlock2D"] * 8, "up_block_types": ["AttnUpBlock2D"] * 8, "norm_num_groups": 32, "attention_head_dim": 8, "sample_size": 256}

Change = Callable[[Path], object]


def told(file: str, **changes: Any) -> Change:
    """A JSON file with other entries."""
    return lambda folder: (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **changes}))


def holding(file: str, content: bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(content)


def inserted(file: str, text: str) -> Change:
    """A JSON object with text at its beginning."""
    return lambda folder: (folder / file).write_text((folder / file).read_text().replace("{", f"{{{text}, ", 1))


def linked(file: str, target: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(target)

    return change


def pickled(content: bytes) -> Change:
    """Weights in a .bin file."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / BIN).write_bytes(content)

    return change


def reshaped(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "conv_in.weight": tensors["conv_in.weight"].reshape(1, 8, 3, 3).contiguous()}, folder / WEIGHTS)


def unfinite(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["conv_in.bias"][3] = torch.nan
    save_file(tensors, folder / WEIGHTS)


def in_parts(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": "../../../../etc/passwd", "conv_in.bias": "/etc/passwd"}}))


def code(canary: str, *placed: str) -> Callable[[Path], None]:
    """Modules of the folder's own, which leave a canary where they are imported."""

    def change(folder: Path) -> None:
        for name in placed:
            (folder / name).write_text(f"open({canary!r}, 'w').close()\nclass Evil: pass\n")

    return change


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def hostile(canary: str) -> dict[str, tuple[Change, str]]:
    """What is done to a good folder, and what is said of it."""
    checkpoints, tensors = files.hostile(canary), files.hostile_safetensors(canary)
    own, not_run = code(canary, "pipeline.py", "unet/evil.py", "scheduler/evil.py", "evil.py"), "code of a model's own is not run|names code of its own"
    cases: dict[str, tuple[Change, str]] = {
        "a pipeline of its own": (both(own, told(INDEX, _class_name=["pipeline", "Evil"])), not_run),
        "a network of its own": (both(own, told(INDEX, unet=["evil", "Evil"])), not_run),
        "a network by a path": (both(own, told(INDEX, unet=["unet/evil", "UNet2DModel"])), not_run),
        "a scheduler of its own": (both(own, told(INDEX, scheduler=["evil", "Evil"])), not_run),
        "remote code": (both(own, told(UNET, auto_map={"AutoModel": "evil.Evil"}, trust_remote_code=True)), not_run),
        "remote code of the scheduler": (both(own, told(SCHEDULER, auto_map={"AutoModel": "evil--evil.Evil"})), not_run),
        "the system": (told(INDEX, unet=["os", "system"]), not_run),
        "a part of torch": (told(INDEX, unet=["torch", "load"]), not_run),
        "a part within a part": (told(INDEX, unet=[["diffusers"], "UNet2DModel"]), not_run),
        "another class of diffusers": (told(INDEX, unet=["diffusers", "DiffusionPipeline.download"]), "expected a UNet2DModel as unet"),
        "a class with a path": (told(UNET, _class_name="../evil.Evil"), "expected UNet2DModel"),
        "a scheduler with a path": (told(SCHEDULER, _class_name="../evil.Evil"), "is not known"),
        "a list for a class": (told(SCHEDULER, _class_name=["evil", "Evil"]), "is not known"),
        "weights with names of paths": (in_parts, "has none of"),
        "a link to a text": (linked(UNET, "/etc/passwd"), "is not JSON"),
        "weights that link to a text": (linked(WEIGHTS, "/etc/passwd"), "safetensors"),
        "a link to zeros": (linked(WEIGHTS, "/dev/zero"), "has none of"),
        "a config of zeros": (linked(SCHEDULER, "/dev/zero"), "is not a file"),
        "an index of zeros": (linked(INDEX, "/dev/zero"), "is not a file"),
        "a link to itself": (linked(INDEX, INDEX), "is neither|is not a file|not known|expected"),
        "a folder that links to the root": (linked("unet", "/"), "is not a file"),
        "a pipe for weights": (lambda folder: ((folder / WEIGHTS).unlink(), os.mkfifo(folder / WEIGHTS)), "has none of"),
        "a folder for weights": (lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir()), "has none of"),
        "other shapes": (reshaped, r"conv_in\.weight is \(1, 8, 3, 3\)"),
        "weights that are not finite": (unfinite, "not finite"),
        "vast channels": (told(UNET, **HUGE, block_out_channels=[4096] * 8, layers_per_block=16), "at most 64"),
        "the largest there may be": (told(UNET, **HUGE, block_out_channels=[4096] * 8, layers_per_block=8), "does not fit"),
        "a vast image": (told(UNET, sample_size=(1 << 14) + 1), "shape ="),
        "vast classes": (told(UNET, num_class_embeds=1_000_000, time_embedding_dim=8192), "it lacks"),
        "vast times": (told(UNET, time_embedding_type="learned", num_train_timesteps=1_000_000), "it lacks"),
        "a vast schedule": (told(SCHEDULER, trained_betas=[0.01] * 100_000), "numbers"),
        "a schedule of lists": (told(SCHEDULER, trained_betas=[[[[0.1]]]]), "numbers"),
        "a schedule of text": (told(SCHEDULER, trained_betas="__import__('os')"), "no numbers"),
        "no channels": (told(UNET, block_out_channels=[]), "block_out_channels"),
        "channels that are true": (told(UNET, in_channels=True), "shape ="),
        "channels below zero": (told(UNET, block_out_channels=[-8, 16]), "block_out_channels"),
        "a size of text": (told(UNET, sample_size=["8", "8"]), "shape ="),
        "options of text": (told(UNET, norm_eps="1e-5"), "norm_eps"),
    }  # fmt: skip
    for file in (INDEX, UNET, SCHEDULER):
        cases |= {
            f"{file} of 2 MB": (inserted(file, '"a": "' + "a" * 2_000_000 + '"'), "is not a file of at most"),
            f"{file}, deep": (holding(file, b'{"a":' * 150_000), "is not JSON"),
            f"{file}, deep lists": (holding(file, b"[" * 900_000), "is not JSON"),
            f"{file} of a long number": (inserted(file, f'"beta_start": {"9" * 100_000}, "sample_size": 1'), "is not JSON"),
            f"{file} not in UTF-8": (holding(file, b'{"a": "\xff\xfe"}'), "is not JSON"),
            f"{file} of a number": (holding(file, b"1"), "holds a JSON int"),
        }
    for name in ("NaN", "Infinity", "-Infinity"):
        cases |= {f"{name} in {file}": (inserted(file, f'"a": {name}'), "is not JSON") for file in (UNET, SCHEDULER)}
    cases["beta beyond floats"] = (lambda folder: (folder / SCHEDULER).write_text('{"_class_name": "DDPMScheduler", "beta_end": 1e400}'), "beta_end=inf")
    cases["eps beyond floats"] = (lambda folder: (folder / UNET).write_text((folder / UNET).read_text().replace("1e-05", "1e999")), "norm_eps")
    kinds = ("reduce in an archive", "reduce within a state dict", "reduce of eval", "plain pickle", "instance by INST", "stack global", "a whole module", "expanded")
    kinds += ("legacy format with reduce", "numpy object array", "zip bomb", "path traversal", "an oversized storage", "a bytearray of 2 GiB", "two archives")
    cases |= {f"weights: {name}": (pickled(checkpoints[name]), "diffusion_pytorch_model") for name in kinds}
    return cases | {f"safetensors: {name}": (holding(WEIGHTS, content), "diffusion_pytorch_model") for name, content in tensors.items()}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "good"
    saved(folder, diffusers.DDPMScheduler())
    return folder


@pytest.fixture(scope="module")
def read(good: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the process said of every folder, and what it ought to have said."""
    place = tmp_path_factory.mktemp("hostile")
    (place / "files").mkdir()
    (place / "good.pth").write_bytes(files.saved(files.state()))
    shutil.copytree(good, place / "good")
    canary, messages = place / "canary", {}
    for name, (change, message) in hostile(str(canary)).items():
        folder = place / "files" / name.replace("/", " ")
        shutil.copytree(good, folder)
        change(folder)
        messages[folder.name] = message
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path])}
    ran = subprocess.run([sys.executable, files.__file__, str(place)], capture_output=True, text=True, env=environment, timeout=900)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return {**json.loads(ran.stdout.splitlines()[-1]), "canary": canary, "messages": messages}


def test_every_hostile_folder_is_refused_with_one_clear_error(read: dict[str, Any]) -> None:
    assert len(read["found"]) == len(read["messages"]) > 90
    wrong = []
    for name, message in read["messages"].items():
        outcome = read["found"][name]["outcome"]
        said = outcome.removeprefix("ModelFileError: ")
        if said == outcome or f"/files/{name}" not in said or not 40 < len(said) < (200_000 if "it lacks" in said else 1000) or not re.search(message, said):
            wrong.append(f"{name}: {outcome[:300]}")
    assert wrong == []
    assert not read["canary"].exists()


def test_it_takes_neither_long_nor_much_memory(read: dict[str, Any]) -> None:
    assert {name: result["seconds"] for name, result in read["found"].items() if result["seconds"] > files.SECONDS} == {}
    assert read["peak"] < files.GIB / 2
    assert not [name for name, result in read["found"].items() if "MemoryError" in result["outcome"] or "allocat" in result["outcome"]]


def test_names_of_other_places_are_not_followed_and_links_are(good: Path, tmp_path: Path) -> None:
    """The files are where they always are, whatever the configs say; the hub's own folders are made of links."""
    folder = shutil.copytree(good, tmp_path / "m")
    for file in (UNET, SCHEDULER):
        told(file, _name_or_path="../../elsewhere", weights_name="/etc/passwd", pretrained_model_name_or_path="https://example.com/x")(folder)
    code(str(tmp_path / "canary"), "pipeline.py", "unet/modeling.py", "unet/__init__.py", "sitecustomize.py")(folder)
    (folder / WEIGHTS).rename(tmp_path / "blob")
    (folder / WEIGHTS).symlink_to(tmp_path / "blob")
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([499])
    assert torch.allclose(gen.load(folder).network(x, t), unet()(x, t).sample, atol=1e-6)
    assert not (tmp_path / "canary").exists()


def test_a_learned_embedding_of_time_is_told_levels(tmp_path: Path) -> None:
    pipe = saved(tmp_path, diffusers.DDPMScheduler(num_train_timesteps=50, beta_end=0.3), time_embedding_type="learned", num_train_timesteps=50)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(gen.load(tmp_path).score.model_output(x, 0.5), pipe.unet(x, torch.tensor(24)).sample)


# -- damage ----------------------------------------------------------------------------------------------------------------


def outcomes(source: Path, place: Path, damaged: Callable[[bytes], bytes], count: int) -> list[bool]:
    """Whether each of so many damaged copies of a file was refused; anything but a model or that error, a long time and much memory fail."""
    whole, refused = place.read_bytes(), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        place.write_bytes(damaged(whole))
        start = time.process_time()
        try:
            gen.load(source)
        except gen.ModelFileError as error:
            assert str(source) in str(error) and (len(str(error)) < 1000 or "it lacks" in str(error))  # all that it lacks is listed
            refused.append(True)
        else:
            refused.append(False)
        assert time.process_time() - start < files.SECONDS
    place.write_bytes(whole)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < files.GIB / 2
    return refused


def flipped(draws: random.Random, places: Callable[[int], int]) -> Callable[[bytes], bytes]:
    def damaged(whole: bytes) -> bytes:
        content = bytearray(whole)
        content[places(len(whole))] ^= 1 << draws.randrange(8)
        return bytes(content)

    return damaged


def anywhere(draws: random.Random) -> Callable[[int], int]:
    """Half of them at the beginning or the end of a file, where what is said of its tensors is."""
    return lambda size: draws.choice((draws.randrange(min(3000, size)), size - 1 - draws.randrange(min(1500, size)), draws.randrange(size), draws.randrange(size)))


def test_200_flipped_bits_of_a_folder_give_a_model_or_one_error(good: Path, tmp_path: Path) -> None:
    folder, draws = shutil.copytree(good, tmp_path / "m"), random.Random(0)
    for file, count in ((INDEX, 50), (UNET, 50), (SCHEDULER, 50), (WEIGHTS, 50)):
        refused = outcomes(folder, folder / file, flipped(draws, anywhere(draws)), count)
        assert sum(refused) > 10, file
    torch.save(load_file(folder / WEIGHTS), folder / BIN)
    (folder / WEIGHTS).unlink()
    assert sum(outcomes(folder, folder / BIN, flipped(draws, anywhere(draws)), 20)) > 10


def test_200_flipped_bits_of_a_pickle_give_a_model_or_one_error(tmp_path: Path) -> None:
    """It has no checksum: a flip in a number is another number, and anything else is refused."""
    path, draws = tmp_path / "x.pkl", random.Random(0)
    written(path, "ddpm++", "EDMPrecond")
    refused = outcomes(path, path, flipped(draws, anywhere(draws)), 200)
    assert 50 < sum(refused) < 200 and not (tmp_path / "canary").exists()


def test_what_is_cut_off_is_refused(good: Path, tmp_path: Path) -> None:
    folder, path, draws = shutil.copytree(good, tmp_path / "m"), tmp_path / "x.pkl", random.Random(0)
    written(path, "ddpm++", "EDMPrecond")
    for source, place, count in ((path, path, 40), *((folder, folder / file, 15) for file in (INDEX, UNET, SCHEDULER, WEIGHTS))):
        assert all(outcomes(source, place, lambda whole: whole[: draws.randrange(len(whole.rstrip()) - 1)], count))
        assert all(outcomes(source, place, lambda whole: whole.rstrip()[:-1], 1))
