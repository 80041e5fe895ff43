"""What a model remembers of its data: kept, checked, and where "auto" starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gen_fixtures import NETWORK, random_parquet, tiny_card, tiny_config, tiny_model, tiny_network
from safetensors.torch import load_file, save_file
from torch import Tensor

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve_gen.card import MOMENTS
from sdesolve_gen.data import read_data, scaled
from sdesolve_gen.moments import moments_of

DATA = (0.3 * torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.2).clamp(-1, 1)


def knowing() -> gen.Model:
    m = tiny_model()
    m.moments = sd.Range.of(DATA, directions=5)
    return m


def test_auto_starts_from_them() -> None:
    m, plain = knowing(), tiny_model()
    own = m.sample(3, "auto", nfe=6, seed=0)
    assert torch.equal(own, plain.sample(3, "auto", nfe=6, seed=0, interval=m.moments))
    assert not torch.equal(own, plain.sample(3, "auto", nfe=6, seed=0))
    assert torch.equal(m.sample(3, "auto", nfe=6, seed=0, interval=None), plain.sample(3, "auto", nfe=6, seed=0))
    assert torch.equal(m.sample(3, "unipc", nfe=6, seed=0), plain.sample(3, "unipc", nfe=6, seed=0))


def test_times_of_one_s_own_have_their_ends() -> None:
    times = [1.0, 0.5, 0.1, tiny_model().process.eps]
    for grid in (times, sd.Grid.of(times)):
        assert torch.equal(knowing().sample(2, "auto", grid=grid, seed=0), tiny_model().sample(2, "auto", grid=grid, seed=0))


def test_an_optimised_grid_has_its_own() -> None:
    m = knowing()
    grid = sd.optimize_grid(m.process.probability_flow(m.score), "ddim", nfe=4, shape=m.shape, samples=16)
    assert torch.equal(m.sample(2, "auto", grid=grid, seed=0), tiny_model().sample(2, "auto", grid=grid, seed=0))


def test_of_classes_they_say_nothing() -> None:
    m = gen.Model(tiny_network(classes=3), tiny_card(classes=3, network_options={"channels": 1, **NETWORK, "classes": 3}))
    plain = m.sample(2, "auto", nfe=4, seed=0, labels=[0, 2])
    m.moments = sd.Range.of(DATA)
    assert torch.equal(m.sample(2, "auto", nfe=4, seed=0, labels=[0, 2]), plain) and m.of_class(1).moments is None


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 0.0), (torch.float16, 1e-3)])
def test_they_are_kept(tmp_path: Path, dtype: torch.dtype, near: float) -> None:
    m = knowing()
    assert m.moments is not None and m.moments.directions is not None and isinstance(m.moments.data_mean, Tensor)
    back = gen.load(m.save(tmp_path, dtype)).moments
    assert back is not None and back.directions is not None and isinstance(back.data_mean, Tensor)
    assert torch.equal(back.data_mean, m.moments.data_mean) and back.data_std == pytest.approx(m.moments.data_std, rel=1e-6)
    assert float((back.directions - m.moments.directions).abs().max()) <= near
    m.moments = None
    assert gen.load(m.save(tmp_path)).moments is None and not (tmp_path / MOMENTS).exists()


def test_a_mean_that_is_a_number_and_no_directions(tmp_path: Path) -> None:
    m = tiny_model()
    m.moments = sd.Range(0.5, -0.25)
    back = gen.load(m.save(tmp_path)).moments
    assert back is not None and back.directions is None and torch.equal(torch.as_tensor(back.data_mean), torch.full((1, 8, 8), -0.25))


@pytest.mark.parametrize("ends", [{"first": 7.0, "last": 0.03}, {"last": 0.1}, {}])
def test_ends_of_one_s_own_are_kept(tmp_path: Path, ends: dict[str, float]) -> None:
    m = tiny_model()
    m.moments = sd.Range.of(DATA, directions=5, **ends)
    back = gen.load(m.save(tmp_path))
    assert back.moments is not None and (back.moments.first, back.moments.last) == (ends.get("first"), ends.get("last"))
    assert torch.allclose(back.sample(2, "auto", nfe=4, seed=0), m.sample(2, "auto", nfe=4, seed=0), atol=1e-6)


def rewritten(**changes: Tensor) -> Callable[[Path], None]:
    """Other tensors, of which the card has the right hash."""

    def change(folder: Path) -> None:
        save_file({**load_file(folder / MOMENTS), **changes}, folder / MOMENTS)
        card = json.loads((folder / "card.json").read_text())
        card["moments"] = hashlib.sha256((folder / MOMENTS).read_bytes()).hexdigest()
        (folder / "card.json").write_text(json.dumps(card))

    return change


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: (folder / MOMENTS).unlink(), "is not the file that its card speaks of"),
    "another": (lambda folder: save_file({"mean": torch.zeros(1)}, folder / MOMENTS), "is not the file that its card speaks of"),
    "another shape": (rewritten(mean=torch.zeros(1, 4, 4)), r"expected floats, a mean and directions of shape \(1, 8, 8\)"),
    "integers": (rewritten(mean=torch.zeros(1, 8, 8, dtype=torch.int64)), "expected floats"),
    "one more": (rewritten(code=torch.zeros(1)), "expected floats, a mean"),
    "no width": (rewritten(std=torch.tensor(0.0)), "data_std=0.0; expected a finite number > 0"),
    "ends that are none": (rewritten(first=torch.tensor(-1.0)), "first=-1.0; expected a finite number > 0"),
    "ends of another shape": (rewritten(last=torch.ones(2)), "and a first and last where"),
    "not finite": (rewritten(mean=torch.full((1, 8, 8), float("nan"))), "data_mean is not finite"),
    "directions that lean": (rewritten(directions=0.1 * torch.ones(2, 1, 8, 8)), "not orthogonal"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_file_is_trusted_with_nothing(tmp_path: Path, case: str) -> None:
    damage, expected = DAMAGED[case]
    damage(knowing().save(tmp_path))
    with pytest.raises(gen.ModelFileError, match=expected):
        gen.load(tmp_path)


def test_the_embedded_model_has_those_of_its_data() -> None:
    found = gen.load("mnist").moments
    assert found is not None and found.directions is not None and len(found.directions) == 32
    assert 0.4 < found.data_std < 0.6


@pytest.mark.parametrize("flip", [False, True])
def test_a_trained_model_remembers_its_data(tmp_path: Path, flip: bool) -> None:
    data = random_parquet(tmp_path / "data.parquet", n=40)
    m = gen.train(tiny_config(data, tmp_path / "run", flip=flip, data_range=[-2.0, 2.0]))
    x = scaled(read_data(data).images) * 2.0
    x = torch.cat([x, x.flip(-1)]) if flip else x
    found, expected = gen.load(tmp_path / "run").moments, sd.Range.of(x)
    assert found is not None and found.directions is not None and expected.directions is not None and m.moments is not None
    assert torch.allclose(torch.as_tensor(found.data_mean), torch.as_tensor(expected.data_mean), atol=1e-5) and found.data_std == pytest.approx(expected.data_std)
    assert torch.allclose(found.directions.flatten(1).norm(dim=1), expected.directions.flatten(1).norm(dim=1), rtol=1e-4)


def test_data_that_are_one_image_have_none() -> None:
    assert moments_of(torch.full((5, 1, 4, 4), 7, dtype=torch.uint8), (-1.0, 1.0)) is None
    assert moments_of(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), (-1.0, 1.0)) is None
