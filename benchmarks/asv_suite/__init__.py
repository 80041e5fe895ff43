"""The asv suite: the hot paths of ``solve``, from one commit to the next.  ``asv run --quick --python=same`` tries it once."""
