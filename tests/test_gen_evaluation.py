"""``evaluate``: the same images however the work is shared out, nothing lost, missing or double, and bad input told at once."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from gen_fixtures import random_parquet, tiny_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import sdesolve_gen as gen
from sdesolve.files import sha256
from sdesolve_gen import cli
from sdesolve_gen.data import read_data, scaled
from sdesolve_gen.evaluation.chunks import Job, Shard
from sdesolve_gen.evaluation.classifier import Classifier, features_and_probabilities
from sdesolve_gen.evaluation.features import ASSETS, OWN, make_features
from sdesolve_gen.evaluation.frechet import Moments, fid, grouped
from sdesolve_gen.images import to_uint8

ROOT = Path(__file__).parents[1]
N = 22  # images, in chunks of 4
ALL = ["fid", "kid", "is", "precision_recall", "density_coverage", "bpd", "time"]
LOOSE = {"n": 6, "rtol": 1e-1, "atol": 1e-1, "eps": 1e-1}
SHAPE, CPU, RANGE = (1, 8, 8), torch.device("cpu"), (-1.0, 1.0)


class Judge(nn.Module):
    """Three features and four classes of an image."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.features = nn.Parameter(torch.randn(64, 3, generator=generator))
        self.classes = nn.Parameter(torch.randn(64, 4, generator=generator))

    def forward(self, x):
        flat = x.flatten(1)
        return flat @ self.features, (flat @ self.classes).softmax(1)


