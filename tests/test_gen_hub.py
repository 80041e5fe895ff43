"""The hub: what is asked of it, what is sent to it, and that a published model comes back as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gen_fixtures import NETWORK, tiny_card, tiny_model, tiny_network
from PIL import Image
from test_gen_cli_import import run

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve_gen.card import MOMENTS
from sdesolve_gen.publishing import FILES, page

diffusers = pytest.importorskip("diffusers")

import huggingface_hub  # noqa: E402
from gen_diffusers import saved  # noqa: E402

COMMIT = "c0ffee" + "0" * 34


class Hub:
    """One that keeps its models in a folder: it takes and gives the files that match, at one commit."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked, self.private = root, list[dict[str, Any]](), dict[str, bool]()

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.private[repo_id] = private

    def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> Any:
        self._copy(Path(folder_path), self.root / repo_id, allow_patterns)
        return type("Commit", (), {"oid": COMMIT})()

    def snapshot_download(self, source: str, revision: str, allow_patterns: list[str]) -> str:
        self.asked.append({"source": source, "revision": revision, "allow_patterns": allow_patterns})
        self._copy(self.root / source, here := self.root / "cache" / source, allow_patterns)
        return str(here)

    def _copy(self, here: Path, there: Path, patterns: list[str]) -> None:
        for file in (file for file in here.rglob("*") if file.is_file()):
            if any(fnmatch(str(file.relative_to(here)), pattern) for pattern in patterns):
                (to := there / file.relative_to(here)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, to)


def a_model(classes: int) -> gen.Model:
    """Of so many classes, or of none."""
    return gen.Model(tiny_network(classes=classes), tiny_card(classes=classes, network_options={"channels": 1, **NETWORK, "classes": classes})) if classes else tiny_model()


@pytest.fixture
def the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    return found


def test_the_hub_wants_a_commit() -> None:
    for revision in (None, "main", "v1.0", "../x", "A" * 40):
        with pytest.raises(ValueError, match=r"expected the 40 hexadecimal digits of one commit"):
            gen.load("google/ddpm-cifar10-32", revision=revision)
    for source in ("google/../ddpm", "a/..", "a..b/c", "/nowhere/x", "a/b/c", "~/x", "a//b"):
        with pytest.raises(ValueError, match="not known"):
            gen.load(source)
    with pytest.raises(ValueError, match="is for an id of the hub"):
        gen.load("mnist", revision="0" * 40)


def test_the_hub_is_asked_for_a_few_files_of_that_commit(the_hub: Hub) -> None:
    saved(the_hub.root / "someone" / "tiny", diffusers.DDPMScheduler(prediction_type="v_prediction"))
    (the_hub.root / "someone" / "tiny" / "unet" / "code.py").write_text("raise SystemExit")
    m = gen.load("someone/tiny", revision="0" * 40)
    assert m.card["name"] == "someone-tiny" and m.card["training"]["imported"] == {"hub": "someone/tiny", "revision": "0" * 40}
    (asked,) = the_hub.asked
    assert asked["revision"] == "0" * 40 and asked["source"] == "someone/tiny"
    assert not any("*" in pattern or pattern.endswith(".py") for pattern in asked["allow_patterns"])


