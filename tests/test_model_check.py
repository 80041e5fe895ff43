"""check_model accepts exact models under their own name, and refuses every other claim, naming the true one.

The data are a mixture of three Gaussians in the plane, whose score is known at every noise level of every process.
"""

from __future__ import annotations

import math

import pytest
import torch
from problems import mixture_score
from torch import Tensor, nn

from sdesolve import EDM, VESDE, VPSDE, Cosine, Process, RectifiedFlow, SubVPSDE, exam
from sdesolve.model_check import ModelCheckError, check_model
from sdesolve.scores import PARAMETERISATIONS, TIME_CONVENTIONS, Model, TimeConvention, as_score

torch.set_num_threads(1)

PROCESSES: dict[str, Process] = {
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "ve": VESDE(),
    "edm": EDM(),
    "cosine": Cosine(),
    "flow": RectifiedFlow(),
}
TIMES: list[TimeConvention] = [*TIME_CONVENTIONS, 1000]
TARGET = exam.gaussian_mixture([1.0, 1.0, 1.0], [[-1.0, 0.4], [0.9, 0.9], [0.2, -0.8]], [0.15, 0.15, 0.15])
X0 = TARGET.sample(1024, seed=3)


def t_of(p: Process, time: TimeConvention, value: Tensor) -> Tensor:
    """The t of which a network was told ``value``."""
    value = value.double()
    if isinstance(time, int):
        return value * p.horizon / (time - 1)
    if time == "sigma":
        return p.log_snr_inverse(-2 * value.log())
    if time == "log_sigma/4":
        return p.log_snr_inverse(-8 * value)
    return value / 999 if time == "t*999" else value


def exact(
    p: Process,
    predicts: str,
    time: TimeConvention = "continuous",
    *,
    factor: float = 1.0,
    noise: float = 0.0,
) -> Model:
    """``factor`` times what a perfect network of this kind returns, each element wrong by a relative ``noise``."""
    score = mixture_score(TARGET, p)

    def model(x: Tensor, value: Tensor) -> Tensor:
        t = t_of(p, time, value)
        on_x, on_output, scale = _columns(p, predicts, t)
        state = x.double() / scale
        out = (score(state, t) - on_x * state) / on_output
        if noise:
            out = out * (1 + noise * torch.sin(1e4 * state.sum(-1, keepdim=True) + torch.arange(x.shape[-1])) * math.sqrt(2))
        return (factor * out).to(x.dtype)

    return model


def _columns(p: Process, predicts: str, t: Tensor) -> list[Tensor]:
    defaults = zip(PARAMETERISATIONS[predicts](p, t, 0.5), (0.0, 1.0, 1.0), strict=True)
    return [torch.as_tensor(default if c is None else c).to(t).expand(len(t))[:, None] for c, default in defaults]


def refusal(model: Model, p: Process, predicts: str, time: TimeConvention = "continuous", times: int = 3) -> ModelCheckError:
    with pytest.raises(ModelCheckError) as caught:
        check_model(model, p, X0, predicts=predicts, time=time, times=times, batch_size=len(X0))
    return caught.value


def assert_names(error: ModelCheckError, p: Process, model: Model, predicts: str, time: TimeConvention) -> None:
    """The proposed line is the true convention, or one that gives the same score."""
    best = error.check.best
    assert best is not None and best.factor == 1 and f'as_score(model, process, predicts="{best.predicts}", time=' in str(error), error
    t = 0.6 * p.T**0.5
    x = p.perturb(X0[:8].double(), t, seed=5)
    proposed, true = (as_score(model, p, predicts=a, time=b)(x, t) for a, b in ((best.predicts, best.time), (predicts, time)))
    torch.testing.assert_close(proposed, true, rtol=0.02, atol=0.02)


# -- the claim is right --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("predicts", PARAMETERISATIONS)
def test_exact_models_pass_under_their_own_name(process: str, predicts: str) -> None:
    p = PROCESSES[process]
    for time in TIMES:
        check = check_model(exact(p, predicts, time), p, X0, predicts=predicts, time=time, times=3, batch_size=len(X0))
        assert check.ok and check.best == (predicts, time, 1.0, check.error)
        assert abs(check.slope - 1) < 4 * check.slope_se + 1e-6
        assert check.error < 0.9  # the mixture is not Gaussian, and the model knows it


