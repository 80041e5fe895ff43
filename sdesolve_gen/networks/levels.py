"""Networks that were trained on numbered noise levels, as the published code of discrete-time score models calls them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import unknown
from .ncsnpp import DDPM, NCSNpp
from .options import check_integers, check_time

_CORES: dict[str, type[NCSNpp]] = {"NCSNpp": NCSNpp, "DDPM": DDPM}
_LARGEST = 100_000


class LevelScore(nn.Module):
    """(x, t) or (x, t, labels) -> score, out of a network that is told the number of a noise level, t in [0, 1].  [Song et al. 2021, eq. 3, 5 and appendix C]

        "vp"    -network(x, t (N-1)) / std_i,                   i = floor(t (N-1)),       std_i^2 = 1 - prod_{j <= i} (1 - beta_j),
                beta_0..beta_{N-1} from low/N to high/N in equal steps: DDPM
        "ve"    network(x, i), over sigma_i where ``scaled``,   i = round((1-t) (N-1)),   sigma_0..sigma_{N-1} from high to low in equal ratios: SMLD

    The number of a level is a step function of t, as it is there: a solver that goes by the smoothness of the score won't like it.
    Where that matters, tell the network fractions of a level: ``as_score(m.network.network, sd.VPSDE(), predicts="epsilon", time="t*999")``.

    Arguments:
        network, network_options: "NCSNpp" or "DDPM", and its arguments.
        process: "vp" or "ve".
        levels: N, 2..100,000.
        low, high: beta_min and beta_max, or sigma_min and sigma_max, 0 < low < high.
        scaled: whether the output of a "ve" network is divided by sigma_i.

    Raises:
        ValueError: an option out of range.
    """

    table: Tensor  # (N,) what the output is divided by

    def __init__(
        self, network: str, network_options: Mapping[str, Any], process: str, levels: int, low: float, high: float, scaled: bool = True
    ) -> None:
        super().__init__()
        if network not in _CORES:
            raise ValueError(unknown("network", network, _CORES))
        if process not in ("vp", "ve"):
            raise ValueError(unknown("process", process, ("vp", "ve")))
        check_integers({"levels": (levels, _LARGEST)})
        if levels < 2 or not _rising(low, high) or (process == "vp" and high >= levels):
            raise ValueError(f"levels={levels!r}, low={low!r}, high={high!r}; expected 0 < low < high, and for 'vp' high < levels, as in levels=1000, low=0.1, high=20.0.")
        if not isinstance(scaled, bool):
            raise ValueError(f"scaled={scaled!r}; expected True or False.")
        self.network = _CORES[network](**network_options)
        self.classes, self.process, self.last, self.scaled = self.network.classes, process, levels - 1, scaled
        self.register_buffer("table", level_table(process, levels, low, high))

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """The score for images x, (B, channels, H, W), times (B,) and labels (B,) as the network's own."""
        check_time(x, time)
        if self.process == "vp":
            label = time * self.last
            return -self.network(x, label, labels) / self._at(label.long(), x)
        level = ((1 - time) * self.last).round().long()
        output = self.network(x, level.to(torch.promote_types(x.dtype, torch.float32)), labels)
        return output / self._at(level, x) if self.scaled else output

    def _at(self, level: Tensor, x: Tensor) -> Tensor:
        return self.table[level][:, None, None, None].to(x.dtype)


def level_table(process: str, levels: int, low: float, high: float) -> Tensor:
    """(levels,) float32: the standard deviation of the noise at each level.

    That of "vp" with the rounding of the published formula, up to 1e-4 at the first levels, since networks were trained with it.
    """
    if process == "ve":
        return torch.linspace(math.log(high), math.log(low), levels, dtype=torch.float64).exp().float()
    betas = torch.linspace(low / levels, high / levels, levels, dtype=torch.float32)
    return (1 - torch.cumprod(1 - betas, 0)).sqrt()


def _rising(low: object, high: object) -> bool:
    return all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)) and 0 < low < high < math.inf  # type: ignore[operator]
