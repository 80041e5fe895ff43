"""How a network is executed changes its speed and memory, and its numbers no more than is said."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from gen_fixtures import tiny_card, tiny_model, tiny_network
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sdesolve_gen as gen
from sdesolve_gen.networks import DiT, Execution, NCSNpp
from sdesolve_gen.networks.execution import Block

X, TIME = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([-1.0, 0.0, 0.3])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_float32_near_float32(precision: str) -> None:
    network = tiny_network()
    exact, half = (run(X, TIME).detach() for run in (network, Execution(precision)(network)))
    assert half.dtype == torch.float32
    assert next(network.parameters()).dtype == torch.float32
    error = float((half - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert 1e-5 < error < (0.05 if precision == "bf16" else 0.01)


def test_the_layers_between_run_in_half_precision() -> None:
    network, seen = tiny_network(), []
    network.stem.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    Execution("bf16")(network)(X, TIME)
    assert seen == [torch.bfloat16]


def test_frozen_weights_are_rounded_once_and_stay_what_they_are() -> None:
    """Rounded anew in every call, they can cost a GPU more time than half precision saves."""
    network = tiny_network().requires_grad_(False)
    own = {name: (p, p.clone()) for name, p in network.named_parameters()}
    run, rounded = Execution("bf16")(network), []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            if function is torch.ops.aten._to_copy.default and any(arguments[0] is p for p, _ in own.values()):
                rounded.append(arguments[0])
            return function(*arguments, **(keywords or {}))

    with torch.autocast("cpu", torch.bfloat16):
        expected = network(X, TIME)
    with torch.inference_mode():
        run(X, TIME)
    run(X.clone().requires_grad_(), TIME).sum().backward()  # also after that
    with Casts():
        first, counted = run(X, TIME), len(rounded)
        again = run(X, TIME)
    assert torch.equal(first, expected)
    assert torch.equal(again, expected)
    assert len(rounded) == counted == 0
    for name, p in network.named_parameters():
        assert p is own[name][0]
        assert torch.equal(p, own[name][1])
    with torch.no_grad():
        network.stem.weight.mul_(2)
    assert not torch.equal(run(X, TIME), expected)  # a change is seen


@pytest.mark.parametrize("how", [Execution(channels_last=True), Execution(channels_last=False), Execution(checkpoint=True)], ids=str)
def test_other_switches_change_no_number(how: Execution) -> None:
    network = tiny_network()
    expected = network(X, TIME)
    output = how(network)(X, TIME)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    assert output.is_contiguous()
    assert network.stem.weight.is_contiguous(memory_format=torch.channels_last) or not how.channels_last


class Peak(TorchDispatchMode):
    """The most bytes that tensors made within held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and (key := leaf.untyped_storage()._cdata) not in self._known:
                size = leaf.untyped_storage().nbytes()
                self._known.add(key)
                self.now += size
                weakref.finalize(leaf.untyped_storage(), self._gone, key, size)
        self.most = max(self.most, self.now)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def backward_peak(network: nn.Module, checkpoint: bool) -> tuple[int, dict[str, torch.Tensor]]:
    executed = Execution(checkpoint=checkpoint)(network)
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with Peak() as peak:
        executed(x, torch.tensor([0.1, 0.2])).square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    return peak.most, gradients


def test_checkpoints_save_memory_and_change_no_gradient() -> None:
    network = DiT(1, 32, 8, 2, 2)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    (plain, expected), (saved, gradients) = backward_peak(network, False), backward_peak(network, True)
    assert saved < 0.5 * plain
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert backward_peak(network, False)[0] > 0.9 * plain  # and it can be switched off again
    assert sum(isinstance(module, Block) for module in network.modules()) == 8


@pytest.mark.parametrize("sliced", [False, True])
def test_checkpoints_drop_out_the_same_twice(sliced: bool) -> None:
    """The mask of the second forward pass is that of the first, also where the first derivative is part of the loss."""
    torch.manual_seed(0)
    network = NCSNpp(1, 8, width=8, multipliers=(1, 2), blocks=1, attention=(), dropout=0.3).train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    gradients, states = [], []
    for checkpoint in (False, True):
        executed = Execution(checkpoint=checkpoint)(network)
        torch.manual_seed(1)
        x = X.clone().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            loss = executed(x, torch.ones(3)).square().sum()
            if sliced:
                (slope,) = torch.autograd.grad(loss, x, create_graph=True)
                loss = loss + slope.square().sum()
            gradients.append(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True))
        states.append(torch.get_rng_state())
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert torch.equal(*states)  # and what is drawn next does not know of it


def test_a_model_runs_as_it_is_told(tmp_path) -> None:
    m = tiny_model()
    exact = m.sample(2, "ddim", steps=3, seed=0)
    half = gen.load(m.save(tmp_path / "m"), precision="bf16")
    assert half.execution == Execution("bf16")
    drawn = half.sample(2, "ddim", steps=3, seed=0)
    assert drawn.dtype == torch.float32
    assert 0 < (drawn - exact).abs().max() < 0.1
    assert torch.equal(half.to(precision="fp32", channels_last=False).sample(2, "ddim", steps=3, seed=0), exact)
    assert half.execution == Execution(channels_last=False)
    assert set(half.network.state_dict()) == set(m.network.state_dict())  # the way it runs leaves no trace in what is saved


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [({"precision": "bf61"}, ValueError, "Did you mean 'bf16'"), ({"compile": 1}, TypeError, "compile=1; expected True or False"), ({"precison": "bf16"}, TypeError, "precison")],
    ids=str,
)
def test_wrong_ways_to_run_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny_model().to(**options)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_images() -> None:
    m, compiled = tiny_model(), gen.Model(tiny_network(), tiny_card()).to(compile=True)
    torch.testing.assert_close(compiled.sample(2, "ddim", steps=3, seed=0), m.sample(2, "ddim", steps=3, seed=0), rtol=1e-4, atol=1e-4)
