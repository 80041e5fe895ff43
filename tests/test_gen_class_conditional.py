"""Class-conditional sampling: Bayes' rule holds, calls are counted, and labels that fit nobody are refused before the first of them."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gen_fixtures import NETWORK, tiny_card, tiny_model, tiny_network
from problems import PROCESSES
from torch import Tensor, nn
from typer.testing import CliRunner

import sdesolve as sd
import sdesolve_gen as gen
from sdesolve import exam
from sdesolve_gen import classifiers
from sdesolve_gen.class_conditional import rows_leave
from sdesolve_gen.cli import app
from sdesolve_gen.networks import EncoderClassifier, UNet

COMPONENTS = (
    exam.Gaussian([1.0, 0.5], std=[0.3, 0.2]),
    exam.Gaussian([-0.8, 0.9], cov=[[0.1, 0.05], [0.05, 0.2]]),
    exam.Gaussian([0.0, -0.7], std=0.4),
)
MIXTURE = exam.Mixture([0.5, 0.2, 0.3], COMPONENTS)


def exact_classifier(process: sd.Process) -> gen.Classifier:
    """p_t(k | x_t) of the mixture in closed form; the last event axis may have any leading ones of size 1."""

    def logits(x: Tensor, t: Tensor) -> Tensor:
        return torch.stack([w.log() + c.log_prob(x, process, t.double()) for w, c in zip(MIXTURE.weights, COMPONENTS, strict=True)], 1)

    return gen.Classifier(logits, process, classes=3)


def exact_score(process: sd.Process) -> sd.Score:
    return sd.as_score(MIXTURE.score(process), process, predicts="score")


# -- classifier guidance ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_at_scale_one_it_is_the_score_of_the_class(name: str) -> None:
    p = PROCESSES[name]
    labels = torch.arange(30) % 3
    guided = gen.classifier_guidance(exact_score(p), exact_classifier(p), labels)
    for share in (0.02, 0.3, 0.9):
        t = share * p.T
        x = MIXTURE.perturbed(p, t).sample(30, seed=1, dtype=torch.float64)
        expected = torch.stack([COMPONENTS[int(k)].score(p)(x[i : i + 1], t)[0] for i, k in enumerate(labels)])
        for time in (t, torch.full((30,), t, dtype=torch.float64)):
            torch.testing.assert_close(guided(x, time), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
        torch.testing.assert_close(guided.denoise(x, t), sd.as_score(lambda x, t: expected, p, predicts="score").denoise(x, t), rtol=1e-5, atol=1e-5)  # noqa: B023
        torch.testing.assert_close(guided.epsilon(x, t), -p.sigma(t) * expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("process", "method", "options"),
    [
        ("VP", "ddim", {"steps": 150}), ("VP", "pc", {"steps": 150, "snr": 0.1}), ("subVP", "dpmpp_2m", {"steps": 60}), ("VE", "unipc", {"steps": 60}),
        ("EDM", "heun", {"steps": 60}), ("cosine", "dpmpp_2m_sde", {"steps": 100}), ("flow", "deis", {"steps": 60}), ("VP", "rk45", {"rtol": 1e-3, "atol": 1e-3}),
        ("VE", "er_sde", {"steps": 80}),
    ],
)  # fmt: skip
def test_samples_follow_the_law_of_the_class(process: str, method: str, options: dict[str, Any]) -> None:
    p = PROCESSES[process]
    ends = {k: COMPONENTS[k].perturbed(p, p.T).sample(1000, seed=3) for k in (1, 2)}
    guided = gen.classifier_guidance(exact_score(p), exact_classifier(p), torch.arange(2000) // 1000 + 1)
    sol = sd.solve(p.reverse(guided), torch.cat(list(ends.values())), method, seed=4, **options)
    assert sol.ok().all()
    for k, x in zip((1, 2), sol.x.split(1000), strict=True):
        assert exam.ks(x, COMPONENTS[k].perturbed(p, p.eps)).p_value > 1e-3
        assert exam.ks(x, MIXTURE.perturbed(p, p.eps)).p_value < 1e-12  # nor would every law do


def test_a_scale_multiplies_the_gradient() -> None:
    p = PROCESSES["VP"]
    x = MIXTURE.sample(8, seed=0)
    plain, once, thrice = (gen.classifier_guidance(exact_score(p), exact_classifier(p), 1, scale)(x, 0.3) for scale in (0.0, 1.0, 3.0))
    assert torch.equal(plain, exact_score(p)(x, 0.3))
    torch.testing.assert_close(thrice - plain, 3 * (once - plain))


def test_both_networks_calls_are_counted() -> None:
    p = PROCESSES["VP"]
    guided = gen.classifier_guidance(exact_score(p), exact_classifier(p), 1)
    sol = sd.solve(p.reverse(guided), p.prior((4, 2), seed=0), "ddim", steps=10, denoise=True)
    assert sol.nfe == 22
    chosen = sd.solve(p.reverse(guided), p.prior((4, 2), seed=0), "rk45", rtol=1e-2, atol=1e-2)
    assert (chosen.nfe % 2 == 0).all()


def test_derivatives_go_through_a_guided_solve() -> None:
    p = PROCESSES["VP"]
    guided = gen.classifier_guidance(exact_score(p), exact_classifier(p), torch.tensor([0, 1]))
    x = p.prior((2, 2), seed=0, dtype=torch.float64)

    def end(x: Tensor) -> Tensor:
        return sd.solve(p.reverse(guided), x, "ddim", steps=5, gradient="backprop").x.sum()

    assert torch.autograd.gradcheck(end, x.requires_grad_())
    with torch.inference_mode():
        there = sd.solve(p.reverse(guided), x.detach().clone(), "ddim", steps=5).x
    torch.testing.assert_close(there.clone(), sd.solve(p.reverse(guided), x.detach(), "ddim", steps=5).x)


def test_labels_that_lose_their_rows_are_told_so() -> None:
    p = PROCESSES["VP"]
    guided = gen.classifier_guidance(exact_score(p), exact_classifier(p), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(ValueError, match=r"4 labels and 3 rows.*labels=3"):
        guided(torch.zeros(3, 2), 0.5)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (3, ValueError, r"hold \[3\]; expected integers from 0 to 2"), (-1, ValueError, r"hold \[-1\]"), (torch.tensor([0, 7]), ValueError, r"hold \[7\]"),
        ([0, -1, 2], ValueError, r"hold \[-1\]"),
        (1.5, TypeError, "of type torch.float32"), (True, TypeError, "of type torch.bool"), (None, ValueError, "missing"), ("a", TypeError, "labels='a'"),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, r"shape \(2, 2\)"), (torch.zeros(0, dtype=torch.int64), ValueError, "shape"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_labels_are_refused(labels: Any, error: type[Exception], message: str) -> None:
    p = PROCESSES["VP"]
    with pytest.raises(error, match=message):
        gen.classifier_guidance(exact_score(p), exact_classifier(p), labels)


def test_a_classifier_of_another_process_and_a_wrong_scale_are_refused() -> None:
    p = PROCESSES["VP"]
    with pytest.raises(ValueError, match=r"knows VESDE.* of VPSDE.*expected one process"):
        gen.classifier_guidance(exact_score(p), exact_classifier(PROCESSES["VE"]), 0)
    for scale in (-1.0, math.nan, math.inf, True, "1"):
        with pytest.raises(ValueError, match=r"scale=.*expected a finite number >= 0"):
            gen.classifier_guidance(exact_score(p), exact_classifier(p), 0, scale)  # type: ignore[arg-type]


def test_logits_of_another_shape_are_refused() -> None:
    classifier = gen.Classifier(lambda x, t: torch.zeros(len(x), 2), PROCESSES["VP"], classes=3)
    with pytest.raises(ValueError, match=r"returned \(4, 2\); expected logits \(4, 3\)"):
        classifier.logits(torch.zeros(4, 2), 0.5)


# -- classifier-free guidance ----------------------------------------------------------------------------------------------


def pair(p: sd.Process) -> tuple[sd.Score, sd.Score]:
    return sd.as_score(COMPONENTS[1].score(p), p, predicts="score"), exact_score(p)


@pytest.mark.parametrize("name", PROCESSES)
def test_guidance_without_a_classifier_is_guidance_with_the_implied_one(name: str) -> None:
    p = PROCESSES[name]
    x = MIXTURE.perturbed(p, 0.3 * p.T).sample(20, seed=0, dtype=torch.float64)
    free, by_classifier = gen.classifier_free_guidance(*pair(p), 2.5), gen.classifier_guidance(exact_score(p), exact_classifier(p), 1, 2.5)
    expected = by_classifier(x, 0.3 * p.T)
    torch.testing.assert_close(free(x, 0.3 * p.T), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_calls_without_a_classifier_are_counted() -> None:
    p = PROCESSES["EDM"]
    x, problem = p.prior((3, 2), seed=0), lambda how: p.reverse(gen.classifier_free_guidance(*pair(p), how))
    calls = {how: sd.solve(problem(how), x, "euler", steps=20).nfe for how in (gen.Guidance(1.0), gen.Guidance(0.0), gen.Guidance(2.0))}
    assert list(calls.values()) == [20, 20, 40]
    grid = sd.solve(problem(1.0), x, "euler", steps=20, save="all").ts[:-1].tolist()
    inside = sum(0.3 < t <= 5.0 for t in grid)
    assert 0 < inside < 20
    assert sd.solve(problem(gen.Guidance(2.0, (0.3, 5.0))), x, "euler", steps=20).nfe == 20 + inside


def hooked(*networks: nn.Module) -> list[int]:
    """A list whose one number counts what the networks are called."""
    counted = [0]

    def count(*_: Any) -> None:
        counted[0] += 1

    for network in networks:
        network.register_forward_hook(count)
    return counted


@pytest.mark.parametrize("method", ["unipc", "heun", "pc", "auto"])
@pytest.mark.parametrize("denoise", [True, False])
def test_nfe_is_kept_to_under_guidance(method: str, denoise: bool) -> None:
    """As hooks on the networks count: with none as many calls as without guidance, twice as many an evaluation with one, three times with both."""
    labelled, judge = conditional_model(), tiny_classifier()
    assert isinstance(judge.network, nn.Module)
    counted, how = hooked(labelled.network, judge.network), {"seed": 0, "labels": 1, "denoise": denoise}
    for options, each in (({}, 1), ({"guidance": 2.0}, 2), ({"classifier": judge}, 2), ({"guidance": 2.0, "classifier": judge}, 3)):
        for nfe in (9, 12, 16):
            counted[0] = 0
            drawn = labelled.draw(2, method, nfe=nfe, **how, **options)
            assert drawn.nfe.tolist() == [counted[0]] * 2 and nfe - 3 * each < counted[0] <= nfe
    counted[0] = 0
    drawn = labelled.draw(2, method, nfe=16, guidance=gen.Guidance(2.0, (0.3, 3.0)), **how)
    assert 8 < counted[0] < 16 and drawn.nfe.tolist() == [counted[0]] * 2


def test_the_smallest_nfe_under_guidance_is_told_and_works() -> None:
    p = PROCESSES["VP"]
    problem, x = p.reverse(gen.classifier_free_guidance(*pair(p), 2.0)), p.prior((2, 2), seed=0)
    with pytest.raises(ValueError, match="nfe=5 is too small for one step of this method under guidance, 2 calls an evaluation; the smallest that works is nfe=6"):
        sd.solve(problem, x, "heun", nfe=5, denoise=True)
    assert sd.solve(problem, x, "heun", nfe=6, denoise=True).nfe == 6


def test_auto_is_chosen_by_evaluations() -> None:
    """And a range of noise reaches as far as for so many."""
    p, data = PROCESSES["VP"], sd.Range(0.7)
    x, problem = p.prior((4, 2), seed=0), p.probability_flow(gen.classifier_free_guidance(*pair(p), 2.0))
    twice, same = (sd.solve(flow, x, "auto", nfe=n, interval=data) for flow, n in ((problem, 16), (p.probability_flow(lambda x, t: problem.score(x, t)), 8)))
    assert (twice.nfe, same.nfe) == (16, 16) and torch.allclose(twice.x, same.x, atol=1e-5)
    grid = sd.optimize_grid(problem, "ddim", nfe=8, shape=(2,), samples=16)
    assert (len(grid), sd.solve(problem, x, "ddim", grid=grid).nfe) == (3, 8)


@pytest.mark.parametrize("how", [gen.Guidance(3.0, (0.2, 1.0)), gen.Guidance(3.0, (0.2, 1.0), 0.7), gen.Guidance(0.0, (0.2, 1.0))], ids=str)
def test_an_interval_is_the_same_for_one_time_and_for_many(how: gen.Guidance) -> None:
    p = PROCESSES["VP"]
    conditional, unconditional = pair(p)
    guided = gen.classifier_free_guidance(conditional, unconditional, how)
    always = gen.classifier_free_guidance(conditional, unconditional, gen.Guidance(how.scale, None, how.rescale))
    x = MIXTURE.sample(3, seed=0, dtype=torch.float64)
    sigmas = torch.tensor([0.1, 0.6, 2.0], dtype=torch.float64)
    t = p.log_snr_inverse(-2 * sigmas.log())
    together = guided(x, t)
    for i, expected in enumerate((conditional, always, conditional)):
        torch.testing.assert_close(together[i : i + 1], expected(x[i : i + 1], float(t[i])))
        torch.testing.assert_close(together[i : i + 1], guided(x[i : i + 1], float(t[i])))


@pytest.mark.parametrize(("sigma", "within"), [(0.25, False), (0.26, True), (0.99, True), (1.0, True), (1.01, False)])
def test_an_interval_is_open_below_and_closed_above(sigma: float, within: bool) -> None:
    p = sd.EDM()  # whose time is the noise level
    conditional, unconditional = pair(p)
    guided = gen.classifier_free_guidance(conditional, unconditional, gen.Guidance(3.0, (0.25, 1.0)))
    expected = gen.classifier_free_guidance(conditional, unconditional, 3.0) if within else conditional
    x = MIXTURE.sample(3, seed=0, dtype=torch.float64)
    for t in (sigma, torch.full((3,), sigma, dtype=torch.float64)):
        torch.testing.assert_close(guided(x, t), expected(x, t))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_rescaling_takes_back_the_growth_of_the_denoised_image(share: float) -> None:
    p, x = PROCESSES["VP"], torch.randn(5, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    conditional, unconditional = (sd.as_score(lambda x, t, w=w: -w * x.tanh(), p, predicts="score") for w in (0.3, 0.8))
    x = x * torch.arange(1, 6).reshape(-1, 1, 1, 1)  # each by itself
    plain, rescaled = (gen.classifier_free_guidance(conditional, unconditional, gen.Guidance(3.0, None, phi)).denoise(x, 0.4) for phi in (0.0, share))
    narrow = conditional.denoise(x, 0.4).flatten(1).std(1)
    factor = share * narrow / plain.flatten(1).std(1) + 1 - share
    torch.testing.assert_close(rescaled, factor[:, None, None, None] * plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"scale": -1.0}, "scale=-1.0"), ({"rescale": 2.0}, "rescale=2.0"), ({"interval": (1.0, 1.0)}, "interval="), ({"interval": (-1.0, 1.0)}, "interval="),
     ({"interval": 3}, "interval=3; expected noise levels 0 <= low < high"), ({"interval": ("a", 2)}, "interval=.*; expected noise levels"), ({"interval": (1.0,)}, "interval=")],
    ids=str,
)  # fmt: skip
def test_wrong_guidance_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gen.Guidance(**options)


def test_one_number_has_no_spread_to_be_rescaled() -> None:
    p, x = PROCESSES["VP"], torch.randn(5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    conditional, unconditional = (sd.as_score(lambda x, t, w=w: -w * x.tanh(), p, predicts="score") for w in (0.3, 0.8))
    plain, rescaled = (gen.classifier_free_guidance(conditional, unconditional, gen.Guidance(3.0, None, phi)).denoise(x, 0.4) for phi in (0.0, 0.7))
    assert torch.equal(plain, rescaled)


def test_scores_of_two_processes_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="expected one process"):
        gen.classifier_free_guidance(pair(PROCESSES["VP"])[0], exact_score(PROCESSES["VE"]), 2.0)


# -- networks and models that know classes ---------------------------------------------------------------------------------


def loud(network: nn.Module) -> nn.Module:
    """With weights that are not zero anywhere, as in a trained one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network


