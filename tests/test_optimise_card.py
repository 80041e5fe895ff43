"""Learned weights: nearer to the flow than a method's own on draws that the fit has not seen, and never worse for those that judged."""

from pathlib import Path
from typing import Any

import pytest
import torch

import sdesolve as sd
from sdesolve import exam

LAWS = {"2d": exam.mixture_2d(), "64d": exam.mixture_64d()}


def problem(law: str, process: sd.Process | None = None) -> sd.ReverseSDE:
    process = process or sd.VPSDE()
    return process.reverse(LAWS[law].score(process))


def distance(found: sd.ReverseSDE, method: str | sd.Stepper, grid: sd.OptimisedGrid, shape: tuple[int, ...]) -> float:
    x = found.process.prior((1000, *shape), seed=77)
    ends = sd.solve(found, x, "tsit5", rtol=1e-5, atol=1e-5, denoise=True).x
    return float((sd.solve(found, x, method, grid=grid).x - ends).flatten(1).square().mean(1).sqrt().mean())


@pytest.mark.parametrize(("law", "method", "nfe", "gain"), [("2d", "ipndm", 4, 1.5), ("2d", "unipc", 6, 1.3), ("64d", "unipc", 6, 1.3), ("64d", "dpmpp_2m", 6, 1.2)])
def test_they_beat_the_method_s_own_on_fresh_draws(law: str, method: str, nfe: int, gain: float) -> None:
    found, shape = problem(law), LAWS[law].event
    grid = sd.optimize_grid(found, method, nfe=nfe, shape=shape)
    fitted = sd.optimize_card(found, grid, shape=shape)
    plain, learned = distance(found, method, grid, shape), distance(found, fitted.card, grid, shape)
    assert learned < plain / gain, (plain, learned)
    assert fitted.error <= fitted.baseline


@pytest.mark.parametrize(("law", "nfe", "gain"), [("2d", 5, 2.0), ("64d", 5, 2.5)])
def test_over_a_range_they_beat_auto_and_optimised_nodes_with_learned_weights(law: str, nfe: int, gain: float) -> None:
    found, shape = problem(law), LAWS[law].event
    span = sd.Range.of(LAWS[law].sample(8192, seed=4))
    fitted = sd.optimize_card(found, span, nfe=nfe, shape=shape, samples=1024)
    x = found.process.prior((1000, *shape), seed=77)
    ends = sd.solve(found, x, "tsit5", rtol=1e-5, atol=1e-5, denoise=True, interval=sd.Range(span.data_std, span.data_mean, 1e9, 1e-9, span.directions)).x

    def distance(method: str | sd.Stepper, **how: Any) -> float:
        solution = sd.solve(found, x, method, **how)
        assert solution.nfe == nfe
        return float((solution.x - ends).square().mean(1).sqrt().mean())

    nodes = sd.optimize_grid(found, "deis", variant="log_rho", nfe=nfe, shape=shape, data=span)
    searched = sd.optimize_card(found, nodes, shape=shape, samples=1024)
    learned = distance(fitted.card, grid=fitted.grid)
    assert learned < distance("auto", nfe=nfe, interval=span) / gain
    assert learned < distance(searched.card, grid=nodes)
    assert fitted.error == pytest.approx(learned, rel=0.5) and fitted.error < fitted.baseline == fitted.grid.baseline
    assert fitted.grid.calls > 300 and fitted.grid.rows > 100_000