@pytest.fixture(scope="module", autouse=True)
def small_chunks_of_the_data():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdesolve_gen.evaluation.run._FEATURES_TOGETHER", 7)
        yield


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def data():
    return torch.randint(0, 256, (40, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def evaluate(model, data, out, metrics=("fid", "kid"), **options):
    defaults = {"n": N, "batch_size": 4, "method": "euler_maruyama", "steps": 3, "features": Judge(), "progress": False, "likelihood": LOOSE if "bpd" in metrics else None}
    return gen.evaluate(model, data, metrics, out=out, **{**defaults, **options})


def images_of(out):
    """Ids and images of every chunk, in order."""
    files = sorted((out / "samples").glob("[0-9]*.safetensors"))
    ids = [i for file in files for i in range(int(file.name[:8]), int(file.name[9:17]) + 1)]
    return ids, torch.cat([load_file(file)["images"] for file in files])


def timeless(report):
    """What a report says, but for the time."""
    figures = {name: figure for name, figure in report["figures"].items() if "second" not in name}
    return {**report, "figures": figures}


@pytest.fixture(scope="module")
def whole(model, data, tmp_path_factory):
    """Everything measured by one process."""
    out = tmp_path_factory.mktemp("whole")
    return out, evaluate(model, data, out, ALL)


def test_a_report_says_what_was_measured_and_how(model, data, whole):
    out, found = whole
    said = json.loads((out / "report.json").read_text())
    assert found.complete and said == json.loads(json.dumps(found.report))
    expected = {"fid", "fid_infinity", "kid", "is", "precision", "recall", "density", "coverage", "bits_per_dim", "nfe", "seconds", "images_per_second"}
    assert set(said["figures"]) == set(found.figures) == expected
    assert said["statuses"] == {"ok": N} and said["settings"]["seed"] == 0 and said["reference"] == 40
    assert found["nfe"].value == 4  # three steps and the denoising
    assert "NOT comparable with published FID" in str(found) and "fid_infinity" in str(found)
    with Image.open(out / "samples.png") as picture:
        assert picture.mode == "L"


def test_figures_are_those_of_the_images(model, data, whole):
    """Images are those of ``sample``, figures those of their features, bits/dim those of ``log_likelihood``."""
    out, found = whole
    ids, images = images_of(out)
    drawn = model.draw(N, "euler_maruyama", steps=3, seed=0, batch_size=4)
    assert ids == list(range(N)) and torch.equal(images, to_uint8(drawn.images, model.data_range))
    judge = Judge().requires_grad_(False)
    made, real = (judge(2 * (i.float() + 0.5) / 256 - 1)[0] for i in (images, data))
    assert found["fid"].value == pytest.approx(fid(grouped(made), Moments.of(real).gaussian)["fid"].value, rel=1e-5)
    r = model.log_likelihood(data[:6], seed=0, rtol=1e-1, atol=1e-1, eps=1e-1)
    assert found["bits_per_dim"].value == pytest.approx(float(r.bits_per_dim(model.data_range).mean()), rel=1e-3)


def test_bits_per_dim_alone_draw_no_image(model, data, whole, tmp_path):
    found = evaluate(model, data, tmp_path, ["bpd"])
    assert found["bits_per_dim"] == whole[1]["bits_per_dim"] and not (tmp_path / "samples").exists()
    assert found.report["likelihood"]["images"] == 6 and found.report["statuses"] is None and "6 images" in str(found)


def test_a_report_keeps_what_was_measured_by_the_same_settings(model, data, whole, tmp_path):
    """And drops what other samples, features, data or another model had."""

    def measured(metrics, of=model, **options):
        found = evaluate(of, data, tmp_path, metrics, **options)
        said = json.loads((tmp_path / "report.json").read_text())
        assert set(said["figures"]) == set(found.figures) and found.figures["nfe" if metrics == ["time"] else next(iter(found.figures))]
        return found

    evaluate(model, data, tmp_path, ["kid", "is"])
    later = measured(["bpd"], n=8, batch_size=4)
    assert set(later.figures) == {"kid", "is", "bits_per_dim"} and later["kid"] == whole[1]["kid"] and later["bits_per_dim"] == whole[1]["bits_per_dim"]
    assert later.report["settings"]["n"] == N and later.report["settings"]["metrics"] == ["kid", "is", "bpd"] and "22 images" in str(later)
    assert later.report["features"]["name"] == "Judge" and later.report["statuses"] == {"ok": N} and later.report["reference"] == 40
    assert set(measured(["time"]).figures) == {"kid", "is", "bits_per_dim", "nfe", "seconds", "images_per_second"}
    other = measured(["kid"], features=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    assert set(other.figures) == {"kid", "bits_per_dim", "nfe", "seconds", "images_per_second"} and other["kid"] != whole[1]["kid"]
    assert measured(["kid"])["kid"] == whole[1]["kid"]
    assert set(measured(["precision_recall"], n=20).figures) == {"precision", "recall", "bits_per_dim"}
    assert set(measured(["fid"], n=20).figures) == {"fid", "fid_infinity", "precision", "recall", "bits_per_dim"}
    assert set(measured(["time"], n=N).figures) == {"bits_per_dim", "nfe", "seconds", "images_per_second"}
    evaluate(model, data.flip(0), tmp_path, ["kid"], n=20)
    assert set(json.loads((tmp_path / "report.json").read_text())["figures"]) == {"kid", "bits_per_dim"}
    more = evaluate(model, data, tmp_path, ["bpd"], likelihood={**LOOSE, "n": 5}, n=20)
    assert set(more.figures) == {"kid", "bits_per_dim"} and more["bits_per_dim"] != whole[1]["bits_per_dim"]
    for text in ("{", "[]", '{"keys": 3}', json.dumps({**more.report, "figures": {"kid": {"odd": 1}}})):
        (tmp_path / "report.json").write_text(text)
        assert set(evaluate(model, data, tmp_path, ["kid"], n=20).figures) == {"kid"}
    assert set(evaluate(tiny_model(process="ve"), data, tmp_path, ["bpd"]).figures) == {"bits_per_dim"}


def test_published_moments_serve_as_reference(model, data, whole, tmp_path):
    """mu and sigma in an npz file, as others publish them: enough for FID, and for nothing else."""
    mean, covariance = Moments.of(Judge().requires_grad_(False)(2 * (data.float() + 0.5) / 256 - 1)[0]).gaussian
    np.savez(tmp_path / "moments.npz", mu=mean.numpy(), sigma=covariance.numpy())
    found = evaluate(model, tmp_path / "moments.npz", tmp_path / "out", ["fid", "is", "time"])
    assert found["fid"].value == pytest.approx(whole[1]["fid"].value, rel=1e-5) and found["is"] == whole[1]["is"]
    for metric, message in (("kid", "are moments.*'kid' needs the images"), ("bpd", "likelihood={'data'")):
        with pytest.raises(ValueError, match=message):
            evaluate(model, tmp_path / "moments.npz", None, [metric])
    with pytest.raises(ValueError, match=r"moments of 3 features.*64"):
        evaluate(model, tmp_path / "moments.npz", None, ["fid"], features=nn.Flatten())
    np.savez(tmp_path / "broken.npz", mu=mean.numpy(), sigma=covariance[:2].numpy())
    with pytest.raises(ValueError, match=r"mu \(3,\) and sigma \(2, 3\)"):
        evaluate(model, tmp_path / "broken.npz", None, ["fid"])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_work_and_draw_the_same(model, data, whole, tmp_path, monkeypatch, count):
    drawn, draw = [], type(model).draw
    monkeypatch.setattr(type(model), "draw", lambda self, n, *a, **k: drawn.extend(k["sample_ids"]) or draw(self, n, *a, **k))
    for i in reversed(range(count)):
        found = evaluate(model, data, tmp_path, ALL, shard=f"{i}/{count}")
        assert found.complete == (i == 0) == (tmp_path / "report.json").exists()
        assert found.complete or ("samples" in found.missing and "not there yet" in str(found))
    assert sorted(drawn) == list(range(N))  # each once
    there, here = images_of(whole[0]), images_of(tmp_path)
    assert there[0] == here[0] and torch.equal(there[1], here[1])
    assert timeless(found.report) == timeless(whole[1].report)
    for name in ("features", "reference", "likelihood"):
        assert [f.read_bytes() for f in sorted(whole[0].glob(f"{name}-*/*"))] == [f.read_bytes() for f in sorted(tmp_path.glob(f"{name}-*/*"))]


def test_a_launcher_says_which_process_this_is(monkeypatch):
    assert Shard.read(None) == (0, 1) and Shard.read("2/3") == (2, 3)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Shard.read(None) == (3, 4) and Shard.read("0/1") == (0, 1)


def test_an_interrupted_run_goes_on(model, data, whole, tmp_path, monkeypatch):
    drawn, draw = [], type(model).draw

    def interrupted(self, n, *arguments, **options):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(list(options["sample_ids"]))
        return draw(self, n, *arguments, **options)

    monkeypatch.setattr(type(model), "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, data, tmp_path, ALL)
    monkeypatch.setattr(type(model), "draw", lambda self, n, *a, **k: drawn.append(list(k["sample_ids"])) or draw(self, n, *a, **k))
    found = evaluate(model, data, tmp_path, ALL)
    assert [i for ids in drawn for i in ids] == list(range(N))
    assert timeless(found.report) == timeless(whole[1].report) and torch.equal(images_of(tmp_path)[1], images_of(whole[0])[1])
    drawn.clear()
    assert timeless(evaluate(model, data, tmp_path, ALL).report) == timeless(found.report)
    more = evaluate(model, data, tmp_path, n=N + 3)
    assert drawn == [[20, 21, 22, 23], [24]] and more.report["statuses"] == {"ok": N + 3}  # the chunk that was cut short, and one more


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_kill_in_the_middle(tmp_path):
    """The process dies without a word; what is there is whole, and the same command makes the rest."""
    tiny_model().save(tmp_path / "tiny")
    options = {"n": 30, "batch_size": 4, "method": "euler_maruyama", "steps": 8, "features": nn.Flatten(), "progress": False}
    pixels = torch.zeros(8, *SHAPE, dtype=torch.uint8)
    code = f"""
import torch, sdesolve_gen as gen
torch.set_num_threads(1)
options = {{**{ {**options, "features": None} }, "features": torch.nn.Flatten()}}
gen.evaluate(gen.load({str(tmp_path / "tiny")!r}), torch.zeros(8, *{SHAPE}, dtype=torch.uint8), ["kid"], out={str(tmp_path / "out")!r}, **options)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}) as process:
        try:
            while process.poll() is None and len(list((tmp_path / "out" / "samples").glob("[0-9]*"))) < 2:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "out" / "report.json").exists()
    left, busy = (tmp_path / "out" / "samples" / f".{name}.safetensors.half.safetensors" for name in ("00000024-00000027", "00000028-00000029"))
    for half in (left, busy):
        half.write_bytes(b"half")  # as a death while writing leaves it
    os.utime(left, (0, 0))
    on, anew = (gen.evaluate(gen.load(tmp_path / "tiny"), pixels, ["kid"], out=tmp_path / out, **options) for out in ("out", "anew"))
    assert timeless(on.report)["figures"] == timeless(anew.report)["figures"]
    assert torch.equal(images_of(tmp_path / "out")[1], images_of(tmp_path / "anew")[1])
    assert not left.exists() and busy.exists()  # the one may be of another run that is writing now


@pytest.mark.parametrize("damage", ["flipped", "cut", "another's", "older"])
def test_a_damaged_chunk_is_made_again(model, data, whole, tmp_path, damage):
    evaluate(model, data, tmp_path)
    victim, other = (tmp_path / "samples" / f"{name}.safetensors" for name in ("00000004-00000007", "00000008-00000011"))
    content = bytearray(victim.read_bytes())
    if damage == "flipped":
        content[-300] ^= 1
    elif damage == "cut":
        content = content[:-10]
    elif damage == "another's":
        content = other.read_bytes()
    else:  # the right form and hash, of other settings
        evaluate(model, data, tmp_path / "older", seed=5)
        content = (tmp_path / "older" / "samples" / victim.name).read_bytes()
    victim.write_bytes(content)
    with pytest.warns(UserWarning, match=r"00000004-00000007\.safetensors is not a whole chunk of this run"):
        evaluate(model, data, tmp_path)
    assert torch.equal(images_of(tmp_path)[1], images_of(whole[0])[1])


@pytest.mark.parametrize(("text", "why"), [("{", "Expecting property name"), ("", "Expecting value"), ("[]", "a JSON list"), ("\0", "Expecting value")])
def test_damaged_settings_are_one_error_that_names_them(tmp_path, text, why):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ValueError, match=rf"settings.json cannot be read \(.*{why}.*\); expected the settings .*: remove .*, or choose another out="):
        Job(tmp_path, {}, 8, 4, lambda span: {})


@pytest.mark.parametrize("damage", ["compressed", "one array"])
def test_a_damaged_reference_is_one_error_that_names_it(model, tmp_path, damage):
    path = tmp_path / "reference.npz"
    np.savez_compressed(path, mu=np.arange(999.0), sigma=np.arange(999.0))
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    if damage == "one array":
        np.save(tmp_path / "a.npy", np.zeros(3))
        (tmp_path / "a.npy").rename(path)
    with pytest.raises(ValueError, match=r"reference.npz is no npz file with an array 'images'"):
        evaluate(model, path, None)


def test_another_run_is_not_mixed_in(model, data, tmp_path):
    evaluate(model, data, tmp_path)
    with pytest.raises(ValueError, match=r"made with other settings.*seed: 0 there, 1 here"):
        evaluate(model, data, tmp_path, seed=1)
    with pytest.raises(ValueError, match=r"other settings.*weights"):
        evaluate(tiny_model(process="ve"), data, tmp_path)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert evaluate(model, data, tmp_path, features=other)["fid"] != evaluate(model, data, tmp_path)["fid"]
    assert len(list(tmp_path.glob("features-*"))) == 2


def test_a_call_that_fails_claims_no_folder(model, data, tmp_path):
    with pytest.raises(ValueError, match="not known as method"):
        evaluate(model, data, tmp_path, method="eular")
    with pytest.raises(ValueError, match="snrr"):
        evaluate(model, data, tmp_path, method="pc", snrr=0.1)
    assert evaluate(model, data, tmp_path).complete


def test_features_of_the_data_are_kept_for_other_runs(model, data, tmp_path):
    asked = []

    class Counting(Judge):
        def forward(self, x):
            asked.append(len(x))
            return super().forward(x)

    first = evaluate(model, data, tmp_path / "a", cache=tmp_path / "cache", features=Counting())
    assert sum(asked) == 1 + N + 40
    asked.clear()
    second = evaluate(model, data, tmp_path / "b", cache=tmp_path / "cache", features=Counting())
    assert sum(asked) == 1 + N and timeless(second.report) == timeless(first.report)
    asked.clear()
    evaluate(model, data.flip(0), tmp_path / "b", cache=tmp_path / "cache", features=Counting())
    assert sum(asked) == 1 + 40  # other data, the same images


def test_without_a_folder_nothing_is_kept(model, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    floats = 2 * (data.float() + 0.5) / 256 - 1
    assert evaluate(model, floats, None)["kid"] == evaluate(model, data, None)["kid"]
    assert list(tmp_path.iterdir()) == []


def test_images_that_did_not_arrive_are_told_and_stay(model, data, tmp_path):
    with pytest.warns(UserWarning, match="not every image arrived: {'max_steps': 22}"):
        found = evaluate(model, data, tmp_path, method="rk45", steps=None, max_steps=2)
    assert found.report["statuses"] == {"max_steps": N} and len(images_of(tmp_path)[0]) == N


BAD = {
    "metric": ({"metrics": ["fud"]}, ValueError, "'fud' is not known.*Did you mean 'fid'"),
    "model": ({"model": "mnist"}, TypeError, "gen.load"),
    "one name": ({"metrics": "fid"}, ValueError, r"metrics=\['fid', 'kid'\]"),
    "n": ({"n": 1}, ValueError, "n=1; expected an integer >= 8"),
    "batch": ({"batch_size": 0}, ValueError, "batch_size=0"),
    "seed": ({"seed": -1}, ValueError, "seed=-1"),
    "shard": ({"shard": "4/4"}, ValueError, 'shard="0/4"'),
    "shard form": ({"shard": "2"}, ValueError, 'expected "i/k"'),
    "shard alone": ({"shard": "0/2", "out": None}, ValueError, "a folder"),
    "no images": ({"data": torch.zeros(0, *SHAPE)}, ValueError, "0 images"),
    "colours": ({"data": torch.rand(9, 3, 8, 8)}, ValueError, r"grey ones \(1, 8, 8\)"),
    "size": ({"data": torch.zeros(9, 1, 9, 9)}, ValueError, "the same C, H and W"),
    "range": ({"data": torch.full((9, *SHAPE), 255.0)}, ValueError, r"lie in \[255, 255\].*floats of that range, or uint8"),
    "nan": ({"data": torch.full((9, *SHAPE), torch.nan)}, ValueError, "nan"),
    "integers": ({"data": torch.zeros(9, *SHAPE, dtype=torch.int64)}, ValueError, "to\\(torch.uint8\\)"),
    "file": ({"data": "nowhere.parquet"}, FileNotFoundError, "nowhere"),
    "features": ({"features": "minst"}, ValueError, "Did you mean 'mnist'"),
    "features size": ({"features": "mnist"}, ValueError, r"take grey images \(1, 28, 28\); these are \(1, 8, 8\)"),
    "features kind": ({"features": 3}, TypeError, "features is a int"),
    "features shape": ({"features": nn.Identity()}, TypeError, "row an image"),
    "features nan": ({"features": lambda x: x.flatten(1) / 0}, ValueError, "not finite"),
    "classes": ({"features": nn.Flatten(), "metrics": ["is"]}, ValueError, "needs class probabilities"),
    "weights": ({"weights": "a.pth"}, ValueError, "for features='inception'"),
    "ids": ({"sample_ids": [1]}, ValueError, "sample_ids=... is not for evaluate"),
    "option": ({"grid": torch.zeros(2)}, TypeError, "knows them again"),
    "likelihood without a use": ({"likelihood": {"n": 3}}, ValueError, "is for the metric 'bpd'"),
    "bpd n": ({"metrics": ["bpd"], "likelihood": {"n": 0}}, ValueError, "likelihood n=0"),
    "bpd option": ({"metrics": ["bpd"], "likelihood": {"rtoll": 1}}, ValueError, "Did you mean 'rtol'"),
    "bpd data": ({"metrics": ["bpd"], "likelihood": {"data": torch.rand(2, 3, 8, 8)}}, ValueError, "the same C, H and W"),
    "inception": ({"features": "inception"}, ImportError, "sdesolve\\[evaluate\\]"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore:.*feature directions")
def test_bad_input_is_told_before_the_first_network_call(model, data, tmp_path, monkeypatch, case):
    changes, kind, message = BAD[case]
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setattr(model.network, "forward", lambda *a: pytest.fail("a network call"))
    with pytest.raises(kind, match=message):
        evaluate(**{"model": model, "data": data, "out": tmp_path / "out", **changes})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "pcc"}, "'pcc' is not known as method"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 10**30}, "expected at most 1000000"),
        ({"method": "pc", "snr": 7}, "snr=7"),
        ({"method": "restart", "intervals": [[0.3, 0.06, 1, 1]]}, r"intervals has \[0.3, 0.06, 1, 1\]; expected \(low, high, repeats, steps\)"),
        ({"method": "rk45", "rtol": -1.0}, "rtol"),
        ({"guidance": "much"}, "guidance"),
        ({"compile": "yes"}, "compile='yes'; expected True or False"),
        ({"metrics": ["bpd"], "likelihood": {"rtol": -1.0}}, "rtol"),
        ({"metrics": ["bpd"], "likelihood": {"divergence": "hutch"}}, "hutch"),
    ],
)
def test_a_solve_that_cannot_be_is_told_before_anything_is_read(model, tmp_path, monkeypatch, changes, message):
    """Even before the data, which are not there, and Inception, which is fetched."""
    monkeypatch.setattr(model.network, "forward", lambda *a: pytest.fail("a network call"))
    with pytest.raises((ValueError, TypeError), match=message):
        evaluate(**{"model": model, "data": "nowhere.parquet", "features": "inception", "out": tmp_path / "out", **changes})
    assert not (tmp_path / "out").exists() and not model.network._forward_pre_hooks


def test_what_makes_a_distance_doubtful_is_warned_of(model, data, tmp_path):
    with pytest.warns(UserWarning, match="8 images span at most 7 of 64 feature directions.*samples is singular"):
        evaluate(model, data, tmp_path, ["fid"], n=8, features=nn.Flatten())
    with pytest.warns(UserWarning, match="14 images are fewer than 5 a feature, of which there are 3: .* FID_infinity is left out. .* take n >= 15"):
        found = evaluate(model, data, tmp_path / "few", ["fid"], n=14)
    assert "fid" in found.figures and "fid_infinity" not in found.figures
    with pytest.warns(UserWarning, match="one half of the model's range"):
        evaluate(model, data.float() / 255, tmp_path, ["kid"], n=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(model, data, tmp_path, ["kid"], n=8, features=nn.Flatten())  # unbiased however few


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28)])
def test_features_of_a_folder_are_those_of_its_classifier(tmp_path, channels, side):
    """As ``benchmarks/mnist_classifier.py`` writes it, in half precision; named with its hash."""
    torch.manual_seed(0)
    folder = tmp_path / "cifar"
    folder.mkdir()
    classifier = Classifier(channels, side).half().eval()
    save_file(classifier.state_dict(), folder / "classifier.safetensors")
    shape = (channels, side, side)
    images = torch.randint(0, 256, (5, *shape), dtype=torch.uint8)
    judge = make_features(str(folder), None, shape, CPU, RANGE)
    expected, probabilities = features_and_probabilities(classifier.float(), scaled(images))
    assert torch.equal(judge(images)["features"], expected) and torch.equal(judge(images)["probabilities"], probabilities)
    assert judge.name == "cifar" and judge.key[:12] in judge.label and "folder cifar" in judge.label and "NOT comparable" in judge.label
    with pytest.raises(ValueError, match=rf"take images of {channels} channels and {side // 8 * 8} to .* these are \(1, 8, 8\)"):
        make_features(folder, None, SHAPE, CPU, RANGE)
    with pytest.raises(FileNotFoundError, match=r"make it: python benchmarks/mnist_classifier\.py"):
        make_features(str(tmp_path), None, shape, CPU, RANGE)
    (folder / "classifier.safetensors").write_bytes(b"no")
    with pytest.raises(gen.ModelFileError, match=r"classifier.safetensors holds no classifier"):
        make_features(str(folder), None, shape, CPU, RANGE)


@pytest.mark.parametrize("name", OWN)
def test_the_features_that_come_with_the_package(name, shared_data):
    folder = ASSETS / f"features_{name}"
    card, weights = json.loads((folder / "classifier.json").read_text()), folder / "classifier.safetensors"
    assert weights.stat().st_size <= 400_000 and sha256(weights) == card["sha256"]
    images, labels = read_data(shared_data / name / "test.parquet")[:2]
    judge = make_features(name, None, (1, 28, 28), CPU, RANGE)
    right = float((judge(images[:1000])["probabilities"].argmax(1) == labels[:1000]).double().mean())
    assert abs(right - card["test_accuracy"]) < 4 * (card["test_accuracy"] * (1 - card["test_accuracy"]) / 1000) ** 0.5
    assert "NOT comparable" in judge.label and judge(images[:3])["features"].shape == (3, 128)
    given = make_features(lambda x: x.flatten(1), None, (1, 28, 28), CPU, (0.0, 1.0))
    assert torch.allclose(given(images[:3])["features"], ((scaled(images[:3]) + 1) / 2).flatten(1))


@pytest.fixture
def fidelity(monkeypatch):
    """A stand-in with torch-fidelity's interface: grey levels and colours matter, and any pickle would be run."""

    class Extractor(nn.Linear):
        def __init__(self, name, features, path):
            super().__init__(3, 5)
            assert (name, features) == ("inception", ["2048", "logits_unbiased"])
            self.load_state_dict(torch.load(path, weights_only=False))

        def forward(self, x):
            assert x.dtype == torch.uint8 and x.shape[1] == 3
            found = super().forward(x.float().mean((2, 3)))
            return found, 2 * found

    package, module = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    return nn.Linear(3, 5)


def test_inception_takes_weights_and_no_code(fidelity, tmp_path):
    torch.save(fidelity.state_dict(), tmp_path / "a.pth")
    save_file(fidelity.state_dict(), tmp_path / "a.safetensors")
    both = [make_features("inception", tmp_path / f"a.{suffix}", SHAPE, CPU, RANGE) for suffix in ("pth", "safetensors")]
    grey = torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8)
    (found, again), colours = (judge(grey) for judge in both), both[0](grey.expand(-1, 3, -1, -1))
    expected = fidelity(grey.float().mean((2, 3)).expand(-1, 3))
    assert both[0].key == both[1].key and torch.equal(found["features"], again["features"]) and torch.equal(found["features"], colours["features"])
    assert torch.allclose(found["features"], expected) and torch.allclose(found["probabilities"], (2 * expected).softmax(1))
    assert "comparable with published FID" in both[0].label and "NOT" not in both[0].label

    class Hostile:
        def __reduce__(self):
            return Path.write_text, (tmp_path / "owned", "")

    (tmp_path / "b.pth").write_bytes(pickle.dumps({"weight": Hostile()}))
    torch.save({"weight": Hostile()}, tmp_path / "c.pth")
    torch.save([torch.zeros(1)], tmp_path / "d.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "e.pth")
    (tmp_path / "f.safetensors").write_bytes(b"half")
    for name in ("b.pth", "c.pth", "d.pth", "e.pth", "f.safetensors"):
        with pytest.raises(gen.ModelFileError, match=f"{name[0]}.{name[2:]}"):
            make_features("inception", tmp_path / name, SHAPE, CPU, RANGE)
    assert not (tmp_path / "owned").exists()
    with pytest.raises(ValueError, match="grey or RGB"):
        make_features("inception", None, (2, 8, 8), CPU, RANGE)
    with pytest.raises(FileNotFoundError, match="weights="):
        make_features("inception", tmp_path / "none.pth", SHAPE, CPU, RANGE)


def test_work_without_a_row_an_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a row an image"):
        Job(tmp_path, {}, 5, 3, lambda span: {"x": torch.zeros(2)}).run(Shard(0, 1), lambda done: None)
    with pytest.raises(FileNotFoundError, match="00000000-00000002"):
        list(Job(tmp_path, {}, 5, 3, lambda span: {}).parts())


def test_the_command(tmp_path, monkeypatch):
    tiny_model().save(tmp_path / "tiny")
    random_parquet(tmp_path / "data.parquet", n=12)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    plain = CliRunner().invoke(cli.app, ["evaluate", "--model", str(tmp_path / "tiny"), "--data", str(tmp_path / "data.parquet"), "--out", str(tmp_path / "none")])
    assert plain.exit_code == 2 and "sdesolve[evaluate]" in plain.output
    monkeypatch.setattr("sdesolve_gen.commands_evaluate.evaluate", lambda *a, features, **k: gen.evaluate(*a, features=Judge(), **k))

    def run(*arguments):
        command = ["evaluate", "--model", tmp_path / "tiny", "--data", tmp_path / "data.parquet", "--out", tmp_path / "out", "--n", 9, "--steps", 2, *arguments]
        return CliRunner().invoke(cli.app, list(map(str, command)))

    early = run("--shard", "0/2", "--batch-size", 5)
    assert early.exit_code == 0 and "4 of samples" in early.output and not (tmp_path / "out" / "report.json").exists()
    late = run("--shard", "1/2", "--batch-size", 5, "--metrics", "fid,time")
    assert late.exit_code == 0 and "of 9 images" in late.output and f"wrote {tmp_path}/out/report.json" in late.output, late.output
    assert json.loads((tmp_path / "out" / "report.json").read_text())["figures"]["nfe"]["value"] == 2 * 2 + 1
    for arguments, message in ((("--shard", "2/2"), "shard='2/2'"), (("--metrics", "fod"), "Did you mean 'fid'"), (("--seed", 3), "other settings")):
        bad = run(*arguments)
        assert bad.exit_code == 2 and message in bad.output.replace("\n", " ") and "Traceback" not in bad.output
    assert "Examples" in CliRunner().invoke(cli.app, ["evaluate", "--help"]).output


def test_numpy_files_and_folders_serve_as_data(model, data, tmp_path):
    np.savez(tmp_path / "data.npz", images=data.numpy())
    assert evaluate(model, tmp_path / "data.npz", None)["kid"] == evaluate(model, data, None)["kid"]


def test_another_class_is_another_model() -> None:
    """The chunks of one class must not be taken for those of another."""
    from sdesolve_gen.evaluation.run import _weights

    model = tiny_model()
    before = _weights(model)
    model.label = 1
    assert _weights(model) != before
