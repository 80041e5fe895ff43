"""``python -m sdesolve_gen`` is ``sdesolve-gen``."""

from .cli import main

main()