def conditional_model(dtype: torch.dtype = torch.float32) -> gen.Model:
    options = {"channels": 1, **NETWORK, "classes": 3}
    return gen.Model(loud(UNet(**options)).to(dtype), tiny_card(classes=3, network_options=options))


def tiny_classifier(dtype: torch.dtype = torch.float32, **changes: Any) -> gen.Classifier:
    network = loud(EncoderClassifier(3, 1, 8, [1, 2], 1, 2)).to(dtype)
    options = {"classes": 3, "channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1, "patch": 2}
    card = {key: value for key, value in tiny_card().items() if key not in ("predicts", "levels")}
    return gen.Classifier.of_card(network, {**card, "network": "EncoderClassifier", "network_options": options, "classes": 3, **changes})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_classifier_in_half_precision_is_told_every_time(dtype: torch.dtype) -> None:
    """In float32, as networks of scores are; one whose layers refuse that is told as they want it."""
    told, layer, process = list[Tensor](), nn.Linear(2, 3).to(dtype), sd.VPSDE()
    times = torch.linspace(1e-3, 1, 1000, dtype=torch.float64)
    network = nn.Sequential(layer)
    network.forward = lambda x, t: told.append(t) or layer(x)  # type: ignore[func-returns-value, method-assign]
    gen.Classifier(network, process, classes=3).logits(torch.ones(1000, 2), times)
    assert torch.equal(told[0], times.float())
    narrow = nn.Sequential(layer)
    narrow.forward = lambda x, t: told.append(t) or layer(x + 0 * t[:, None].expand_as(x))  # type: ignore[func-returns-value, method-assign]
    classifier = gen.Classifier(narrow, process, classes=3)
    for _ in range(2):
        assert classifier.logits(torch.ones(4, 2), 0.3).shape == (4, 3)
    assert [t.dtype for t in told] == [torch.float32, torch.float32, dtype, dtype]


def test_auto_draws_in_a_single_evaluation() -> None:
    """Of one call, or of the two that guidance makes; with one more the denoiser is the last."""
    m = conditional_model()
    for guidance, calls in ((1.0, 1), (2.0, 2)):
        draw = partial(m.draw, 2, "auto", labels=1, guidance=guidance, seed=0)
        one, two = draw(nfe=calls), draw(nfe=2 * calls)
        assert one.nfe.tolist() == [calls] * 2 and one.steps.tolist() == [1, 1] and (one.status == "ok").all()
        assert torch.equal(one.images, draw(nfe=calls, denoise=False).images)
        assert two.nfe.tolist() == [2 * calls] * 2 and two.steps.tolist() == [1, 1]
    with pytest.raises(ValueError, match="the smallest that works is nfe=2"):
        m.draw(2, "auto", nfe=1, labels=1, guidance=2.0)


def test_no_label_is_the_null_label() -> None:
    network = conditional_model().network
    x, time = torch.randn(4, 1, 8, 8), torch.rand(4)
    assert torch.equal(network(x, time), network(x, time, torch.full((4,), 3)))
    by_label = [network(x, time, torch.full((4,), k)) for k in range(4)]
    assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(by_label) for b in by_label[:i])
    mixed = network(x, time, torch.tensor([2, 0, 3, 1]))
    torch.testing.assert_close(mixed, torch.stack([by_label[k][i] for i, k in enumerate([2, 0, 3, 1])]), rtol=1e-4, atol=1e-5)


