"""How far a network's own rounding moves a sample when the batch around it changes.

    python benchmarks/batch_rounding.py [--model mnist]

The solvers are bit-exact in any batch (tests/test_batch_independence.py); convolutions and matrix products are not, since
their kernels add in an order that depends on the batch size.  Printed: the largest difference of a pixel, in units of the
data range, between images drawn one at a time and in batches.
"""

from __future__ import annotations

import argparse

import torch

import sdesolve_gen as gen

METHODS = {"pc": {"steps": 100}, "ddim": {"steps": 50}, "rk45": {"rtol": 1e-3, "atol": 1e-3}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mnist", help="embedded name or folder")
    arguments = parser.parse_args()
    model = gen.load(arguments.model)
    width = model.data_range[1] - model.data_range[0]
    print(f"{'method':<8}{'batch 1 and 8':>16}{'batch 1 and 64':>16}")
    for method, options in METHODS.items():
        alone = torch.cat([model.sample(1, method, seed=0, sample_ids=[i], **options) for i in range(4)])
        differences = [float((model.sample(n, method, seed=0, **options)[:4] - alone).abs().max()) / width for n in (8, 64)]
        print(f"{method:<8}{differences[0]:>16.1e}{differences[1]:>16.1e}")


if __name__ == "__main__":
    main()
