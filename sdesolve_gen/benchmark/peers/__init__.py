"""Other packages' samplers beside ours: the same network, the same normals, and our count of the calls.

Each module has ``contenders()``, which raises :class:`..problems.Skipped` where its package is not installed.  Every peer is shown twice:
as its users run it (default schedule and spacing, or those that its documentation recommends) and on our grid, from our start.
The network is told the exact noise level of the state, which is kinder than the rounded time step that some packages would hand it.
"""

from __future__ import annotations

from ..contenders import Contender
from ..problems import Skipped
from . import azula, backends, diffusers, k_diffusion, score_sde
from .installed import INSTALL, peer_versions

MODULES = {"diffusers": diffusers, "k_diffusion": k_diffusion, "azula": azula, "torchsde and torchdiffeq": backends, "score_sde": score_sde}


def peers() -> tuple[list[Contender], dict[str, str]]:
    """Every peer that is here, and why the others are not."""
    found: list[Contender] = []
    skipped: dict[str, str] = {}
    for name, module in MODULES.items():
        try:
            found += module.contenders()
        except Skipped as reason:
            skipped[name] = str(reason)
    return found, skipped


__all__ = ["INSTALL", "peer_versions", "peers"]
