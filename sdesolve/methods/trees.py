"""Order conditions of Runge-Kutta and Rosenbrock methods: one for each rooted tree.

A tree is the tuple of the trees that hang from its root, so () is a single vertex.  Of tau = (u, ..., w) we need

    size   |tau| = 1 + |u| + ... + |w|,          density   gamma(tau) = |tau| gamma(u) ... gamma(w),
    elementary weights   Phi_i(tau) = (sum_j a_ij Phi_j(u)) ... (sum_j a_ij Phi_j(w)).

A method is of order p if  sum_i b_i Phi_i(tau) = 1 / gamma(tau)  for every tree of at most p vertices.  In a Rosenbrock method
a vertex with a single branch takes a_ij + gamma_ij in place of a_ij.  A continuous extension x(t0 + theta h), whose weights are
b_i(theta) = sum_j p_ij theta^j, is of order p if the sum is theta^|tau| / gamma(tau), identically in theta.

[Hairer, Norsett & Wanner 1993, II.2 and II.6; Hairer & Wanner 1996, IV.7]
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import numpy as np

Tree: TypeAlias = tuple["Tree", ...]

_TOLERANCE = 1e-13  # of the largest term of a condition: what rounding leaves of 16 digits


@cache
def trees(size: int) -> tuple[Tree, ...]:
    """Every rooted tree of ``size`` vertices: 1, 1, 2, 4, 9, 20, 48, 115 of them for sizes 1 to 8."""
    return _forests(size - 1, size - 1)


@cache
def _forests(size: int, largest: int) -> tuple[Tree, ...]:
    """Every unordered collection of trees that has ``size`` vertices in all, and no tree of more than ``largest``."""
    if size == 0:
        return ((),)
    first_trees = ((n, tree) for n in range(1, min(size, largest) + 1) for tree in trees(n))
    return tuple({tuple(sorted((tree, *rest))): None for n, tree in first_trees for rest in _forests(size - n, n)})


@cache
def density(tree: Tree) -> int:
    """gamma(tau)."""
    return _size(tree) * int(np.prod([density(branch) for branch in tree], dtype=np.int64))


@cache
def _size(tree: Tree) -> int:
    return 1 + sum(_size(branch) for branch in tree)


def matrix(rows: Sequence[Sequence[float]], columns: int) -> np.ndarray:
    """Rows of different lengths as an array, filled up with zeros."""
    return np.array([[*row, *[0.0] * (columns - len(row))] for row in rows])


def check_order(name: str, order: int, weights: np.ndarray, a: np.ndarray, single: np.ndarray | None = None) -> None:
    """Whether ``weights``, b (s,) or p (s, degree), are of ``order`` with the matrix ``a`` (s, s).

    Arguments:
        name: of what is checked, for the message.
        single: the matrix at vertices with a single branch, where it is not ``a``.

    Raises:
        ValueError: the first condition that is broken.
    """
    known: dict[Tree, np.ndarray] = {}

    def phi(tree: Tree) -> np.ndarray:
        if tree not in known:
            branch_matrix = single if single is not None and len(tree) == 1 else a
            known[tree] = np.prod([branch_matrix @ phi(branch) for branch in tree] or [np.ones(len(a))], axis=0)
        return known[tree]

    if weights.ndim > 1:  # as many powers as there are conditions
        weights = np.pad(weights, ((0, 0), (0, max(0, order - weights.shape[1]))))
    for size in range(1, order + 1):
        power = np.arange(1, weights.shape[1] + 1) == size if weights.ndim > 1 else 1.0
        for tree in trees(size):
            got, expected = phi(tree) @ weights, power / density(tree)
            if np.any(abs(got - expected) > _TOLERANCE * max(1.0, float(np.max(abs(phi(tree)) @ abs(weights))))):
                raise ValueError(f"tableau [{name}]: the condition of order {size} of the tree {tree} gives {got}; expected {expected}.")
