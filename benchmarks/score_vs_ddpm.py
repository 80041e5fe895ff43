"""Score SDEs against DDPM, trained on the same network and budget, and sampled by the same methods.

    python benchmarks/score_vs_ddpm.py ../shared/data/fashion_mnist runs/score_vs_ddpm

A published student re-implementation got an FID of 159 for the score SDE and 101 for DDPM with one U-Net, because it asked the network for the
score itself and not for the score times sigma.  Here each row of the table is a training:

    vp, subvp    v, gen.train's default, at continuous noise levels
    ve           EDM's output, the same
    ddpm         the noise in x at 1000 discrete levels: algorithm 1 of Ho et al. 2020, in a loop of its own
    vp_epsilon   the noise in x at continuous levels, as Song et al. 2021 have it      (this and the next only where --models names them)
    undivided    the score itself, as the student did

with one U-Net, order of the data, optimiser, average of the weights and number of updates.  Each is sampled by Euler-Maruyama, predictor-corrector, an
ODE method and ancestral sampling, which Song et al. 2021, appendix F, have for VE too.  FID and FID_infinity with standard errors, by the Fashion-MNIST features that come with
the package, to the training set; the last row is as many images of the test set.  These features see little of speckle, so the variation stands beside them: the
mean difference of neighbouring pixels, of 255 levels.  Prints the table, writes ``score_vs_ddpm.json``, and ``samples.png`` into each row's folder.
At the defaults about half an hour on one core; interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import sdesolve_gen as gen
from sdesolve.files import atomic
from sdesolve_gen.data import read_data
from sdesolve_gen.evaluation.features import make_features
from sdesolve_gen.evaluation.figure import Figure, of_mean
from sdesolve_gen.evaluation.frechet import Moments, fid, grouped
from sdesolve_gen.evaluation.kernel import kid
from sdesolve_gen.networks import UNet
from sdesolve_gen.processes import make_process
from sdesolve_gen.training.loop import learning_rate
from sdesolve_gen.training.order import batch_indices, generator

LEVELS = 1000  # of DDPM
TRAININGS: dict[str, dict[str, Any]] = {
    "vp": {"process": "vp", "predicts": "v"},
    "subvp": {"process": "subvp", "predicts": "v"},
    "ve": {"process": "ve", "process_options": {"sigma_max": 30.0}, "predicts": "edm"},
    "ddpm": {"process": "vp", "predicts": "epsilon", "time": "t*999"},
    "vp_epsilon": {"process": "vp", "predicts": "epsilon"},
    "undivided": {"process": "vp", "predicts": "score"},
}
DEFAULT = ("vp", "subvp", "ve", "ddpm")
METRICS = ["fid", "kid", "precision_recall", "time"]


class Budget(NamedTuple):
    """What each training and each sampler may cost."""

    width: int
    steps: int
    batch: int
    n: int
    calls: int
    """Network calls of a sample by an SDE method; an ODE method has a fifth of them."""
    seed: int

    def samplers(self) -> dict[str, dict[str, Any]]:
        em = {"method": "euler_maruyama", "steps": self.calls}
        pc = {"method": "pc", "steps": max(1, self.calls // 2)}
        ode = {"method": "unipc", "steps": max(2, self.calls // 5)}
        return {"EM": em, "PC": pc, "ODE": ode, "ancestral": {"method": "ancestral", "steps": self.calls}}

    def config(self, training: str, data: Path, out: Path) -> gen.TrainConfig:
        network = {"width": self.width, "multipliers": [1, 2], "blocks": 1, "patch": 2, "fourier_scale": 0.003 if training == "ddpm" else 1.0}  # cycles per unit of time
        chosen = {"steps": self.steps, "batch": self.batch, "seed": self.seed, "warmup": max(1, self.steps // 20), "save_every": max(1, self.steps // 8)}
        return gen.TrainConfig(data=str(data), out=str(out), name=training, network=network, ema=max(0.0, 1 - 10 / self.steps), **chosen, **TRAININGS[training])


def trained(training: str, budget: Budget, data: Path, out: Path, device: str) -> gen.Model:
    """The model of a training, from its folder where it is done."""
    folder = out / "models" / f"{training}-{budget.width}-{budget.steps}x{budget.batch}-{budget.seed}"
    config = budget.config(training, data, folder)
    if not (folder / "card.json").exists():
        print(f"training {training}", flush=True)
        made = train_ddpm(config, device) if training == "ddpm" else gen.train(config, device="cpu" if device == "cpu" else "auto")
        return made.to(device)
    model = gen.load(folder, device)
    if any(model.card[name] != getattr(config, name) for name in ("process", "process_options", "predicts", "time")):
        raise ValueError(f"{folder} holds another training than this version's {training!r}; remove it, or choose another folder for the results.")
    return model


def train_ddpm(config: gen.TrainConfig, device: str = "cpu") -> gen.Model:
    """Ho et al. 2020, algorithm 1: |eps - network(sqrt(abar_i) x_0 + sqrt(1 - abar_i) eps, i)|^2 at levels i drawn from 1..1000 alike."""
    images = read_data(config.data).images
    process = make_process(config.process, config.process_options)
    levels = torch.arange(1, LEVELS + 1, dtype=torch.float64) / LEVELS * process.T
    alphas, sigmas = process.alpha(levels).float(), process.sigma(levels).float()
    here = torch.device(device)
    torch.manual_seed(config.seed)
    network = UNet(channels=images.shape[1], **config.network).to(here, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    optimiser, checkpoint = torch.optim.Adam(network.parameters()), Path(config.out) / "checkpoint.pt"
    parts: dict[str, Any] = {"network": network, "average": average, "optimiser": optimiser}
    first = _resumed(checkpoint, parts)
    for step in tqdm(range(first, config.steps), initial=first, total=config.steps, unit="step"):
        draws = generator(config.seed, step, 1)
        x0 = _dequantised(images[batch_indices(len(images), config.batch, config.seed, step)], draws)
        level = torch.randint(LEVELS, (config.batch,), generator=draws)
        eps = torch.randn(x0.shape, generator=draws)
        x = alphas[level, None, None, None] * x0 + sigmas[level, None, None, None] * eps
        x, time, eps = x.to(here), (levels[level] * 999).float().to(here), eps.to(here)
        with torch.autocast(here.type, torch.bfloat16):
            loss = (network(x, time) - eps).square().mean()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        optimiser.step()
        average.update_parameters(network)
        if (step + 1) % config.save_every == 0:
            with atomic(checkpoint) as path:
                torch.save({"step": step + 1, **{name: part.state_dict() for name, part in parts.items()}}, path)
    card = {
        "name": config.name,
        "process": config.process,
        "process_options": config.process_options,
        "predicts": config.predicts,
        "time": config.time,
        "network": "UNet",
        "network_options": {"channels": images.shape[1], **config.network},
        "shape": list(images.shape[1:]),
        "data_range": [-1.0, 1.0],
        "levels": 256,
        "training": {**dataclasses.asdict(config), "data": Path(config.data).name, "out": "", "algorithm": "Ho et al. 2020, algorithm 1, of benchmarks/score_vs_ddpm.py"},
    }
    model = gen.Model(average.module, card)
    model.save(config.out)
    return model


def _dequantised(images: Tensor, draws: torch.Generator) -> Tensor:
    """Levels -> floats in [-1, 1], as ``gen.train`` has them."""
    return (images + torch.rand(images.shape, generator=draws)) / 128 - 1


def _resumed(checkpoint: Path, parts: dict[str, Any]) -> int:
    """Load what an earlier run left; the number of its steps."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]