def test_a_network_without_classes_has_the_weights_it_had() -> None:
    torch.manual_seed(0)
    plain = UNet(channels=1, **NETWORK)
    torch.manual_seed(0)
    with_classes = UNet(channels=1, **NETWORK, classes=5)
    shared = plain.state_dict()
    assert all(torch.equal(with_classes.state_dict()[name], weight) for name, weight in shared.items())
    assert set(with_classes.state_dict()) - set(shared) == {"labels.weight"}
    assert with_classes.labels.weight.shape == (6, 32)


@pytest.mark.parametrize("classes", [-1, 1.0, True, "3", 10**9])
def test_a_wrong_number_of_classes_is_refused(classes: Any) -> None:
    with pytest.raises(ValueError, match=r"classes=.*expected an integer from 0"):
        UNet(channels=1, **NETWORK, classes=classes)


@pytest.mark.parametrize(
    ("method", "options"),
    [("ddim", {"steps": 4}), ("rk45", {"rtol": 1e-2, "atol": 1e-2}), ("ddim", {"steps": 4, "parallel": 2}), ("dpmpp_2m", {"nfe": 6})],
)
@pytest.mark.parametrize("kind", ["labels", "guidance", "classifier"])
def test_an_image_is_a_function_of_its_label(kind: str, method: str, options: dict[str, Any]) -> None:
    """Whatever the labels around it, where rows leave the batch too.  (In double precision, so that convolutions round alike in every batch.)"""
    m = gen.Model(tiny_network().double(), tiny_card()) if kind == "classifier" else conditional_model(torch.float64)
    extra: dict[str, Any] = {"labels": {}, "guidance": {"guidance": 2.0}, "classifier": {"classifier": tiny_classifier(torch.float64), "classifier_scale": 5.0}}[kind]
    labels = [2, 0, 2, 1]
    drawn = m.draw(4, method, seed=1, labels=labels, **extra, **options)
    for i, label in enumerate(labels):
        alone = m.draw(1, method, seed=1, labels=label, sample_ids=[i], **extra, **options)
        torch.testing.assert_close(alone.images[0], drawn.images[i], rtol=0, atol=2e-3)
        other = m.sample(1, method, seed=1, labels=(label + 1) % 3, sample_ids=[i], **extra, **options)
        assert (other - drawn.images[i]).abs().max() > 2e-2  # far beyond the tolerance
        if "parallel" not in options:
            assert alone.nfe == drawn.nfe[i]
    assert drawn.ids == [0, 1, 2, 3]
    calls = m.draw(1, method, seed=1, labels=2, sample_ids=[0], **options) if kind != "classifier" else m.draw(1, method, seed=1, **options)
    if options.get("steps") and "parallel" not in options:
        assert drawn.nfe[0] == calls.nfe[0] * (1 if kind == "labels" else 2)


