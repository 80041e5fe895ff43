"""Images from measurements by weighted particles: twisted sequential Monte Carlo, exact in the limit of many.  [Wu et al. 2023]"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import sdesolve as sd

from ._errors import as_int, unknown
from .conditioning import Measurement, twist

if TYPE_CHECKING:
    from .models import Model

OPTIONS = {"particles": 16, "steps": 100, "grid": "log_snr", "resample": 0.5, "data_std": None}
"""What ``method="smc"`` takes, and the defaults; data_std is ``Model.data_std`` unless given."""


class Weighed(NamedTuple):
    """One draw for each measurement, and what its particles' weights say."""

    x: Tensor
    """(n, C, H, W)."""
    nfe: int
    """Network calls of each particle."""
    log_evidence: Tensor
    """(n,) ln p(y)."""
    ess: Tensor
    """(n, steps + 1) effective number of particles at each node."""


def weighed(model: Model, measurement: Measurement, ids: list[int], seed: int, size: int | None, progress: bool, options: Mapping[str, Any]) -> Weighed:
    """An image for each measurement, chosen by weight among ``options["particles"]`` of its own, whose twist is the measurement's likelihood.

    Draws from one set of particles would be copies: of an image's particles, one or two have all the weight at some node.

    A measurement with less noise than A makes of that of the last time, sigma(eps)/alpha(eps), is given that, which its particles have in any case.

    Arguments:
        measurement: (n, *measured).
        ids: (n,) that name them.
        size: particles solved together, but never fewer than one draw has; None for all.
        options: checked by :func:`checked`.
    """
    how, process = dict(options), model.process
    count, data_std = how.pop("particles"), how.pop("data_std")
    data_std = model.data_std if data_std is None else data_std
    given = replace(measurement, noise_std=max(measurement.noise_std, _least(measurement, process)))
    parts = []
    for rows in torch.arange(len(ids)).split(len(ids) if size is None else max(1, size // count)):
        named = [ids[row] for row in rows.tolist()]
        x = process.prior((len(named), count, *model.shape), seed=seed, sample_ids=named, device=model.device)
        reward = twist(replace(given, y=given.y[rows.to(model.device)]), process, count, data_std)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sd.SolveWarning)  # it would count within the batch
            parts.append(sd.smc(process.reverse(model.score), x, reward, seed=seed, sample_ids=named, progress=progress, **how))
    x = torch.cat([part.draw(1)[:, 0] for part in parts])
    return Weighed(x, parts[0].nfe, torch.cat([part.log_evidence for part in parts]).cpu(), torch.cat([part.ess for part in parts], 1).T.cpu())


def _least(measurement: Measurement, process: sd.Process) -> float:
    """What A makes of the noise of the last time: sigma/alpha times the mean length of its rows, by 16 draws."""
    z = torch.randn(16, *measurement.operator.event, generator=torch.Generator().manual_seed(0)).to(measurement.y)
    return float(process.sigma(process.eps) / process.alpha(process.eps) * measurement.operator.forward(z).square().mean().sqrt())


def checked(options: Mapping[str, Any], method_options: Mapping[str, Any], sampler: object, denoise: bool) -> dict[str, Any]:
    """The options of ``method="smc"``, wherever they were given, with their defaults.

    Raises:
        ValueError: an unknown one, one that was given twice, fewer than two particles, or a sampler beside it; :func:`sdesolve.smc` checks the others.
    """
    if sampler is not None or not denoise:
        raise ValueError("method='smc' walks with a kernel of its own and ends at E[x_0 | x]; expected no sampler and no denoise=False: steps=..., particles=... are its options.")
    for name in (*options, *method_options):
        if name not in OPTIONS:
            raise ValueError(unknown("option of method='smc':", name, OPTIONS))
        if name in options and name in method_options:
            raise ValueError(f"{name}={options[name]!r} and method_options={{{name!r}: {method_options[name]!r}}}; expected one of them, as in {name}={options[name]!r}.")
    made = {**OPTIONS, **options, **method_options}
    particles = as_int(made["particles"])
    if particles is None or particles < 2:
        raise ValueError(f"particles={made['particles']!r}; expected an integer >= 2, as in particles=16.")
    return made
