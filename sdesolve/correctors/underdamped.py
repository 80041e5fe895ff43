"""Underdamped Langevin dynamics at a fixed time: leapfrog steps in a heat bath."""

from __future__ import annotations

from torch import Tensor

from .trajectory import Trajectory


def underdamped(
    leapfrog: int = 3,
    friction: float = 1.0,
    step_size: float | str = "auto",
    accept: bool = False,
    target: float | None = None,
    mass: Tensor | None = None,
) -> Trajectory:
    """L steps of BAOAB,  B: v <- v + h s/2m,  A: x <- x + h v/2,  O: v <- e^(-friction r) v + noise,  A, B,  from v ~ N(0, 1/m).
    [Leimkuhler & Matthews 2013]

    Calls as :func:`hmc`, which it is without friction.  Take it for many leapfrog steps: the bath forgets the way, so that no L is too long, where
    a flight without it may come back to its start.

    Arguments:
        leapfrog: number L >= 1 of steps of BAOAB.
        friction: > 0, in units of 1/sigma_t: velocities are forgotten over 1/(friction r) steps.
        step_size, accept, target, mass: as for :func:`hmc`.
    """
    return Trajectory(leapfrog, step_size, accept, target, friction, mass)
