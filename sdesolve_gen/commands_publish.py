"""``sdesolve-gen publish``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import hub
from .models import load
from .outputs import writable
from .publishing import FILES, check_publishable, write_published


def publish_command(
    model: Annotated[str, typer.Argument(help="A folder that train or import wrote, or the name of an embedded model.")],
    to: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The model's id on the hub, which its page tells people to load.")],
    out: Annotated[str, typer.Option(help="Folder for the files: weights, card, picture and page.")],
    upload: Annotated[bool, typer.Option("--upload/--no-upload", help="Send them to the hub, or leave it at the folder.")] = True,
    private: Annotated[bool, typer.Option("--private", help="A new model is seen by its owner alone.")] = False,
    license: Annotated[str | None, typer.Option(help="Of the weights, by its identifier, as in apache-2.0.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Weights in float16: half the space, rounded to 11 bits.")] = False,
    n: Annotated[int, typer.Option(min=1, max=400, help="Images in the picture.")] = 36,
    device: Annotated[str, typer.Option(help='Where they are drawn: "cpu", "cuda", "cuda:1", "mps".')] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are already there.")] = False,
) -> None:
    """Publish a model: its weights and card, a picture of its samples, and a page that says how it was trained and how it is loaded.

    The folder holds all of it, and is sent to the hub as one commit, by whose 40 digits everybody loads exactly these weights. `hf auth login` tells the hub who you are.

    **Examples**

    `sdesolve-gen publish runs/cifar someone/cifar-edm --out upload/ --license apache-2.0`

    `sdesolve-gen publish runs/cifar someone/cifar-edm --out upload/ --no-upload` (the folder alone, to look at)

    Exit codes: 0 done, 1 a file could not be written, 2 a bad value, or the hub did not take it, 130 interrupted.
    """
    from .cli import _told

    with _told():
        if not hub.is_hub_id(to):
            raise ValueError(f"{to!r} is not an id of the hub; expected OWNER/NAME, as in someone/{Path(model).name}.")
        folder = Path(out).expanduser()
        loaded = load(model, device)
        check_publishable(loaded, license)
        writable(out, tuple(folder / name for name in FILES), overwrite)
        write_published(folder, loaded, to, license=license, half=half, n=n, progress=True)
        typer.echo(f"wrote {', '.join(str(folder / name) for name in FILES if (folder / name).exists())}")
        if upload:
            commit = hub.upload(folder, FILES, to, private)
            typer.echo(f'published; everybody loads it with  gen.load("{to}", revision="{commit}")')