@pytest.mark.parametrize(
    ("method", "steps", "options", "leave"),
    [
        ("pc", None, {}, False), ("rk45", None, {}, True), ("rk45", 10, {}, False), ("rk45", None, {"nfe": 30}, False), ("rk45", None, {"grid": "karras"}, False),
        ("heun", None, {}, False), ("heun", None, {"rtol": 1e-3}, True),
        ("heun", None, {"atol": 1e-3}, True), ("adaptive", None, {}, True), ("ddim", 10, {"parallel": 4}, True), ("auto", None, {}, False),
        ("torchdiffeq:dopri5", None, {}, True), ("torchdiffeq:dopri5", 10, {}, False), (sd.methods.make_method("tsit5"), None, {}, True),
    ],
    ids=str,
)  # fmt: skip
def test_where_rows_leave_the_batch_is_known_before(method: Any, steps: int | None, options: dict[str, Any], leave: bool) -> None:
    assert rows_leave(method, steps, options) is leave


def test_an_interval_and_a_compiled_step_are_refused() -> None:
    """Calls are counted from the first compiled step, and here it is not like the others."""
    with pytest.raises(ValueError, match="compile=True"):
        conditional_model().sample(2, "ddim", steps=2, labels=0, guidance=gen.Guidance(2.0, (0.3, 3.0)), compile=True)


