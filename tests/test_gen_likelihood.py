"""Likelihoods and codes of a trained model's images."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from gen_fixtures import tiny_card, tiny_model, tiny_network

import sdesolve as sd
import sdesolve_gen as gen

LOOSE = {"rtol": 1e-2, "atol": 1e-2}


def test_a_model_s_likelihood_is_the_solver_s() -> None:
    m = tiny_model()
    pixels = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    r = m.log_likelihood(pixels, seed=4, probes=2, **LOOSE)
    x = sd.dequantise(pixels.float() / 127.5 - 1, (-1, 1), seed=4)
    by_hand = sd.log_likelihood(m.process, m.score, x, seed=4, probes=2, **LOOSE)
    assert torch.allclose(r.log_prob, by_hand.log_prob, rtol=1e-4)
    assert bool(r.bits_per_dim(m.data_range, m.levels).isfinite().all())
    assert torch.allclose(m.log_likelihood(x, seed=4, probes=2, **LOOSE).log_prob, by_hand.log_prob)
    one = m.log_likelihood(pixels[2:], seed=4, sample_ids=[2], probes=2, **LOOSE)
    assert torch.allclose(one.log_prob, r.log_prob[2:], rtol=1e-3)


def test_codes_of_a_model() -> None:
    m = tiny_model()
    images = m.sample(2, "ddim", steps=5, seed=0)
    latent = m.encode(images, method="leapfrog", steps=20)
    assert torch.allclose(m.decode(latent), images, atol=1e-3)
    way = m.interpolate(images[:1], images[1:], 3, rtol=1e-4, atol=1e-4)
    assert way.shape == (3, 1, 1, 8, 8)
    assert torch.allclose(way[[0, 2], 0], images, atol=0.05)
    middle = sd.interpolate(m.encode(images[:1], rtol=1e-4, atol=1e-4).x, m.encode(images[1:], rtol=1e-4, atol=1e-4).x, 3)[1]
    assert torch.allclose(way[1], m.decode(middle, rtol=1e-4, atol=1e-4), atol=1e-3)
    with pytest.raises(ValueError, match=r"expected \(n, 1, 8, 8\): images\[None\]"):
        m.encode(images[0])
    with pytest.raises(ValueError, match="none of 256 levels"):
        m.log_likelihood(torch.full((1, 1, 8, 8), 256))


def test_levels_in_floats_are_told() -> None:
    m, pixels = tiny_model(), torch.randint(0, 256, (2, 1, 8, 8))
    for images in (pixels / 127.5 - 1, (pixels + 0.5) / 128 - 1):
        with pytest.warns(sd.SolveWarning, match="all lie on the 256 levels .*expected integers, 0..255, which are dequantised"):
            m.log_likelihood(images, seed=0, max_steps=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        m.log_likelihood(sd.dequantise(pixels / 127.5 - 1, (-1, 1), seed=0), seed=0, max_steps=1)
    assert not any("levels" in str(one.message) for one in told)


def test_ends_of_a_way_are_images() -> None:
    m, good = tiny_model(), torch.zeros(1, 1, 8, 8)
    for bad, message in (
        (good * math.nan, "b: image 0 of 1 runs from nan to nan, and the model's data from -1 to 1"),
        (good + 2, "b: image 0 of 1 runs from 2 to 2"),
        (good[:0], r"images have shape \(0, 1, 8, 8\); expected \(n, 1, 8, 8\)"),
        ([good], "images are a list; expected .*, a tensor"),
        (m.encode(good, method="rk4", steps=1), "images are a Latent; expected"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            m.interpolate(good, bad)


def test_inference_mode_changes_no_likelihood() -> None:
    m, labels = gen.Model(tiny_network(classes=3), tiny_card(classes=3)), [0, 2]
    pixels = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    wanted = m.log_likelihood(pixels, labels=labels, seed=4, **LOOSE).log_prob
    with torch.inference_mode():
        found = m.log_likelihood(pixels.clone(), labels=torch.tensor(labels), seed=4, **LOOSE).log_prob
    assert torch.allclose(found, wanted, rtol=1e-4)
