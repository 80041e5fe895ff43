"""A noise-conditional classifier is trained: it learns, it is a function of its config, and an interruption leaves no trace."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from gen_fixtures import png

from sdesolve_gen.training import classifier as module
from sdesolve_gen.training.classifier import ClassifierConfig, train_classifier


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Two classes: the upper or the lower half is bright."""
    draws, rows, labels = np.random.default_rng(0), [], []
    for i in range(64):
        picture = draws.integers(0, 80, (8, 8), dtype=np.uint8)
        picture[4 * (i % 2) : 4 * (i % 2) + 4] += 150
        rows.append({"bytes": png(picture), "path": f"{i}.png"})
        labels.append(i % 2)
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    parquet.write_table(pa.table({"image": rows, "label": labels}), path)
    return str(path)


def config(data: str, **changes) -> ClassifierConfig:
    options = {"width": 8, "multipliers": [1, 2], "blocks": 1, "patch": 2}
    return dataclasses.replace(ClassifierConfig(data=data, name="halves", network_options=options, steps=40, batch=32, precision="fp32"), **changes)


def test_it_learns_what_can_be_known_at_each_level(data) -> None:
    classifier = train_classifier(config(data), progress=False)
    assert classifier.classes == 2
    assert not classifier.network.training
    images = torch.full((200, 1, 8, 8), -0.7)
    labels = torch.arange(200) % 2
    images[labels == 0, :, :4] += 1.2
    images[labels == 1, :, 4:] += 1.2
    for sigma, least, most in ((0.1, 1.0, 1.0), (1.0, 0.9, 1.0), (80.0, 0.0, 0.7)):
        t = classifier.process.log_snr_inverse(-2 * torch.tensor(sigma, dtype=torch.float64).log())
        right = classifier.logits(classifier.process.perturb(images, t, seed=0), t).argmax(1).eq(labels).double().mean()
        assert least <= right <= most


def test_it_is_a_function_of_its_config(data) -> None:
    weights = [train_classifier(config(data, steps=4, seed=seed), progress=False).network.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_every_update_has_noise_of_its_own(data) -> None:
    c = config(data)
    classifier, images, labels = module._fresh(c, (1, 8, 8), 2), torch.full((8, 1, 8, 8), 100, dtype=torch.uint8), torch.arange(8) % 2
    losses = [float(module.classification_loss(classifier, c, images, labels, step)) for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_an_interruption_leaves_no_trace(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "SAVE_EVERY", 3)
    whole = train_classifier(config(data, steps=8), progress=False).network.state_dict()
    real, checkpoint = module.classification_loss, tmp_path / "checkpoint.pt"

    def interrupted(*arguments):
        if arguments[-1] == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "classification_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(config(data, steps=8), checkpoint=checkpoint, progress=False)
    steps = []
    monkeypatch.setattr(module, "classification_loss", lambda *arguments: (steps.append(arguments[-1]), real(*arguments))[1])
    resumed = train_classifier(config(data, steps=8), checkpoint=checkpoint, progress=False).network.state_dict()
    assert steps == [3, 4, 5, 6, 7]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(ValueError, match="another config"):
        train_classifier(config(data, steps=9), checkpoint=checkpoint, progress=False)


def test_a_gradient_that_is_not_finite_is_not_applied(data, tmp_path, monkeypatch) -> None:
    """Finite losses can have one: it would make every weight NaN, and the next checkpoint."""
    monkeypatch.setattr(module, "SAVE_EVERY", 1)
    real, checkpoint = module.classification_loss, tmp_path / "checkpoint.pt"

    def broken(classifier, *rest):
        loss = real(classifier, *rest)
        if rest[-1] == 3:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    monkeypatch.setattr(module, "classification_loss", broken)
    with pytest.raises(FloatingPointError, match=r"diverged at step 3: the loss is 0\.\d+ and its gradient's norm nan"):
        train_classifier(config(data, steps=8), checkpoint=checkpoint, progress=False)
    state = module.read_checkpoint(checkpoint)
    assert state["step"] == 3 and all(torch.isfinite(tensor).all() for tensor in state["network"].values())


def test_bad_choices_are_refused(data, tmp_path) -> None:
    for change, message in (
        ({"steps": 0}, "steps=0"), ({"network": "UNet"}, "network 'UNet' is not known"), ({"precision": "fp16"}, "precision='fp16'"), ({"name": "a/b"}, "name='a/b'"),
        ({"batch": 100}, "fewer than batch=100"), ({"network_options": {"width": 7}}, "do not fit"), ({"process": "vq"}, "Did you mean 'vp'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            train_classifier(config(data, **change), progress=False)
    table = parquet.read_table(data)
    parquet.write_table(table.select(["image"]), tmp_path / "unlabelled.parquet")
    with pytest.raises(ValueError, match="no column 'label'"):
        train_classifier(config(str(tmp_path / "unlabelled.parquet")), progress=False)
    with pytest.raises(FloatingPointError, match="diverged at step"):
        train_classifier(config(data, learning_rate=1e20), progress=False)