def test_the_table_is_right_where_the_answer_is_known() -> None:
    """Gaussian data of variance V: the optimal loss is SNR V/(1 + SNR V), that of the affine guess, and the slope is 1."""
    p = VPSDE()
    x0 = 0.7 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    score = lambda x, t: -x / (p.sigma(t) ** 2 + 0.49 * p.alpha(t) ** 2)[:, None]  # noqa: E731
    check = check_model(score, p, x0, predicts="score", batch_size=4000)
    for level in check.levels:
        snr_v = 0.49 * float(p.log_snr(level.t).exp())
        assert abs(level.loss / (snr_v / (1 + snr_v)) - 1) < 0.06
        assert abs(level.affine / level.loss - 1) < 0.01
        assert abs(level.slope - 1) < 4 * level.se < 1
    assert abs(check.error - 1) < 0.01


def test_standard_errors_are_those_of_repeated_draws() -> None:
    p = VPSDE()
    checks = [check_model(exact(p, "epsilon"), p, TARGET.sample(64, seed=s), predicts="epsilon", seed=s, times=3) for s in range(30)]
    z = torch.tensor([[(level.slope - 1) / level.se for level in c.levels] + [(c.slope - 1) / c.slope_se] for c in checks])
    assert z.mean(0).abs().max() < 4 / math.sqrt(30)
    assert (z.std(0) > 0.7).all() and (z.std(0) < 1.4).all()


@pytest.mark.parametrize("predicts", PARAMETERISATIONS)
def test_a_slightly_imperfect_network_passes(predicts: str) -> None:
    for p in (VPSDE(), VESDE()):
        assert check_model(exact(p, predicts, noise=0.03), p, X0, predicts=predicts, batch_size=len(X0)).ok


def test_few_rows_give_no_false_alarm() -> None:
    p = VPSDE()
    for seed in range(15):
        assert check_model(exact(p, "v"), p, TARGET.sample(2, seed=seed), predicts="v", seed=seed, times=3).ok


def test_conventions_that_the_process_cannot_tell_apart_pass_alike() -> None:
    edm = EDM()
    for claimed, true in (("continuous", "sigma"), ("sigma", "continuous")):
        assert check_model(exact(edm, "edm", true), edm, X0, predicts="edm", time=claimed, batch_size=len(X0)).ok
    assert check_model(exact(edm, "epsilon"), edm, X0, predicts="flow", batch_size=len(X0)).ok  # dx/dt = eps where sigma = t
    x0 = torch.randn(512, 4, generator=torch.Generator().manual_seed(0))
    for time in TIMES:  # standard normal data: the score -x is that of every time
        assert check_model(lambda x, t: -x, VPSDE(), x0, predicts="score", time=time, times=4, batch_size=512).ok
    assert check_model(lambda x, t: 0 * x, VPSDE(), x0, predicts="v", batch_size=512).ok  # and v is zero: there is no slope to measure


def test_a_network_that_is_not_trained_out_passes_under_its_own_name_alone() -> None:
    """45 % too small at some times: the average slope is far from 1, and the spread over times says that it means little."""
    p = VPSDE()
    right = exact(p, "v")

    def model(x: Tensor, t: Tensor) -> Tensor:
        return right(x, t) * torch.where((t > 0.1) & (t < 0.2), 0.55, 1.0)[:, None].to(x)

    check = check_model(model, p, X0, predicts="v", batch_size=len(X0))
    assert abs(check.slope - 1) > 0.05 + 4 * check.slope_se
    for predicts in PARAMETERISATIONS:
        if predicts != "v":
            assert refusal(model, p, predicts, times=8).check.best[:3] == ("v", "continuous", 1.0)  # type: ignore[index]


# -- the claim is wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("true", PARAMETERISATIONS)
def test_a_wrong_parameterisation_is_refused_and_the_true_one_named(process: str, true: str) -> None:
    p = PROCESSES[process]
    model = exact(p, true)
    for claimed in PARAMETERISATIONS:
        if claimed != true and not (process == "edm" and {claimed, true} == {"epsilon", "flow"}):
            assert_names(refusal(model, p, claimed), p, model, true, "continuous")


