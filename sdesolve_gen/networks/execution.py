"""How a network is executed, apart from what it computes: one mechanism for all of them.

    channels_last    convolutions run in the memory layout that suits them
    precision        "bf16" or "fp16" autocast: weights and outputs stay float32, the layers between run in half precision
    checkpoint       the blocks of a network forget what they computed and compute it again on the way back: less memory for a third more time
    compile          ``torch.compile`` of the whole network, when it is first called
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .._errors import unknown

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Block(nn.Module):
    """Base of the parts of a network that are recomputed one at a time where its execution asks for checkpoints."""

    checkpoint = False

    def __call__(self, *inputs: Any) -> Any:
        if self.checkpoint and torch.is_grad_enabled():
            return checkpoint(super().__call__, *inputs, use_reentrant=False)  # which draws dropout's mask once more from the same state
        return super().__call__(*inputs)


@dataclass(frozen=True)
class Execution:
    """How networks are to be executed; ``Execution(...)(network)`` is the network executed so.

    Arguments:
        precision: "fp32", or "bf16" or "fp16" by autocast, with outputs in the dtype of the image.
        compile: compile the network by ``torch.compile`` (seconds to minutes at the first call of each shape; needs a C++ compiler on a CPU).
        checkpoint: save the memory of what a backward pass needs by computing each :class:`Block` twice.
        channels_last: convolve in this memory layout; weights are converted in place.

    Raises:
        ValueError: an unknown precision.  TypeError: a switch that is neither True nor False.
    """

    precision: str = "fp32"
    compile: bool = False
    checkpoint: bool = False
    channels_last: bool = True

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(unknown("precision", self.precision, PRECISIONS))
        for name in ("compile", "checkpoint", "channels_last"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}={getattr(self, name)!r}; expected True or False.")

    def __call__(self, network: nn.Module) -> nn.Module:
        """The network, executed so; it shares its weights, whose names have the prefix ``network.`` here."""
        for module in network.modules():
            if isinstance(module, Block):
                module.checkpoint = self.checkpoint
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Executed(network, self)


class Executed(nn.Module):
    """(x, *rest) -> what the network says, in x's dtype and contiguous."""

    def __init__(self, network: nn.Module, how: Execution) -> None:
        super().__init__()
        self.network, self.how = network, how
        self._run = torch.compile(network) if how.compile else network
        self._halves = _Halves(network)

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        if self.how.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        dtype = PRECISIONS[self.how.precision]
        with self._halves.in_place(dtype) if dtype else contextlib.nullcontext():
            output = self._run(x, *rest)
        return output.to(x.dtype).contiguous()


_HALVED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # what autocast computes in half precision


class _Halves:
    """Frozen weights in half precision, kept from call to call: autocast rounds them anew in every one, which can cost more than it saves."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._stamp: tuple[Any, ...] = ()
        self._kept: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []

    @contextlib.contextmanager
    def in_place(self, dtype: torch.dtype) -> Iterator[None]:
        """Autocast to ``dtype``, with what is frozen rounded already."""
        weights = [(m._parameters, name, p) for m in self.network.modules() if isinstance(m, _HALVED) for name, p in m._parameters.items() if p is not None]
        frozen = [(where, name, p) for where, name, p in weights if not p.requires_grad and p.dtype == torch.float32]
        stamp = (dtype, *((p.data_ptr(), 0 if p.is_inference() else p._version) for _, _, p in frozen))
        if stamp != self._stamp:
            with torch.inference_mode(False), torch.no_grad():  # a backward pass may want them later
                self._stamp, self._kept = stamp, [(where, name, p, p.to(dtype)) for where, name, p in frozen]
        kept, device = self._kept, next(self.network.parameters()).device.type
        try:
            for where, name, _, half in kept:
                where[name] = half
            with torch.autocast(device, dtype):
                yield
        finally:
            for where, name, own, _ in kept:
                where[name] = own
