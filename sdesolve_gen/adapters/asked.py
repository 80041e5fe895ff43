"""A sampler turned inside out: where the caller owns the network, a step is asked what to evaluate next and told the answer.

A step is a pure function of its state, its noise and what the network says.  So it is run as far as the answers reach, stopped at the first
question without one, and run again from its start when that is answered: any method can be driven so, whatever it calls and however often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sdesolve as sd
from sdesolve.noise import SeededNormals, SeededStep


class Question(NamedTuple):
    """Where the network is to be evaluated."""

    node: int
    """The step that asks."""
    x: Tensor
    time: Tensor
    """What the network is told, (B,)."""


class Planned(NamedTuple):
    """When a question will be asked."""

    node: int
    time: float
    at_state: bool
    """Whether it is asked at the state that the step starts from."""


class _Unanswered(Exception):
    def __init__(self, x: Tensor, time: Tensor) -> None:
        super().__init__("a question without an answer")
        self.x, self.time = x, time


class _Answers:
    """Stands for the network: gives the answers in order, and stops the step where there are none left."""

    def __init__(self) -> None:
        self.given: list[Tensor] = []
        self._read = 0

    def rewound(self, given: list[Tensor]) -> None:
        self.given, self._read = given, 0

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        if self._read == len(self.given):
            raise _Unanswered(x, time)
        self._read += 1
        return self.given[self._read - 1]


class Asked:
    """A walk of a method over the nodes ``ts``, from question to question.

    Arguments:
        stepper: the method.
        process: the forward process.
        predicts, time: what the answers are, and what the questions say of the time, as in :func:`sdesolve.as_score`.
        ts: the nodes; a single one for a walk that only denoises.
        denoise: end with Tweedie's formula at the last node.
    """

    def __init__(self, stepper: sd.Stepper, process: sd.Process, *, predicts: str, time: Any, ts: Sequence[float], denoise: bool) -> None:
        facts = stepper.facts
        if "langevin" in facts.needs or facts.largest is not None or (facts.kinds and "additive" not in facts.kinds):
            raise ValueError(f"{type(stepper).__name__} differentiates the network or solves another kind of equation; expected one for a reverse SDE or its flow, as 'unipc'.")
        self._answers = _Answers()
        score = sd.as_score(self._answers, process, predicts=predicts, time=time)
        self._noisy = bool(stepper.facts.kinds)
        self._problem = process.reverse(score) if self._noisy else process.probability_flow(score)
        self._stepper, self._ts, self._denoise = stepper, tuple(ts), denoise
        self._steps = list(pairwise(self._ts))
        if self._steps:
            stepper.check_grid(process, self._ts)

    def plan(self) -> list[Planned]:
        """Every question of a walk, asked of a network that says anything at all: when they are asked does not depend on the answers."""
        x, anything = torch.linspace(-1, 1, 8)[None], torch.linspace(0.3, 1.1, 8)[None]
        self.start(x, 0, seed=0, ids=[0])
        asked, question = [], self.ask()
        while question is not None:
            asked.append(Planned(question.node, float(question.time[0]), torch.equal(question.x, self.x)))
            question = self.tell(anything)
        return asked

    def start(self, x: Tensor, node: int, *, seed: int, ids: Sequence[int]) -> None:
        """Stand at a node with the state x, (B, *event); ``seed`` and ``ids`` name the noise."""
        self.x, self._node, self._carry, self._fresh = x, node, None, True
        self._told: list[Tensor] = []
        self._noise: Callable[[int], SeededStep | None] = lambda _: None
        if self._noisy:
            source = SeededNormals(seed, ids, x.shape[1:], dtype=x.dtype, device=x.device, nodes=max(1, len(self._steps)))
            self._noise = lambda node: SeededStep(source, node)

    def at(self, x: Tensor) -> None:
        """Take x for the state, which the caller may have changed, at a question that is asked there."""
        self.x = x

    def tell(self, answer: Tensor) -> Question | None:
        """Answer the last question; the next one, or None at the end, where ``x`` is the result."""
        self._told.append(answer)
        return self.ask()

    def ask(self) -> Question | None:
        """The question at which the walk stands."""
        while self._node < len(self._steps) + self._denoise:
            try:
                self._answers.rewound(self._told)
                self._advance()
            except _Unanswered as stopped:
                return Question(self._node, stopped.x, stopped.time)
            self._told = []
        return None

    def _advance(self) -> None:
        """One step, or the last denoising."""
        node, carry = self._node, self._carry
        if node == len(self._steps):
            self.x = self._problem.score.denoise(self.x, self._ts[-1])
        else:
            t0, t1 = self._steps[node]
            if self._fresh:
                carry = self._stepper.init(self._problem, self.x, t0)
            step = self._stepper.step(self._problem, self.x, t0, t1, self._noise(node), carry)
            self.x, self._carry, self._fresh = step.x, step.carry, False
        self._node += 1