def floor(data: Path, n: int, device: str) -> dict[str, Figure]:
    """What n images of the test set score against the training set."""
    judge = make_features("fashion_mnist", None, (1, 28, 28), torch.device(device), (-1.0, 1.0))
    made, real = (judge(read_data(data / f"{part}.parquet").images)["features"] for part in ("test", "train"))
    made = made[:n]
    return {**fid(grouped(made), Moments.of(real).gaussian), "kid": kid(made, real), "variation": variation(read_data(data / "test.parquet").images[:n])}


def variation(images: Tensor) -> Figure:
    """Of bytes (n, C, H, W): |horizontal| + |vertical| difference of neighbours, a mean over pixels."""
    levels = images.float()
    rows, columns = (levels.diff(dim=dim).abs().mean((1, 2, 3)) for dim in (-1, -2))
    return of_mean((rows + columns).tolist())


def sampled(folder: Path) -> Tensor:
    """The images that an evaluation left in its folder, bytes."""
    return torch.cat([load_file(chunk)["images"] for chunk in sorted((folder / "samples").glob("*.safetensors"))])


def compared(data: Path, out: Path, models: list[str], budget: Budget, device: str) -> list[dict[str, Any]]:
    """A row for each training and sampler, and the test set's."""
    rows = []
    for training in models:
        model = trained(training, budget, data / "train.parquet", out, device)
        for name, sampler in budget.samplers().items():
            print(f"{training}, {name}", flush=True)
            folder = out / f"{training}-{name}"
            found = gen.evaluate(
                model, data / "train.parquet", METRICS, n=budget.n, features="fashion_mnist", seed=budget.seed, out=folder, cache=out / "reference", **sampler
            )
            figures = {**found.figures, "variation": variation(sampled(folder))}
            rows.append({"training": training, "sampler": name, **sampler, "statuses": found.report["statuses"], "figures": _plain(figures)})
    return [*rows, {"training": "test set", "sampler": "", "figures": _plain(floor(data, budget.n, device))}]


