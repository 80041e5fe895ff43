"""A model as others find it: a folder with its files, a picture of its samples, and a page that says what it is.

    model.safetensors, card.json    as ``Model.save`` writes them, and moments.safetensors where it has moments
    samples.png                     images of it, none of them chosen
    README.md                       the picture, the line that loads the model, how it was trained and what was measured: all out of the card

The page is the model card of the hub, and as good in any other place.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from sdesolve.files import atomic

from .card import CARD, MOMENTS, OWN, WEIGHTS
from .class_conditional import labels_drawn
from .images import write_png
from .models import Model, load

PICTURE, PAGE = "samples.png", "README.md"
FILES = (WEIGHTS, CARD, MOMENTS, PICTURE, PAGE)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


def check_publishable(model: Model, license: str | None) -> None:
    """Raises ValueError for what nobody else could load, and for a license that is no identifier."""
    if model.card["network"] == OWN:
        raise ValueError(f"the network of {model.card['name']!r} is not of this package, so that nobody else could load it; expected a model that train or import wrote.")
    if license is not None and not _LICENSE.fullmatch(license):
        raise ValueError(f"license={license!r}; expected an identifier in small letters, as in license='apache-2.0'.")


def write_published(folder: Path, model: Model, id: str, *, license: str | None = None, half: bool = False, n: int = 36, progress: bool = False) -> None:
    """Write the files into a folder, each whole or not at all.

    Arguments:
        folder: is made where it is not there.
        model: of a network of this package.
        id: OWNER/NAME, under which the page tells people to load it.
        license: of the weights, by its identifier, as in "apache-2.0"; None says nothing.
        half: weights in float16, which take half the space.
        n: images in the picture, by ``dpmpp_2m`` in 31 calls; of a model that knows classes, each class in turn.
        progress: show a bar.

    Raises:
        ValueError: what :func:`check_publishable` refuses; weights that are not finite.
    """
    check_publishable(model, license)
    drawn = load(model.save(folder, torch.float16 if half else torch.float32), model.device)  # as everybody else will have it
    labels = labels_drawn(drawn, "balanced" if drawn.classes else None, None, range(n))
    images = drawn.sample(n, "dpmpp_2m", steps=30, seed=0, batch_size=36, labels=labels, progress=progress)
    write_png(folder / PICTURE, images, model.data_range)
    with atomic(folder / PAGE) as path:
        path.write_text(page(model, id, license), encoding="utf-8")


def page(model: Model, id: str, license: str | None = None) -> str:
    """The text of README.md: a front matter that the hub reads, and what people do."""
    card = model.card
    front = ["library_name: sdesolve", "pipeline_tag: unconditional-image-generation", *([f"license: {license}"] if license else [])]
    weights = sum(p.numel() for p in model.network.parameters())
    drawn = "m.sample(16, \"dpmpp_2m\", steps=30, seed=0" + (", labels=0)" if model.classes else ")")
    classes = f", {model.classes} classes" if model.classes else ""
    parts = [
        "---", *front, "---", f"# {card['name']}", "",
        f"![Images of the model, drawn and not chosen]({PICTURE})", "",
        f"A score-based generative model: {card['network']} with {weights:,} weights, images {model.shape} in {list(model.data_range)}{classes}; process `{model.process}`, "
        f"the network predicts {card['predicts']}.", "",
        "```", 'pip install "sdesolve[hub]"', "```", "",
        "```python", "import sdesolve_gen as gen", "",
        f'm = gen.load("{id}", revision="COMMIT")  # the 40 digits of a commit of this page\'s history', f"images = {drawn}", "```", "",
    ]  # fmt: skip
    for title, key in (("Training", "training"), ("Measured", "figures"), ("Versions", "versions")):
        parts += _section(title, card.get(key))
    return "\n".join(parts)


def _section(title: str, said: Any) -> list[str]:
    """What the card says, as it says it; nothing where it says nothing."""
    return [f"## {title}", "", "```json", json.dumps(said, indent=2), "```", ""] if said else []