@pytest.mark.parametrize("classes", [0, 3])
def test_a_published_model_is_the_one_that_is_loaded(the_hub: Hub, tmp_path: Path, classes: int) -> None:
    m = a_model(classes)
    m.card["training"] = {"data": "digits.parquet", "steps": 7}
    m.save(tmp_path / "trained")
    (tmp_path / "trained" / "log.jsonl").write_text("private")
    said = run("publish", tmp_path / "trained", "someone/tiny", "--out", tmp_path / "upload", "--private", "--license", "apache-2.0", "--n", 4)
    assert said.exit_code == 0 and f'gen.load("someone/tiny", revision="{COMMIT}")' in said.output
    assert sorted(file.name for file in (the_hub.root / "someone" / "tiny").iterdir()) == sorted({*FILES} - {MOMENTS}) and the_hub.private == {"someone/tiny": True}
    back = gen.load("someone/tiny", revision=COMMIT)
    labels = {"labels": [0, 2]} if classes else {}
    assert torch.equal(back.sample(2, "ddim", steps=3, seed=1, **labels), m.sample(2, "ddim", steps=3, seed=1, **labels))
    told = (tmp_path / "upload" / "README.md").read_text()
    assert told.startswith("---\n") and "license: apache-2.0" in told and '"steps": 7' in told and ("labels=0" in told) == bool(classes)
    assert np.asarray(Image.open(tmp_path / "upload" / "samples.png")).std() > 0


def test_the_line_of_the_page_loads_and_draws(the_hub: Hub, tmp_path: Path) -> None:
    m = a_model(3)
    m.save(the_hub.root / "someone" / "tiny")
    (code,) = [part.partition("```")[0] for part in page(m, "someone/tiny").split("```python\n")[1:]]
    scope: dict[str, Any] = {}
    exec(code.replace("COMMIT", COMMIT), scope)
    assert scope["images"].shape == (16, *m.shape)


def test_half_is_half_and_what_is_drawn_is_what_is_published(the_hub: Hub, tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "trained")
    for name, options in (("whole", []), ("half", ["--half"])):
        assert run("publish", tmp_path / "trained", "a/b", "--out", tmp_path / name, "--no-upload", "--n", 2, *options).exit_code == 0
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.7 * sizes[0] and not (the_hub.root / "a").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    {
        "an id that is none": (lambda a: [a[0], "tiny", *a[2:]], "OWNER/NAME"),
        "a license that is none": (lambda a: [*a, "--license", "The Best!"], "license='The Best!'"),
        "no model": (lambda a: [a[0].parent / "nothing", *a[1:]], "not known"),
        "files that are there": (lambda a: [*a[:3], a[0]], "are there already"),
    }.values(),
    ids=["id", "license", "model", "there"],
)
def test_what_cannot_be_published_is_refused(tmp_path: Path, change: Callable[[list[Any]], list[Any]], expected: str) -> None:
    tiny_model().save(tmp_path / "trained")
    said = run("publish", *change([tmp_path / "trained", "a/b", "--out", tmp_path / "upload"]))
    assert said.exit_code == 2 and expected in said.output and not (tmp_path / "upload").exists()


def test_a_network_that_stays_with_its_owner_is_refused(tmp_path: Path) -> None:
    from sdesolve_gen.publishing import write_published

    m = gen.wrap(torch.nn.Conv2d(1, 1, 1), process=sd.VPSDE(), predicts="v", shape=(1, 4, 4))
    with pytest.raises(ValueError, match="not of this package"):
        write_published(tmp_path / "upload", m, "a/b")
    assert not (tmp_path / "upload").exists()


def test_a_hub_that_is_not_there_is_told_in_one_line_and_the_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().save(tmp_path / "trained")
    real = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: real(endpoint="http://127.0.0.1:9"))
    said = run("publish", tmp_path / "trained", "a/b", "--out", tmp_path / "upload", "--n", 1)
    assert said.exit_code == 2 and "could not be sent to 'a/b'" in said.output and "Traceback" not in said.output
    assert sorted(file.name for file in (tmp_path / "upload").iterdir()) == sorted({*FILES} - {MOMENTS})


def test_how_a_network_is_executed_holds_for_imports(the_hub: Hub) -> None:
    saved(the_hub.root / "someone" / "tiny", diffusers.DDPMScheduler(prediction_type="v_prediction"))
    assert gen.load(the_hub.root / "someone" / "tiny", precision="bf16").execution.precision == "bf16"
    with pytest.raises(TypeError, match="expected a device, or precision="):
        gen.load(the_hub.root / "someone" / "tiny", speed="fast")