@pytest.mark.parametrize("true", TIMES)
def test_a_wrong_time_is_refused_and_the_true_one_named(true: TimeConvention) -> None:
    p = VPSDE()
    model = exact(p, "epsilon", true)
    for claimed in TIMES:
        if claimed != true and {claimed, true} != {"t*999", 1000}:  # the same numbers, but for rounding
            assert_names(refusal(model, p, "epsilon", claimed), p, model, "epsilon", true)


@pytest.mark.parametrize("process", ["vp", "ve"])
@pytest.mark.parametrize("predicts", PARAMETERISATIONS)
def test_a_wrong_sign_or_scale_is_refused_and_the_factor_measured(process: str, predicts: str) -> None:
    p = PROCESSES[process]
    for factor in (-1.0, 0.5, 0.8, 1.25, 2.0):
        error = refusal(exact(p, predicts, factor=factor), p, predicts, times=8)
        best = error.check.best
        assert best is not None and (best.predicts, best.time) == (predicts, "continuous"), (factor, error)
        assert abs(best.factor * factor - 1) < 0.1
        line = "lambda x, t: -model(x, t)" if factor == -1 else f"lambda x, t: {best.factor:.3g} * model(x, t)"
        assert f'as_score({line}, process, predicts="{predicts}", time="continuous"' in str(error)


def test_a_wrong_sign_under_another_name_is_found() -> None:
    p = VPSDE()
    best = refusal(exact(p, "v", "t*999", factor=-1), p, "x0").check.best
    assert best is not None and best[:3] == ("v", "t*999", -1.0)


def test_of_equal_conventions_the_nearest_to_the_claim_is_named() -> None:
    p = EDM()
    best = refusal(exact(p, "flow", "continuous"), p, "flow", "t*999").check.best
    assert best is not None and best[:3] == ("flow", "continuous", 1.0)  # epsilon, and the time "sigma", are as good


def test_what_fits_nothing_is_said_to_fit_nothing() -> None:
    p = VPSDE()
    shifted = exact(p, "epsilon")
    models: dict[str, Model] = {
        "noise": lambda x, t: torch.sin(1e3 * x),
        "shifted": lambda x, t: shifted(x - 1, t),
    }
    for name, model in models.items():
        error = refusal(model, p, "epsilon")
        assert error.check.best is None, (name, error)
        assert "fits no known convention" in str(error) and "range [" in str(error) and "model.eval()" not in str(error)


def test_a_model_that_says_nothing_is_refused() -> None:
    error = refusal(lambda x, t: 0 * x, VPSDE(), "epsilon")
    assert "above that of an isotropic Gaussian guess" in str(error) and error.check.best is None


def test_a_module_in_training_mode_is_told_so_and_left_as_it_is() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return 50 + 0 * x

    module = Constant()
    assert "model.eval()" in str(refusal(module, VPSDE(), "epsilon"))
    assert module.training and "model.eval()" not in str(refusal(module.eval(), VPSDE(), "epsilon"))


def test_an_output_that_is_not_finite_is_refused_with_what_fits() -> None:
    p = VPSDE()
    error = refusal(exact(p, "epsilon"), p, "epsilon", lambda t: t + math.nan)
    assert "not finite" in str(error) and error.check.best is not None and error.check.best[:2] == ("epsilon", "continuous")


# -- networks that fail, and arguments ------------------------------------------------------------------------------------


def test_a_network_that_refuses_other_times_does_not_break_the_search() -> None:
    p = VPSDE()
    right = exact(p, "epsilon", 1000)

    def embedding(x: Tensor, index: Tensor) -> Tensor:
        torch.nn.functional.embedding(index, torch.zeros(1000, 1))  # raises unless an index in range
        return right(x, index)

    check = check_model(embedding, p, X0, predicts="epsilon", time=1000, batch_size=len(X0))
    assert check.ok and [c.error for c in check.candidates if c.time != 1000] == [math.inf] * 48
    assert_names(refusal(embedding, p, "x0", 1000), p, embedding, "epsilon", 1000)
    with pytest.raises(RuntimeError, match="indices"):
        check_model(embedding, p, X0, predicts="epsilon")  # under the claim it propagates
    with pytest.raises(IndexError):
        check_model(embedding, p, X0, predicts="epsilon", time=2000)