@pytest.mark.parametrize("nfe", [6, 14])
def test_over_a_range_the_fit_begins_with_auto(nfe: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its nodes and weights are what there is after no round; what the fit cost is on the grid, and the grid is kept as any other."""
    monkeypatch.setattr("sdesolve._gauss_newton.GaussNewton.refined", lambda search, z, advance: z)
    found, span = problem("2d"), sd.Range.of(LAWS["2d"].sample(4096, seed=4))
    fitted = sd.optimize_card(found, span, nfe=nfe, shape=(2,), samples=32)
    x = found.process.prior((50, 2), seed=1)
    own = sd.solve(found, x, fitted.card, grid=fitted.grid).x
    torch.testing.assert_close(own, sd.solve(found, x, "auto", nfe=nfe, interval=span).x, rtol=1e-3, atol=1e-3)
    assert fitted.error == fitted.baseline == fitted.grid.error and fitted.grid.nfe == nfe and fitted.grid.rows > 48 * nfe
    assert sd.OptimisedGrid.load(fitted.grid.save(tmp_path / "grid.json")) == fitted.grid


def test_errors_are_in_units_of_the_data() -> None:
    """What the weights start from is about as far away on other draws, where the standard deviation is not 1."""
    law = exam.Mixture([0.3, 0.7], [exam.Gaussian([6.0, 0.0], std=0.5), exam.Gaussian([-4.0, 2.0], std=1.0)])
    found = sd.VPSDE().reverse(law.score(sd.VPSDE()))
    grid = sd.optimize_grid(found, "ddim", nfe=5, shape=(2,))
    fitted = sd.optimize_card(found, grid, shape=(2,))
    assert grid.data_std > 3
    assert fitted.baseline == pytest.approx(distance(found, "ddim", grid, (2,)), rel=0.3)


def test_a_card_starts_and_ends_as_its_grid_says() -> None:
    found = problem("2d", sd.RectifiedFlow())
    grid = sd.optimize_grid(found, "ddim", nfe=5, shape=(2,))
    same = sd.solver_card("ddim", found.process, sd.Grid(grid.ts))
    x = found.process.prior((50, 2), seed=1)
    named, carded = (sd.solve(found, x, method, grid=grid) for method in ("ddim", same))
    torch.testing.assert_close(carded.x, named.x, rtol=1e-5, atol=1e-5)
    assert carded.nfe == named.nfe == 5


def test_a_card_that_starts_or_ends_elsewhere_wants_its_grid_or_its_interval() -> None:
    """As the same times do; a draw of the prior is no state of its first node, and what it leaves at the last is no draw of the data."""
    found, seen = sd.VPSDE().probability_flow(lambda x, t: seen.append(1) or -x), list[int]()
    x = torch.ones(2, 2)
    for ts in ([0.5, 0.2, 1e-3], [1.0, 0.2, 0.1]):
        card = sd.solver_card("ddim", found.process, ts)
        for method, how in ((card, {}), (card, {"grid": sd.Grid(tuple(ts))}), ("pc", {"predictor": card}), ("ddim", {"grid": ts})):
            with pytest.raises(ValueError, match=rf"expected .*interval=\({ts[0]}, {ts[-1]}\)"):
                sd.solve(found.process.reverse(found.score), x, method, **how)
        assert not seen
        assert sd.solve(found, x, card, interval=(ts[0], ts[-1])).nfe == len(seen) == 2
        seen.clear()


def test_a_fitted_card_that_was_saved(tmp_path: Path) -> None:
    found = problem("2d")
    grid = sd.optimize_grid(found, "unipc", nfe=4, shape=(2,), samples=64)
    fitted = sd.optimize_card(found, grid, shape=(2,), samples=64)
    fitted.card.save(tmp_path / "card.json")
    grid.save(tmp_path / "grid.json")
    x = found.process.prior((8, 2), seed=1)
    again = sd.solve(found, x, sd.SolverCard.load(tmp_path / "card.json"), grid=sd.OptimisedGrid.load(tmp_path / "grid.json"))
    assert torch.equal(again.x, sd.solve(found, x, fitted.card, grid=grid).x)
    assert torch.equal(fitted.card.ts, torch.tensor(grid.ts, dtype=torch.float64))


def test_the_same_seed_the_same_card() -> None:
    found = problem("2d")
    grid = sd.optimize_grid(found, "ddim", nfe=4, shape=(2,), samples=32)
    one, two = (sd.optimize_card(found, grid, shape=(2,), samples=32).card.b for _ in range(2))
    assert torch.equal(one, two)


def test_what_does_not_fit_is_refused() -> None:
    found = problem("2d")
    grid = sd.optimize_grid(found, "ddim", nfe=4, shape=(2,), samples=32)
    with pytest.raises(ValueError, match="grid was optimised for VPSDE"):
        sd.optimize_card(problem("2d", sd.VESDE()), grid, shape=(2,))
    with pytest.raises(TypeError, match=r"grid is a list; expected sd.Range.of\(images\), or what sd.optimize_grid"):
        sd.optimize_card(found, [1.0, 0.5], shape=(2,))
    with pytest.raises(ValueError, match=r"nfe=4 with a grid, which has its number of calls; expected .*sd.optimize_card\(problem, data, nfe=5"):
        sd.optimize_card(found, grid, nfe=4, shape=(2,))
    with pytest.raises(ValueError, match="nfe=None; expected an integer >= 3"):
        sd.optimize_card(found, sd.Range(1.0), shape=(2,))
    with pytest.raises(ValueError, match="nfe=26; expected at most 25: beyond"):
        sd.optimize_card(found, sd.Range(1.0), nfe=26, shape=(2,))
    with pytest.raises(ValueError, match="samples=15; expected an integer >= 16, as in samples=512"):
        sd.optimize_card(found, sd.Range(1.0), nfe=5, shape=(2,), samples=15)
    own = sd.optimize_card(found, sd.Range(1.0), nfe=4, shape=(2,), samples=16).grid
    with pytest.raises(ValueError, match="grid is that of a card, which has learned weights; expected the range"):
        sd.optimize_card(found, own, shape=(2,))
    with pytest.raises(ValueError, match="found with the weights of a card; expected that card in the place of 'auto'"):
        sd.solve(found, found.process.prior((4, 2), seed=0), "auto", grid=own)
    with pytest.raises(ValueError, match="nfe=2; expected an integer >= 3"):
        sd.optimize_card(found, sd.Range(1.0), nfe=2, shape=(2,))
    with pytest.raises(ValueError, match="data_mean has shape"):
        sd.optimize_card(found, sd.Range.of(torch.randn(16, 3)), nfe=5, shape=(2,))
    heun = sd.optimize_grid(found, "dpmpp_2s", nfe=5, shape=(2,), samples=32)
    with pytest.raises(ValueError, match=r"2 steps of 2 call\(s\)"):
        sd.optimize_card(found, heun, shape=(2,))
    other = sd.optimize_grid(found, "ddim", nfe=5, shape=(2,), samples=32)
    with pytest.raises(ValueError, match="made for its own grid"):
        sd.solve(found, found.process.prior((4, 2), seed=0), sd.solver_card("ddim", found.process, sd.Grid(grid.ts)), grid=other)
