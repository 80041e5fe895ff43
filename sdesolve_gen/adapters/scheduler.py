"""The solvers as a scheduler of diffusers.  Imports diffusers: ``sdesolve_gen.DiffusersScheduler`` does so when it is first named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
from torch import Tensor

import sdesolve as sd
from sdesolve.grids import make_grid
from sdesolve.methods import make_method

from .._errors import as_int, unknown
from ..processes import make_process
from .asked import Asked, Planned
from .schedules import Schedule, read_schedule

_FLOW_END = 1 - 1e-6  # where a flow starts, as near to pure noise as its coefficients are finite
_SPACINGS = ("leading", "trailing", "linspace")
_NODES = ("ddim", "dpm_solver")
_DPM_SOLVERS = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler")
_OF_DPM_SOLVER = ("solver_order", "predictor_order")  # what the configs of these have, where they were never saved and lack their name
_CLIPPING = ("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "HeunDiscreteScheduler", "DiffusersScheduler")
"""Who obeys ``clip_sample``; the configs of others carry it along where they were made of one of these."""


class DiffusersScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Any method of :func:`sdesolve.methods` in an existing pipeline:

        pipe.scheduler = sdesolve_gen.DiffusersScheduler.from_config(pipe.scheduler.config, method="unipc")
        images = pipe(num_inference_steps=20).images

    The levels are those of the config (``alphas_cumprod``, or a flow's straight line), the timesteps those of DDIM and DDPM.  N inference steps
    are N nodes: N - 1 steps of the method, and Tweedie's formula at the last node, which is a first-order step to no noise.  A method that calls the
    network k times a step has k timesteps a step.  For pipelines that give ``step`` what the network says at ``timesteps`` in order, of any
    prediction type; guidance is the pipeline's business, and works.

    Arguments:
        method, method_options: of :func:`sdesolve.solve`, as in ``method="dpmpp_2m_sde"`` or ``method="ddim", method_options={"eta": 1.0}``.
        grid: a name of :mod:`sdesolve.grids`, as "log_snr" or "karras", from the last level of the training to the first: then timesteps have
            fractions.  Default: whole timesteps, by ``timestep_spacing``.
        nodes: "ddim", whose whole timesteps "leading" and "linspace" end at or near the first level; "dpm_solver", where these two are of N + 1 nodes without
            the last [Lu et al. 2022, and their schedulers: DPM-Solver, DEIS, UniPC, SA-Solver].  ``from_config`` knows it from the other's config.
        use_karras_sigmas, use_exponential_sigmas, use_lu_lambdas: of those schedulers' configs: N nodes by :func:`sdesolve.grids.karras` with rho = 7, or even in
            ln(sigma/alpha); the network is told the nearest whole timestep where theirs tell it, and fractions where theirs cut them off.
        final_sigmas_type: "zero", to end as described; "sigma_min", to end at the first level of the training; default: "zero" unless
            ``set_alpha_to_one`` is False.
        clip_sample, clip_sample_range: clip E[x_0 | x] at every call, and take the noise from what is left (diffusers' ``use_clipped_model_output``).
            ``from_config`` leaves it out where the config's own scheduler does not look at it, as those of DPM-Solver.
        the rest: as in diffusers.

    Raises:
        ValueError: a scheduler without such levels (ScoreSdeVe, EDM: use ``sdesolve_gen.load``); an unknown method or grid; dynamic thresholding.
    """

    _compatibles: ClassVar[list[str]] = [  # type: ignore[misc]
        *(e.name for e in KarrasDiffusionSchedulers), "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "DDIMParallelScheduler",
    ]  # fmt: skip
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        set_alpha_to_one: bool = True,
        final_sigmas_type: str | None = None,
        variance_type: str | None = None,
        thresholding: bool = False,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        use_flow_sigmas: bool = False,
        shift: float = 1.0,
        flow_shift: float = 1.0,
        method: str = "unipc",
        method_options: Mapping[str, Any] | None = None,
        grid: str | None = None,
        nodes: str = "ddim",
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
    ) -> None:
        if use_beta_sigmas:
            raise ValueError("use_beta_sigmas=True is not known here; expected use_beta_sigmas=False, and a grid of sdesolve.grids, as in grid='karras'.")
        if nodes not in _NODES:
            raise ValueError(unknown("nodes", nodes, _NODES))
        if thresholding:
            raise ValueError("thresholding=True (dynamic thresholding) is not known here; expected thresholding=False, or clip_sample=True.")
        if timestep_spacing not in _SPACINGS:
            raise ValueError(unknown("timestep_spacing", timestep_spacing, _SPACINGS))
        if final_sigmas_type not in (None, "zero", "sigma_min"):
            raise ValueError(unknown("final_sigmas_type", final_sigmas_type, ("zero", "sigma_min")))
        config: Any = self.config
        self._schedule: Schedule = read_schedule({**config, "_class_name": "DiffusersScheduler"})
        flow = self._schedule.process == "rectified_flow"
        self._process = sd.RectifiedFlow(_FLOW_END) if flow else make_process(self._schedule.process, self._schedule.process_options)
        self._stepper = make_method(method, **dict(method_options or {}))
        self._ends_at_zero = set_alpha_to_one if final_sigmas_type is None else final_sigmas_type == "zero"
        sigmas = "karras" if use_karras_sigmas else "log_snr" if use_exponential_sigmas or use_lu_lambdas else None
        self._method, self._grid, self._train = method, grid if grid is not None else sigmas, num_train_timesteps
        self._whole = grid is None and (use_karras_sigmas or use_lu_lambdas) and beta_schedule != "squaredcos_cap_v2"  # as theirs round
        self._after = 1 if nodes == "dpm_solver" else 0  # nodes that are counted and not walked to
        self._spacing, self._offset, self._shift = timestep_spacing, steps_offset, shift if shift != 1 else flow_shift
        self._clip = clip_sample_range if clip_sample else None
        self.order = max(1, self._stepper.facts.evals)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._begin_index: int | None = None
        self._position: int | None = None
        self._plan: list[Planned] = []
        self._walk: Asked | None = None

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **options: Any) -> Any:
        """The scheduler of another's config, with the method; ``DiffusersScheduler.from_config(pipe.scheduler.config, method="unipc")``."""
        schedule = read_schedule(config)
        name = config.get("_class_name") or next((_DPM_SOLVERS[0] for key in _OF_DPM_SOLVER if key in config), None)
        if schedule.process not in ("tabulated_vp", "rectified_flow"):
            raise ValueError(f"{config.get('_class_name')} counts no levels of this kind; expected the model itself: sdesolve_gen.load(folder).sample(16).")
        if schedule.process == "rectified_flow":
            options = {"use_flow_sigmas": True, **options}
        elif "nodes" not in config and name in _DPM_SOLVERS:
            options = {"nodes": "dpm_solver", "timestep_spacing": config.get("timestep_spacing", "linspace"), **options}
        if name is not None and name not in _CLIPPING:
            options = {"clip_sample": False, **options}
        plain = {name: value for name, value in config.items() if not name.startswith("_")}  # without the mark of what were defaults there: ours differ
        return super().from_config({**plain, **options}, return_unused_kwargs)

    # -- the grid ----------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Choose the nodes.

        Arguments:
            num_inference_steps: number N of nodes.
            device: where ``timesteps`` goes.
            timesteps: the nodes themselves, falling, in the training's count.
            sigmas: the nodes of a flow, falling, in (0, 1].
            mu: ln of a flow's shift, in place of the config's.
        """
        ts = self._nodes(num_inference_steps, timesteps, sigmas, mu)
        first = self._process.eps if self._schedule.process == "tabulated_vp" else None
        if not self._ends_at_zero and first is not None and ts[-1] > first * (1 + 1e-9):
            ts = [*ts, first]
        self._walk = Asked(
            self._stepper, self._process, predicts=self._schedule.predicts if self._clip is None else "x0", time=self._told, ts=ts,
            denoise=self._ends_at_zero or len(ts) == 1,
        )  # fmt: skip
        self._plan = self._walk.plan()
        if not self._plan[0].at_state:
            raise ValueError(f"method={self._method!r} does not evaluate the network where it starts, and a pipeline does; expected another method.")
        told = torch.tensor([question.time for question in self._plan], dtype=torch.float64)
        whole = told.round()
        self.timesteps = (whole.long() if bool(((told - whole).abs() < 1e-6).all()) else told.float()).to(device)
        self.num_inference_steps, self._position = num_inference_steps or len(ts), None

    def _nodes(self, count: int | None, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, mu: float | None) -> list[float]:
        """Times of the process, falling."""
        flow, train = self._schedule.process == "rectified_flow", self._schedule.levels
        given = sigmas if sigmas is not None else timesteps
        if given is not None:
            scale = 1 if sigmas is not None else train
            values = torch.as_tensor(given, dtype=torch.float64).tolist()
            times = [value / scale if flow else self._time(value) for value in values]
            times = self._shifted(times, mu) if sigmas is not None else times
            if sigmas is not None and not flow:
                raise ValueError("sigmas are the nodes of a flow; expected timesteps=[...] here.")
        else:
            whole = as_int(count)
            if whole is None or not 1 <= whole <= train:
                raise ValueError(f"num_inference_steps={count!r}; expected an integer from 1 to {train}, as in num_inference_steps=20.")
            if self._grid is not None and whole > 1:
                return list(make_grid(self._grid, self._process, self._process.T, self._process.eps, whole - 1).ts)
            times = self._shifted([1 - i / whole for i in range(whole)], mu) if flow else [self._time(i) for i in self._spaced(whole, train)]
        falling = all(a > b for a, b in pairwise(times))
        if not times or not falling or times[-1] < self._process.eps * (1 - 1e-9) or times[0] > 1 + 1e-9:
            raise ValueError(f"timesteps={str(given)[:80]}; expected falling numbers within the {train} levels of the training.")
        return [min(time, self._process.T) for time in times]

    def _spaced(self, count: int, train: int) -> list[int]:
        """Levels.  [Lin et al. 2024, table 2]"""
        spacing = self._spacing
        first, total = self._after, count + self._after
        if spacing == "linspace":
            return np.linspace(0, train - 1, total).round()[::-1][:count].astype(int).tolist()
        if spacing == "leading":
            return [min(i * (train // total) + self._offset, train - 1) for i in reversed(range(first, total))]
        return [round(train - i * train / count) - 1 for i in range(count)]

    def _shifted(self, times: Sequence[float], mu: float | None) -> list[float]:
        """s t/(1 + (s - 1) t): more steps in the noise.  [Esser et al. 2024, eq. 23]"""
        shift = math.exp(mu) if mu is not None else self._shift
        return [shift * t / (1 + (shift - 1) * t) for t in times]

    def _told(self, t: Any) -> Any:
        """What the training calls the time t."""
        level = self._process.level(t) if isinstance(self._process, sd.TabulatedVP) else t * self._schedule.levels
        return torch.as_tensor(level).round() if self._whole else level

    # -- the walk ----------------------------------------------------------------------------------------------------

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample: it is kept as the network wants it."""
        return sample

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at ``timesteps[begin_index]``, as pipelines from image to image do."""
        self._begin_index = begin_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """Which of ``timesteps`` comes next; None before the first."""
        return self._position

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Where the network is to be evaluated at the next of ``timesteps``; after the last one, the result.

        Arguments:
            model_output: what the network says at ``timestep`` and ``sample``, (B, *event); of twice as many channels the first half.
            timestep: the one of ``timesteps`` that it was told.
            sample: what the step before gave, or the start.
            generator: where the seed of the noise is drawn from, at the first step; one a row makes rows that do not depend on the others.
            eta: what DDIMPipeline passes on; refused: see ``method_options``.
            use_clipped_model_output: what is done anyway where ``clip_sample`` is on, and refused where it is not.

        Raises:
            ValueError: ``set_timesteps`` was not called, or more steps are taken than it planned; another timestep than the next, or another shape than that of
                the walk so far; an ``eta``, which belongs to the method.
        """
        if eta:
            raise ValueError(f"eta={eta} is no option of a step here; expected DiffusersScheduler.from_config(config, method='ddim', method_options={{'eta': {eta}}}).")
        if use_clipped_model_output and self._clip is None:
            raise ValueError("use_clipped_model_output=True, and nothing is clipped; expected DiffusersScheduler.from_config(config, clip_sample=True, ...), which does just that.")
        if self._walk is None:
            raise ValueError("no timesteps are set; expected scheduler.set_timesteps(20) before the first step.")
        state, output = sample.float(), model_output[:, : sample.shape[1]].float()
        if self._position is None:
            self._position = self._first(timestep)
            seed, ids = _named(generator, len(sample))
            self._walk.start(state, self._plan[self._position].node, seed=seed, ids=ids)
        if self._position >= len(self._plan):
            raise ValueError(f"all {len(self._plan)} timesteps are done; expected scheduler.set_timesteps(...) before the next walk.")
        question = self._plan[self._position]
        if sample.shape != self._walk.x.shape:
            raise ValueError(f"sample is {tuple(sample.shape)} amid a walk of {tuple(self._walk.x.shape)}; expected the same, or scheduler.set_timesteps(...) before another walk.")
        if not self._is_next(timestep):
            told = float(self.timesteps[self._position])
            raise ValueError(f"timestep={float(timestep):g} is not the next of this walk; expected {told:g}, or scheduler.set_timesteps(...) before another walk.")
        if question.at_state:
            self._walk.at(state)
        asked = self._walk.tell(output if self._clip is None else self._clipped(output, state, question.time, self._clip))
        self._position += 1
        previous = (self._walk.x if asked is None else asked.x).to(sample.dtype)
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def _is_next(self, timestep: Any) -> bool:
        """Whether it is the one of ``timesteps`` at which the walk stands; nothing is read from a device where it is an element of them."""
        expected = self.timesteps[self._position]
        if isinstance(timestep, Tensor) and timestep.numel() == 1 and timestep.dtype == expected.dtype and timestep.data_ptr() == expected.data_ptr():
            return True
        return abs(float(timestep) - float(expected)) <= 1e-3

    def _first(self, timestep: Any) -> int:
        """Which question comes first."""
        if self._begin_index is not None:
            return self._begin_index
        found = (self.timesteps == torch.as_tensor(timestep, device=self.timesteps.device)).nonzero().flatten().tolist()
        starts = [i for i in found if self._plan[i].at_state]
        if not starts:
            raise ValueError(f"timestep={timestep!r} is none of those of set_timesteps at which a step starts: {self.timesteps.tolist()[:8]}...")
        return starts[0]

    def _clipped(self, output: Tensor, x: Tensor, told: float, bound: float) -> Tensor:
        """E[x_0 | x] within the range."""
        score = sd.as_score(lambda x, t: output, self._process, predicts=self._schedule.predicts)
        return score.denoise(x, self._time(told)).clamp(-bound, bound)

    def _time(self, told: Any) -> Any:
        """The process's own of a time of the training."""
        return (told + 1 if isinstance(self._process, sd.TabulatedVP) else told) / self._schedule.levels

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma noise at timesteps (B,)."""
        t = self._time(timesteps.to(original_samples.device).double())
        alpha, sigma = (sd.expand_time(c.to(original_samples), original_samples) for c in (self._process.alpha(t), self._process.sigma(t)))
        return alpha * original_samples + sigma * noise

    def __len__(self) -> int:
        return self._train


def _named(generator: torch.Generator | Sequence[torch.Generator] | None, rows: int) -> tuple[int, list[int]]:
    """Seed and ids of the noise."""
    if isinstance(generator, Sequence):
        return 0, [int(torch.randint(2**40, (), generator=each, device=each.device)) for each in generator]
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(2**62, (), generator=generator, device=device)), list(range(rows))
