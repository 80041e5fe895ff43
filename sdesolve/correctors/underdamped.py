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
    """L steps of BAOAB,  B: v <- v + h s/2m,  A: x <- x + h v/2,  O: v <- e^(-friction r) v + noise,  A, B,  from v ~ N(0, 1/m),  h = r sigma_t.
    [Leimkuhler & Matthews 2013]

    Calls as :func:`hmc`, which it is without friction.  Take it where no call is to be spent on a test: once the bath has made the flight forget its start,
    positions are exact on a Gaussian at every h, so that its bias is small at steps at which HMC's is large.  The stationary variance of N(0, 1) at
    r = 0.3, 0.6, 1:  1.013, 1.023, 1.001 for L = 3 and 1.0004, 1.0002, 1.0000 for L = 10, where HMC has 1.02, 1.10, 1.33.  And no L is too long, where a flight
    without a bath may come back to its start.

    Arguments:
        leapfrog: number L >= 1 of steps of BAOAB.
        friction: > 0, in units of 1/sigma_t: velocities are forgotten over 1/(friction r) steps.
        step_size, accept, mass: as for :func:`hmc`.
        target: of "auto", in (0, 1): with ``accept`` the acceptance, without it the step in units of p_t's width; 0.9 for both.
    """
    return Trajectory(leapfrog, step_size, accept, target, friction, mass)