def _plain(figures: Any) -> dict[str, Any]:
    return {name: figure._asdict() for name, figure in figures.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """One line a row, and each training's best against DDPM's best."""
    lines = [f"{'training':<12}{'sampler':<11}{'NFE':>6}{'FID':>17}{'FID_infinity':>17}{'KID x 1000':>18}{'precision':>11}{'recall':>8}{'variation':>14}{'s':>7}"]
    for row in rows:
        f = row["figures"]
        plain = [f"{f[name]['value']:.{digits}f}" if name in f else "" for name, digits in (("nfe", 0), ("precision", 3), ("recall", 3), ("seconds", 0))]
        measured = "".join(f"{_pair(f.get(name), scale):>{width}}" for name, scale, width in (("fid", 1, 17), ("fid_infinity", 1, 17), ("kid", 1000, 18)))
        rough = f"{f['variation']['value']:.1f} ({f['variation']['standard_error']:.1f})"
        lines.append(f"{row['training']:<12}{row['sampler']:<11}{plain[0]:>6}{measured}{plain[1]:>11}{plain[2]:>8}{rough:>14}{plain[3]:>7}")
    best = {row["training"]: row for row in sorted(rows, key=lambda row: -row["figures"]["fid"]["value"])}
    for training, row in best.items():
        if "ddpm" in best and training not in ("ddpm", "test set"):
            ours, theirs = row["figures"]["fid"], best["ddpm"]["figures"]["fid"]
            error = math.hypot(ours["standard_error"], theirs["standard_error"])
            lines.append(f"best {training} ({row['sampler']}) - best ddpm ({best['ddpm']['sampler']}): {ours['value'] - theirs['value']:+.3f} +- {error:.3f}")
    return "\n".join(lines)


def _pair(figure: dict[str, Any] | None, scale: float) -> str:
    return f"{scale * figure['value']:.3f} ({scale * figure['standard_error']:.3f})" if figure else ""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("out", type=Path, help="folder for models, images, and the JSON")
    parser.add_argument("--models", nargs="+", choices=list(TRAININGS), default=list(DEFAULT))
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2000, help="updates of each training")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--n", type=int, default=1000, help="images a row")
    parser.add_argument("--calls", type=int, default=100, help="network calls of a sample by an SDE method; an ODE method has a fifth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help='where to train and to sample, as in "cuda"')
    given = parser.parse_args(arguments)
    budget = Budget(given.width, given.steps, given.batch, given.n, given.calls, given.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*feature directions")  # n is the same in every row
        rows = compared(given.data, given.out, given.models, budget, given.device)
    machine = {"torch": str(torch.__version__), "device": given.device, "threads": torch.get_num_threads()}
    setting = {"budget": budget._asdict(), "trainings": {name: TRAININGS[name] for name in given.models}, **machine}
    with atomic(given.out / "score_vs_ddpm.json") as path:
        path.write_text(json.dumps({**setting, "rows": rows}, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