def test_a_network_that_refuses_a_scaled_input_is_still_measured_under_the_claim() -> None:
    p = VESDE()
    right = exact(p, "epsilon")

    def large_inputs_only(x: Tensor, t: Tensor) -> Tensor:
        if t[0] > 0.7 and x.std() < 1.5:  # at that time x is 4 or more, unless scaled
            raise RuntimeError("too small")
        return right(x, t)

    check = check_model(large_inputs_only, p, X0, predicts="epsilon", batch_size=len(X0))
    assert check.ok and {c.error for c in check.candidates if (c.predicts, c.time) == ("edm", "continuous")} == {math.inf}


def test_integer_times_are_probed_at_the_models_own_levels() -> None:
    p = VPSDE()
    check = check_model(exact(p, "epsilon", 12), p, X0, predicts="epsilon", time=12, batch_size=len(X0))
    assert all(abs(level.t * 11 - round(level.t * 11)) < 1e-9 for level in check.levels)


def test_the_cost_is_counted_and_no_graph_is_kept() -> None:
    p, calls = VPSDE(), []
    right = exact(p, "epsilon")
    weight = torch.ones((), requires_grad=True)

    def model(x: Tensor, t: Tensor) -> Tensor:
        out = weight * right(x, t)
        calls.append((len(x), out.requires_grad))
        return out

    check_model(model, p, X0[:100], predicts="epsilon", batch_size=64, times=4)
    assert len(calls) == 10 * 4 * 2 and {rows for rows, _ in calls} == {64, 36} and not any(graph for _, graph in calls)


def test_the_answer_does_not_depend_on_the_batches_but_on_the_seed() -> None:
    p = VPSDE()
    one, other, reseeded = (
        check_model(exact(p, "v"), p, X0[:50], predicts="v", batch_size=size, seed=seed) for size, seed in ((7, 0), (50, 0), (50, 1))
    )
    assert abs(one.slope - other.slope) < 1e-5 < abs(one.slope - reseeded.slope)


def test_half_precision_data_are_measured_in_single() -> None:
    p, half = VPSDE(), X0[:128].to(torch.bfloat16)
    one, other = (check_model(exact(p, "epsilon"), p, x0, predicts="epsilon", times=3) for x0 in (half, half.float()))
    assert one == other


def test_the_report_reads() -> None:
    p = VPSDE()
    text = str(check_model(exact(p, "epsilon"), p, X0, predicts="epsilon", batch_size=len(X0)))
    assert (
        'predicts="epsilon", time="continuous": as claimed' in text and "slope" in text and len(text.splitlines()) == 3 + 1 + 8 + 1 + 1 + 6
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x0": [1.0]}, "x0 is a list; expected data"),
        ({"x0": torch.zeros(4, 2, dtype=torch.int64)}, r"x0 is a \(4, 2\) torch.int64 tensor; expected"),
        ({"x0": torch.zeros(4)}, "expected data of shape"),
        ({"x0": torch.randn(1, 2)}, "at least 2 rows"),
        ({"x0": torch.randn(4, 0)}, "at least 1 element"),
        ({"x0": torch.tensor([[0.0, 1.0], [math.nan, 0.0]])}, "not finite in 1 of 2 rows .first: row 1."),
        ({"x0": torch.ones(4, 2)}, "x0 is the constant 1"),
        ({"predicts": "eps"}, "Did you mean"),
        ({"time": "contin"}, "Did you mean"),
        ({"sigma_data": 0.0}, "sigma_data=0.0; expected"),
        ({"times": 1}, "times=1; expected an integer >= 2"),
        ({"batch_size": 0}, "batch_size=0; expected an integer >= 1"),
    ],
)
def test_arguments_are_validated_before_the_first_call(arguments: dict[str, object], message: str) -> None:
    def model(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("called")

    with pytest.raises(ValueError, match=message):
        check_model(model, VPSDE(), **{"x0": X0, "predicts": "epsilon", **arguments})  # type: ignore[arg-type]
