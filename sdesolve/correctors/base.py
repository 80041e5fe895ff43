"""What a corrector is: Markov steps at a fixed time that leave p_t, or nearly, as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from .._arrays import Number
from ..problems import ScoreProblem

Normals: TypeAlias = Callable[[int, int], Tensor]
"""Standard normals shaped like the state, by the number of the step and of the part of it that they are for; all independent."""


class Account(NamedTuple):
    """A carry to which every step adds: by increments, of which a guess of the states knows most."""

    steers: Tensor
    """(B, m) what steps depend on."""
    told: Tensor
    """(B, n) what no step depends on, and :meth:`Corrector.stats` tells."""


class Corrector:
    """Base of every corrector: a frozen dataclass of its options."""

    @property
    def couples_rows(self) -> bool:
        """Whether a row's steps depend on the other rows: published rules that take a mean over the batch."""
        return False

    def calls(self, steps: int) -> int:
        """Network calls of so many steps at one time."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many calls it makes")

    def init(self, x: Tensor) -> Any:
        """The first carry: None, or what each sample knows about its steps, a tensor whose first axis is the batch, or an :class:`Account`."""
        return None

    def correct(self, problem: ScoreProblem, x: Tensor, t: Number, steps: int, normals: Normals, carry: Any) -> tuple[Tensor, Any]:
        """The state after so many steps at time t, and the carry."""
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def stats(self, carry: Any) -> dict[str, Tensor]:
        """What a carry says about each sample, (B,), by name."""
        return {}

    def told(self, carry: Any, steps: int) -> dict[str, Tensor]:
        """The same after so many steps at a time; of none there is the step size alone, with which they would begin."""
        found = self.stats(carry)
        return found if steps else {name: value for name, value in found.items() if name == "step_size"}
