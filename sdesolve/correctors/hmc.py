"""Hamiltonian Monte Carlo: leapfrog steps at a fixed time from fresh velocities."""

from __future__ import annotations

from torch import Tensor

from .trajectory import Trajectory


def hmc(
    leapfrog: int = 3,
    step_size: float | str = "auto",
    accept: bool = False,
    target: float | None = None,
    mass: Tensor | None = None,
) -> Trajectory:
    """L leapfrog steps  v <- v + h s/2m,  x <- x + h v,  v <- v + h s/2m  from v ~ N(0, 1/m),  h = r sigma_t.  [Neal 2011, sec. 5.2]

    Calls for n steps at one level: n L, and n L + 1 more with ``accept``.
    Take it for large moves: a step goes L h far, where L of Langevin's go sqrt(L) h.
    With ``accept`` p_t is left as it is for a given step or "kernel", h up to about p_t's narrowest width, where Simpson's rule is right; and not at
    2.4 times that, nor by "auto", which moves shares of modes of different widths by a few hundredths.  Without, on a Gaussian of variance V the
    stationary variance is V / (1 - h^2/4V).

    Arguments:
        leapfrog: number L >= 1 of leapfrog steps.
        step_size: r > 0; "auto", by which each sample finds its own, or "kernel", which is d^-1/4 with ``accept`` and the default of :func:`sdesolve.correct`
            then; see :mod:`sdesolve.correctors.trajectory`.
        accept: the Metropolis test, from the score alone.
        target: of "auto", in (0, 1): with ``accept`` the acceptance, 0.9; without it the step in units of p_t's width, 0.3.
        mass: m > 0, a tensor of one sample's shape; None for 1.
    """
    return Trajectory(leapfrog, step_size, accept, target, mass=mass)
