"""A solver card holds a linear sampler whole: what it rebuilds gives the same samples, and what is no card is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from convergence import TwoModes
from problems import PROCESSES, solvable

import sdesolve as sd
from sdesolve.grids import log_snr
from sdesolve.methods import METHODS, make_method
from sdesolve.methods.linear import LinearSampler

LINEAR = [name for name in METHODS if isinstance(make_method(name), LinearSampler)]
OPTIONS = [
    *((name, {}) for name in LINEAR),
    ("ddim", {"eta": 1.0}),
    ("dpmpp_2m", {"variant": "heun"}),
    ("dpmpp_3m", {"published": True}),
    ("unipc", {"order": 3, "variant": "bh1"}),
    ("deis", {"order": 4, "variant": "rho"}),
    ("deis", {"variant": "log_rho", "published": True}),
]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("method", "options"), OPTIONS)
def test_a_method_rebuilt_from_its_card(method: str, options: dict[str, Any], process: str, tmp_path: Path) -> None:
    """Through a file; also where every row has its time, which is where a compiled step looks its numbers up."""
    p = PROCESSES[process]
    grid = log_snr()(p, p.T, p.eps, 9)
    card = sd.solver_card(method, p, grid, **options)
    assert card.b.shape == (len(card.a), len(card.a)) and len(card.a) == 9 * make_method(method, **options).facts.evals
    card.save(tmp_path / "card.json")
    card = sd.SolverCard.load(tmp_path / "card.json")
    problem, x = solvable(method, TwoModes(p).score, p), p.prior((5, 2), seed=0, dtype=torch.float64)
    problem = p.reverse(TwoModes(p).score) if card.facts.kinds else problem
    direct = sd.solve(problem, x, method, grid=grid, seed=1, save="all", **options)
    rebuilt = sd.solve(problem, x, card, seed=1, save="all")
    assert torch.allclose(rebuilt.xs, direct.xs, rtol=1e-12, atol=1e-12) and rebuilt.nfe == direct.nfe
    for place in (0, 3, 8):
        t = grid.ts[place]
        by_float, by_tensor = (card.row(p, times, 0.0) for times in ([t] * card.memory, [torch.full((5,), t, dtype=torch.float64)] * card.memory))
        assert by_tensor.on_x.tolist() == [by_float.on_x] * 5 and [w.tolist()[4] for w in by_tensor.on_outputs] == by_float.on_outputs


def test_numbers_of_a_card_have_a_gradient() -> None:
    """By which coefficients are learned; against a difference quotient."""
    p = PROCESSES["VP"]
    card, x = sd.solver_card("dpmpp_2m", p, [1.0, 0.6, 0.3, 1e-3]), p.prior((4, 2), seed=0, dtype=torch.float64)

    def end(b: torch.Tensor, gradient: str | None = None) -> torch.Tensor:
        return sd.solve(p.probability_flow(TwoModes(p).score), x, card.replace(b=b), gradient=gradient).x.square().sum()

    b, nudge = card.b.clone().requires_grad_(), torch.zeros(3, 3, dtype=torch.float64)
    nudge[1, 0] = 1e-6
    (slope,) = torch.autograd.grad(end(b, "backprop"), b)
    assert float(slope[1, 0]) == pytest.approx(float(end(card.b + nudge) - end(card.b - nudge)) / 2e-6, rel=1e-6)
    assert float(slope[0, 1]) == 0.0


def test_a_card_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdesolve._loops import compiled

    torch.compiler.reset()
    whole = torch.compile(compiled._step, fullgraph=True, backend="eager")
    monkeypatch.setattr(compiled, "_compiled", lambda: whole)
    p = PROCESSES["VP"]
    for method in ("unipc", "dpmpp_2s"):
        card, x = sd.solver_card(method, p, [1.0, 0.6, 0.3, 1e-3]), p.prior((4, 2), seed=0, dtype=torch.float64)
        plain, traced = (sd.solve(p.probability_flow(lambda x, t: -x), x, card, compile=compile).x for compile in (False, True))
        assert torch.allclose(plain, traced, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": [1.0, 1.0]}, "a has shape"),
        ({"b": [[0.0, 0.0, 1.0], [0.0] * 3, [0.0] * 3]}, r"b\[0, 2\] = 1.0"),
        ({"c": [0.0, float("nan"), 0.0]}, "c has entries that are not finite"),
        ({"ts": [1.0, 0.6, 0.6, 0.1]}, r"grid\[2\]"),
        ({"ts": "now"}, "expected numbers"),
        ({"output": "score"}, "'score' is not known"),
        ({"calls": 2}, "expected a multiple"),
        ({"calls": 3}, "outputs of earlier steps|expected a multiple"),
        ({"calls": 0}, "calls=0"),
    ],
)
def test_what_is_no_card_is_refused(change: dict[str, Any], message: str) -> None:
    card = sd.solver_card("dpmpp_2m", PROCESSES["VP"], [1.0, 0.6, 0.3, 1e-3])
    if change == {"calls": 3}:
        change = {"calls": 3, "ts": torch.linspace(1.0, 0.1, 7), "a": torch.ones(6), "b": torch.ones(6, 6).tril(), "c": torch.zeros(6)}
    with pytest.raises(ValueError, match=message):
        card.replace(**change)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"format": "other"}', "\x00"])
def test_a_file_that_holds_no_card_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"card\.json"):
        sd.SolverCard.load(tmp_path / "card.json")


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "an integer beyond the floats": ({"a": [10**400]}, "a=.*expected numbers"),
    "one number for the times": ({"ts": 1.0}, "ts=1.0; expected numbers"),
    "truth values": ({"c": [True]}, "c=.*expected numbers"),
    "text": ({"b": [["0"]]}, "b=.*expected rows of numbers"),
    "a time before 0": ({"ts": [1.0, -0.5]}, "expected a list of times > 0"),
    "calls beyond the floats": ({"calls": 10**400}, "expected a multiple"),
    "output that is no text": ({"output": []}, "is not known as output"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_is_trusted_with_nothing(case: str, tmp_path: Path) -> None:
    path, (change, message) = tmp_path / "card.json", HOSTILE[case]
    sd.solver_card("ddim", PROCESSES["VP"], [1.0, 0.5]).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        sd.SolverCard.load(path)


def test_a_file_that_is_deep_large_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "card.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not JSON"):
        sd.SolverCard.load(path)
    with pytest.raises(ValueError, match="is not a file"):
        sd.SolverCard.load(tmp_path)
    monkeypatch.setattr(sys.modules["sdesolve.solver_card"], "LARGEST_FILE", 100)
    with pytest.raises(ValueError, match="at most 100 bytes"):
        sd.SolverCard.load(path)
    with pytest.raises(ValueError, match="expected at most 100"):
        sd.solver_card("ddim", PROCESSES["VP"], [1.0, 0.5]).save(tmp_path / "other.json")


def test_an_entry_more_or_less_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    sd.solver_card("ddim", PROCESSES["VP"], [1.0, 0.5]).save(path)
    good = json.loads(path.read_text())
    for bad in ({**good, "extra": 1}, {k: v for k, v in good.items() if k != "c"}, {**good, "process": 3}):
        path.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=r"expected the"):
            sd.SolverCard.load(path)


@pytest.mark.parametrize("method", ["ddim", "dpmpp_2m", "dpmpp_2s"])
def test_a_card_predicts_on_its_own_grid(method: str) -> None:
    p = PROCESSES["VP"]
    card, x = sd.solver_card(method, p, [1.0, 0.5, 0.2, 0.1]), p.prior((4, 2), seed=0, dtype=torch.float64)
    by_card = sd.solve(p.reverse(TwoModes(p).score), x, "pc", predictor=card, seed=1, interval=(1.0, 0.1))
    by_name = sd.solve(p.reverse(TwoModes(p).score), x, "pc", predictor=method, seed=1, grid=[1.0, 0.5, 0.2, 0.1], interval=(1.0, 0.1))
    assert torch.allclose(by_card.x, by_name.x, rtol=1e-10, atol=1e-10) and by_card.nfe == by_name.nfe


def test_a_card_within_a_method_on_another_grid_is_refused_before_the_first_call() -> None:
    p, seen = PROCESSES["VP"], list[int]()
    card, problem = sd.solver_card("ddim", p, [1.0, 0.5, 1e-3]), p.reverse(lambda x, t: seen.append(1) or -x)
    with pytest.raises(ValueError, match="its own grid, of 2 steps"):
        sd.solve(problem, torch.ones(2, 2), "pc", predictor=card, steps=3)
    with pytest.raises(ValueError, match=r"solver is a SolverCard.*expected another ODE method"):
        sd.solve(problem, torch.ones(2, 2), "restart", solver=card, steps=3)
    assert not seen


def test_a_card_in_the_wrong_place_is_refused() -> None:
    vp, other = PROCESSES["VP"], sd.VPSDE(beta_max=19.0)
    card, x = sd.solver_card("ddim", vp, [1.0, 0.5, 1e-3]), torch.ones(2, 2)
    with pytest.raises(ValueError, match="the card is for VPSDE"):
        sd.solve(other.probability_flow(lambda x, t: -x), x, card)
    for how in ({"steps": 3}, {"grid": "uniform"}, {"nfe": 4}, {"interval": (1.0, 0.2)}):
        with pytest.raises(ValueError, match="its own grid"):
            sd.solve(vp.probability_flow(lambda x, t: -x), x, card, **how)
    with pytest.raises(ValueError, match="not linear"):
        sd.solver_card("heun", vp, [1.0, 0.5])
    with pytest.raises(ValueError, match="expected times in"):
        sd.solver_card("ddim", vp, [1.0, 0.0])
