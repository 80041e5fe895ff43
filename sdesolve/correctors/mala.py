"""The Metropolis-adjusted Langevin algorithm: one leapfrog step from fresh velocities."""

from __future__ import annotations

from torch import Tensor

from .trajectory import Trajectory


def mala(step_size: float | str = "auto", accept: bool = True, target: float | None = None, mass: Tensor | None = None) -> Trajectory:
    """x <- x + e s(x) + sqrt(2e) z,  e = h^2/2,  h = r sigma_t,  accepted or not.  [Roberts & Tweedie 1996]

    It is HMC with a single leapfrog step, and its test is the same: the ratio of the two proposal densities is the change of kinetic energy.  Without
    ``accept`` it is ``langevin`` with snr = r/2.  Calls for n steps at one level: 2n + 1 with ``accept``.
    Take it for small repairs that keep p_t, as far as the test of :func:`hmc` does; ``hmc`` goes further for the same calls.

    Arguments:
        step_size, accept, target, mass: as for :func:`hmc`.
    """
    return Trajectory(1, step_size, accept, target, mass=mass)
