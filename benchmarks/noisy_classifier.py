"""Train the noise-conditional MNIST classifier that comes with the package, for the process and times of the embedded model.

    python benchmarks/noisy_classifier.py ../shared/data/mnist sdesolve_gen/assets/mnist_classifier

writes ``classifier.safetensors`` (float16) and ``classifier.json``, with the accuracy on the first 2000 test images at several noise levels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sdesolve_gen.classifiers import Classifier, load_classifier
from sdesolve_gen.data import read_data, scaled
from sdesolve_gen.training.classifier import ClassifierConfig, train_classifier

SIGMAS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)  # sigma/alpha
COMMAND = "python benchmarks/noisy_classifier.py ../shared/data/mnist sdesolve_gen/assets/mnist_classifier"


@torch.no_grad()
def accuracy(classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, sigma: float) -> float:
    """Fraction of noisy images whose class is named, at a noise level sigma/alpha."""
    t = classifier.process.log_snr_inverse(-2 * torch.tensor(sigma, dtype=torch.float64).log())
    x = classifier.process.perturb(scaled(images), t, seed=0)
    return float(torch.cat([classifier.logits(part, t).argmax(1) for part in x.split(500)]).eq(labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("out", type=Path, help="folder for the classifier")
    parser.add_argument("--steps", type=int, default=ClassifierConfig.steps)
    parser.add_argument("--checkpoint", type=Path, help="file to go on from, where the training was interrupted")
    arguments = parser.parse_args()

    config = ClassifierConfig(data=str(arguments.data / "train.parquet"), name="mnist_classifier", steps=arguments.steps)
    classifier = train_classifier(config, checkpoint=arguments.checkpoint)
    classifier.card["training"]["commands"] = [COMMAND]
    classifier.save(arguments.out, torch.float16)
    classifier = load_classifier(arguments.out)  # as it is on disk, rounded
    images, labels = read_data(arguments.data / "test.parquet")[:2]
    assert labels is not None
    figures = {f"accuracy at sigma/alpha {sigma:g}": accuracy(classifier, images[:2000], labels[:2000], sigma) for sigma in SIGMAS}
    classifier.card["figures"] = figures
    classifier.save(arguments.out, torch.float16)
    for name, value in figures.items():
        print(f"{name}: {100 * value:.1f} %")


if __name__ == "__main__":
    main()