def test_guidance_pushes_away_from_the_score_of_no_class() -> None:
    m = conditional_model()
    x, t = torch.randn(2, 1, 8, 8), 0.5
    labels = torch.tensor([0, 1])
    guided = gen.classifier_free_guidance(m.class_score(labels), m.score, 3.0)
    torch.testing.assert_close(guided(x, t), m.score(x, t) + 3 * (m.class_score(labels)(x, t) - m.score(x, t)))
    torch.testing.assert_close(m.class_score(3)(x, t), m.score(x, t))


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.zeros(())), 0

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls += 1
        return x * self.weight


VE_CLASSIFIER = {"process": "ve"}


@pytest.mark.parametrize(
    ("classes", "arguments", "message"),
    [
        (3, {}, "labels are missing; expected integers from 0 to 3"), (3, {"labels": 4}, r"hold \[4\]"), (3, {"labels": [0]}, r"expected \(2,\), one a sample"),
        (3, {"labels": [0, 1, 2]}, "shape"), (3, {"labels": [0.5, 1.0]}, "type torch.float32"), (3, {"labels": 0, "guidance": -1.0}, "guidance=-1.0"),
        (3, {"labels": 3, "classifier": {}}, r"hold \[3\]"), (0, {"labels": 1}, "knows no classes; expected classifier="),
        (0, {"guidance": 2.0, "labels": 1}, "knows none"), (0, {"classifier": {}}, "labels are missing; expected integers from 0 to 2"),
        (0, {"classifier": {}, "labels": 3}, r"hold \[3\]"), (0, {"classifier": VE_CLASSIFIER, "labels": 1}, "expected one process"),
        (0, {"classifier": {"shape": [1, 16, 16]}, "labels": 1}, r"shape = \[1, 16, 16\]"), (0, {"classifier": {"data_range": [0.0, 1.0]}, "labels": 1}, "data_range"),
        (0, {"classifier": {}, "labels": 1, "classifier_scale": -2.0}, "classifier_scale=-2.0"), (0, {"classifier": nn.Identity(), "labels": 1}, "classifier is a Identity"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_labels_are_refused_before_any_call(classes: int, arguments: dict[str, Any], message: str) -> None:
    network = Counted()
    options = {"channels": 1, **NETWORK, **({"classes": classes} if classes else {})}
    m = gen.Model(network, tiny_card(network_options=options, **({"classes": classes} if classes else {})))
    if isinstance(arguments.get("classifier"), dict):
        arguments = {**arguments, "classifier": tiny_classifier(**arguments["classifier"])}
    with pytest.raises((ValueError, TypeError), match=message):
        m.sample(2, "ddim", steps=2, **arguments)
    assert network.calls == 0


def test_a_model_without_classes_has_no_class_score() -> None:
    with pytest.raises(ValueError, match="knows no classes"):
        tiny_model().class_score(0)


def test_a_model_with_classes_survives_its_folder(tmp_path) -> None:
    m = conditional_model()
    loaded = gen.load(m.save(tmp_path / "m"))
    assert loaded.classes == 3
    assert torch.equal(loaded.sample(2, "ddim", steps=3, seed=0, labels=[0, 2]), m.sample(2, "ddim", steps=3, seed=0, labels=[0, 2]))
    for classes in (2, None):
        card = json.loads((tmp_path / "m" / "card.json").read_text())
        card = {**card, "classes": classes} if classes else {k: v for k, v in card.items() if k != "classes"}
        (tmp_path / "m" / "card.json").write_text(json.dumps(card))
        with pytest.raises(gen.ModelFileError, match=r"classes = \d, and of its network"):
            gen.load(tmp_path / "m")


# -- classifiers on disk ---------------------------------------------------------------------------------------------------


def test_a_classifier_survives_its_folder(tmp_path) -> None:
    classifier, x = tiny_classifier(), torch.randn(3, 1, 8, 8)
    for dtype, tolerance in ((torch.float32, 0.0), (torch.float16, 1e-2)):
        loaded = gen.load_classifier(classifier.save(tmp_path / str(dtype), dtype))
        assert next(loaded.network.parameters()).dtype == torch.float32
        torch.testing.assert_close(loaded.logits(x, 0.4), classifier.logits(x, 0.4), rtol=0, atol=tolerance)
        assert loaded.card["sha256"]


def test_the_command_line_draws_classes(tmp_path) -> None:
    model, classifier = tiny_model().save(tmp_path / "m"), tiny_classifier().save(tmp_path / "c")

    def run(*arguments: object):
        words = ["sample", "--model", model, "--method", "ddim", "--steps", 2, "--n", 2, "--out", tmp_path / "a.png", *arguments]
        return CliRunner().invoke(app, [str(word) for word in words])

    result = run("--labels", "0,2", "--classifier", classifier, "--classifier-scale", 3)
    assert result.exit_code == 0, result.output
    said = json.loads((tmp_path / "a.json").read_text())
    assert (said["labels"], said["classifier_scale"], said["nfe"]) == ([0, 2], 3.0, [6, 6])
    assert said["classifier"] == {"name": "tiny", "sha256": gen.load_classifier(classifier).card["sha256"]}
    expected = gen.load(model).sample(2, "ddim", steps=2, seed=0, labels=[0, 2], classifier=gen.load_classifier(classifier), classifier_scale=3.0)
    with np.load(tmp_path / "a.npz") as file:
        assert np.array_equal(file["images"], expected.numpy())
    for arguments, message in ((["--labels", "3", "--classifier", classifier], "hold [3]"), (["--labels", "x"], "--labels 'x'"), (["--labels", "1"], "knows no classes")):
        refused = run(*arguments, "--overwrite")
        assert refused.exit_code == 2
        assert message in refused.output


def test_a_damaged_classifier_is_refused(tmp_path) -> None:
    folder = tiny_classifier().save(tmp_path / "c")
    weights = (folder / "classifier.safetensors").read_bytes()
    (folder / "classifier.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(gen.ModelFileError, match="SHA-256"):
        gen.load_classifier(folder)
    for change, message in (({"classes": 4}, "logits"), ({"network": "UNet"}, "'UNet' is not known"), ({"classes": 1}, "classes = 1"), ({"time": "never"}, "time='never'|'never'")):
        card = json.loads((folder / "classifier.json").read_text())
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d" / "classifier.safetensors").write_bytes(weights)
        (tmp_path / "d" / "classifier.json").write_text(json.dumps({**card, **change}))
        with pytest.raises(gen.ModelFileError, match=message):
            gen.load_classifier(tmp_path / "d")
    with pytest.raises(ValueError, match="Did you mean 'mnist_classifier'"):
        gen.load_classifier("mnist_clasifier")
    with pytest.raises(ValueError, match="is a classifier; expected load_classifier"):
        gen.load("mnist_classifier")


def test_the_embedded_classifier_makes_the_embedded_model_draw_digits(shared_data) -> None:
    from sdesolve_gen.data import read_data, scaled

    model, classifier = gen.load("mnist"), gen.load_classifier("mnist_classifier")
    images, labels = read_data(shared_data / "mnist" / "test.parquet")[:2]
    assert labels is not None
    for sigma, least in ((0.1, 0.97), (1.0, 0.92)):
        t = model.process.log_snr_inverse(-2 * math.log(sigma))
        assert classifier.logits(model.process.perturb(scaled(images[:500]), t, seed=0), t).argmax(1).eq(labels[:500]).double().mean() > least
    wanted = torch.arange(10)
    drawn = model.sample(10, "dpmpp_2m", steps=20, seed=0, labels=wanted, classifier=classifier, classifier_scale=4.0)
    assert classifier.logits(drawn, 0.05).argmax(1).eq(wanted).double().mean() >= 0.9  # not a judge of its own; benchmarks/class_conditional.py asks another


def test_a_model_of_one_class_stays_of_it(tmp_path) -> None:
    m = conditional_model()
    one = m.of_class(1)
    x, t = torch.randn(2, *m.shape, generator=torch.Generator().manual_seed(0)), 0.5
    before = one.score(x, t)
    assert one.label == 1 and not torch.equal(before, m.of_class(0).score(x, t))
    assert torch.equal(one.to(channels_last=True).score(x, t), before)
    assert not one.score.model.training
    with pytest.raises(ValueError, match="this model is of class 1 of another"):
        one.save(tmp_path)
    with pytest.raises(ValueError, match=r"expected m.of_class\(3\)"):
        m.inpaint(torch.zeros(1, *m.shape), torch.ones(m.shape[1:]))
    with pytest.raises(ValueError, match=r"label=\[1, 0\] are 2 classes; expected one, as in m.of_class\(1\)"):
        m.of_class([1, 0])


def test_one_class_in_a_sequence_is_that_class() -> None:
    m = conditional_model()
    for label in ([1], (1,), range(1, 2), torch.tensor([1]), np.array([1]), np.array(1), torch.tensor(1)):
        assert m.of_class(label).label == 1
    for wrong, message in (
        (["a", "b"], r"label=\['a', 'b'\] are 2 classes; expected one"), (["a"], "expected integers from 0 to"), ([], r"label=\[\] are 0 classes"), (True, "expected integers"),
        ("1", "expected integers from 0 to"), (np.array([1, 0]), "are 2 classes; expected one"), (None, "labels are missing"), ([1.0], "expected integers from 0 to"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            m.of_class(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="label=None, and the model 'tiny' knows no classes"):
        tiny_model().of_class(None)  # type: ignore[arg-type]


def test_a_model_of_a_class_says_so_where_it_is_asked_for_one() -> None:
    one = conditional_model().of_class(1)
    for call in (
        lambda: one.sample(2, "ddim", steps=2, labels=1), lambda: one.of_class(1), lambda: one.of_class([1]), lambda: one.class_score(1),
        lambda: one.sample(2, "ddim", steps=2, guidance=2.0),
    ):
        with pytest.raises(ValueError, match="is of class 1 already; expected no labels, or of_class of the model that it was made of"):
            call()


def test_a_scale_without_its_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match=r"classifier_scale=6.0 without a classifier"):
        gen.load("mnist").sample(2, "ddim", steps=2, classifier_scale=6.0)
    assert classifiers.embedded_classifiers() == ["mnist_classifier"]


def test_an_interval_that_acts_nowhere_is_told_or_refused() -> None:
    m = conditional_model()
    with pytest.warns(sd.SolveWarning, match=r"guidance between the noise levels 1e-05 and 2e-05 had no effect") as told:
        m.sample(4, "ddim", steps=2, labels=0, guidance=gen.Guidance(2.0, (1e-5, 2e-5)), batch_size=2)
    assert len(told) == 1 and told[0].filename == __file__
    with pytest.raises(ValueError, match=r"interval=\(10000000.0, 20000000.0\) is of no effect: .* has the noise levels up to"):
        m.sample(4, "ddim", steps=2, labels=0, guidance=gen.Guidance(2.0, (1e7, 2e7)))


def pictured(score: sd.Score) -> Any:
    """A function of images (B, 1, 1, 2) from one of states (B, 2)."""
    return lambda x, t: score(x.reshape(-1, 2), t).reshape(x.shape)


def test_a_restoration_of_a_class_draws_from_its_posterior() -> None:
    """The mixture's model with the exact classifier, and one that knows its classes: the posterior of the component, whose law is a Gaussian's, and not that of the mixture."""
    p = sd.VPSDE()
    parts = [pictured(sd.as_score(c.score(p), p, predicts="score")) for c in (*COMPONENTS, MIXTURE)]
    how: dict[str, Any] = {"process": p, "predicts": "score", "shape": (1, 1, 2), "data_range": (-4.0, 4.0)}
    plain = gen.wrap(parts[3], **how)
    told = gen.wrap(lambda x, t, labels=None: torch.stack([f(x, t) for f in parts])[torch.full((len(x),), 3) if labels is None else labels, torch.arange(len(x))], classes=3, **how)
    y, mask, draws = torch.full((1, 1, 1, 2), 0.3), torch.tensor([[1.0, 0.0]]), 1000
    exact = exam.posterior(COMPONENTS[1], [[1.0, 0.0]], y[0, 0, 0, :1], 0.3)
    spread = exact.covariance.diagonal().sqrt()
    exact_logits = exact_classifier(p)
    classifier = gen.Classifier(lambda x, t: exact_logits.logits(x.reshape(-1, 2), t), p, classes=3)
    one = plain.of_class(1, classifier=classifier)
    for m in (one, told.of_class(1), told.of_class(1, guidance=gen.Guidance(1.0)), plain.of_class(1, classifier=classifier).to(channels_last=False)):
        x = m.inpaint(y, mask, noise_std=0.3, method="mmps", draws=draws, steps=40, seed=0).images.reshape(draws, 2).double()
        assert float(((x.mean(0) - exact.mean) / spread).abs().max()) < 4 / draws**0.5
        assert float((x.std(0) / spread - 1).abs().max()) < 4 / (2 * draws) ** 0.5
    far, guided = (m.inpaint(y, mask, noise_std=0.3, draws=4, steps=40, seed=0).images for m in (one, plain.of_class(1, classifier=classifier, classifier_scale=2.5)))
    free = told.of_class(1, guidance=2.5).inpaint(y, mask, noise_std=0.3, draws=4, steps=40, seed=0).images
    torch.testing.assert_close(free, guided, rtol=1e-3, atol=1e-3)  # the classifier that two scores imply
    assert float((free - far).abs().max()) > 0.05


def test_what_is_the_models_is_not_the_restorations() -> None:
    m, x, mask = conditional_model(), torch.zeros(1, 1, 8, 8), torch.ones(8, 8)
    for options in ({"labels": 1}, {"guidance": 2.0}, {"classifier": tiny_classifier()}):
        with pytest.raises(ValueError, match=r"is for the model.*expected m.of_class\(3, guidance=2.0\)"):
            m.of_class(1).inpaint(x, mask, **options)
    with pytest.raises(ValueError, match=r"guidance=2\.0 is for a model that knows classes"):
        gen.load("mnist").of_class(1, guidance=2.0)


def test_attention_in_a_classifier_has_the_second_derivative_that_a_restoration_asks_for() -> None:
    model = gen.load("mnist").of_class(3, classifier=gen.load_classifier("mnist_classifier"))
    half = torch.ones(28, 28)
    half[:, 14:] = 0
    with pytest.warns(sd.SolveWarning, match="far from the measurement"):  # two steps are too few
        assert model.inpaint(torch.zeros(1, 1, 28, 28), half, noise_std=0.1, steps=2, seed=0, method="pigdm").images.isfinite().all()
