"""Memory and time of one forward pass of a published network:  python benchmarks/published_networks.py ncsnpp_ffhq1024_ve --precision bf16

Weights are random, in float32, and stay so under autocast; the peak counts them.  On a GPU it is what torch allocated; on a CPU the growth of the
process's resident memory over what it had before the network was built, which includes the convolutions' workspaces.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch

import sdesolve_gen as gen
from sdesolve_gen.networks import NETWORKS, Execution


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", nargs="?", default="ncsnpp_ffhq1024_ve", choices=gen.presets())
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--size", type=int, help="side of the image; default the published one")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()

    gpu = chosen.device.startswith("cuda")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    card = gen.preset(chosen.preset)
    network = NETWORKS[card["network"]](**card["network_options"]).eval().requires_grad_(False).to(chosen.device)
    run = Execution(precision=chosen.precision)(network)
    side = chosen.size or card["shape"][1]
    x = torch.randn(chosen.batch, card["shape"][0], side, side, device=chosen.device)
    started = time.perf_counter()
    with torch.inference_mode():
        output = run(x, torch.ones(chosen.batch, device=chosen.device))
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if gpu else (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    found = {"preset": chosen.preset, "shape": list(x.shape), "precision": chosen.precision, "device": chosen.device, "output": str(output.dtype)}
    print(json.dumps({**found, "weights_gib": round(weights / 2**30, 3), "peak_gib": round(peak / 2**30, 3), "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
