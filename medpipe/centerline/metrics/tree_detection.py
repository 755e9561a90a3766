"""Masks of trees against masks of references: how much of the tree was found.

References
----------
Zhang et al. 2023 (ATM'22), doi:10.1016/j.media.2023.102957; Shit et al. 2021 (clDice),
arXiv:2003.07311.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import NDArray

from medpipe.centerline.metrics.voxel_facts import as_mask, lee_skeleton
from medpipe.centerline.topology import betti_numbers
from medpipe.errors import StepError
from medpipe.steps._components import keep_largest

__all__ = [
    "BettiErrors",
    "ClDice",
    "TreeDetection",
    "betti_errors",
    "cl_dice",
    "tree_detection_scores",
]

BRANCH_SHARE = 0.8

Mask = torch.Tensor | NDArray


@dataclass(frozen=True)
class TreeDetection:
    """How much of a tree a mask holds; shares are 0 to 1 and NaN of nothing.

    Parameters
    ----------
    tree_length : float
        TD: share of the voxels of the skeleton of the reference inside the mask.
    branches_detected : float
        BD: share of the branches that count as detected.
    branches, detected : int
        Branches of the reference, and those detected.
    dice : float
        2 |result ∩ reference| / (|result| + |reference|).
    precision : float
        Share of the mask inside the reference.
    leakage : float
        Volume of the mask outside the reference over the volume of the reference.
    """

    tree_length: float
    branches_detected: float
    branches: int
    detected: int
    dice: float
    precision: float
    leakage: float


@dataclass(frozen=True)
class ClDice:
    """Centerline Dice: the harmonic mean of both.

    Parameters
    ----------
    cl_dice : float
    precision : float
        Share of the skeleton of the result inside the reference.
    sensitivity : float
        Share of the skeleton of the reference inside the result.
    """

    cl_dice: float
    precision: float
    sensitivity: float


@dataclass(frozen=True)
class BettiErrors:
    """Absolute differences in the number of components, loops and cavities."""

    components: int
    loops: int
    cavities: int


def tree_detection_scores(
    reference: Mask,
    result: Mask,
    branches: Mask,
    *,
    skeleton: Mask | None = None,
    share: float = BRANCH_SHARE,
    largest: bool = True,
) -> TreeDetection:
    """Return the measures of the airway tree challenge ATM'22.

    Parameters
    ----------
    reference, result : tensor or array (I, J, K)
        Masks; what is not 0 is inside.
    branches : integer tensor or array (I, J, K)
        Number of the branch that each voxel of the skeleton belongs to, from 1.
    skeleton : tensor or array (I, J, K), optional
        Needed where `branches` numbers the whole volume; else its voxels above 0.
    share : float
        A branch is detected if this share of its voxels is inside the result.
    largest : bool
        Whether only the largest component of the result counts, as in the challenge.

    Raises
    ------
    StepError
        If the shapes differ.
    """
    truth, found = _same(as_mask(reference), as_mask(result))
    number = torch.as_tensor(branches, device=truth.device).to(torch.long)
    line = _same(truth, as_mask(number if skeleton is None else skeleton))[1]
    line = line & (_same(truth, number)[1] > 0)
    if largest:
        found = keep_largest(found, connectivity=3)
    of_branch = number[line]
    all_voxels = torch.bincount(of_branch)
    inside = torch.bincount(of_branch[found[line]], minlength=len(all_voxels))
    there = all_voxels > 0
    # in integers where they can be: 8 of 10 voxels are 80 %
    hit = inside[there] >= share * all_voxels[there].to(torch.float64) * (1 - 1e-12)
    n, detected = int(there.sum()), int(hit.sum())
    both, volume, extent = int((truth & found).sum()), int(truth.sum()), int(found.sum())
    return TreeDetection(
        tree_length=_share(int(inside.sum()), int(all_voxels.sum())),
        branches_detected=_share(detected, n),
        branches=n,
        detected=detected,
        dice=_share(2 * both, volume + extent),
        precision=_share(both, extent),
        leakage=_share(extent - both, volume),
    )


def cl_dice(
    reference: Mask,
    result: Mask,
    *,
    reference_skeleton: Mask | None = None,
    result_skeleton: Mask | None = None,
) -> ClDice:
    """Return the centerline Dice of two masks (I, J, K).

    Skeletons that are not given are made by `lee_skeleton`. Two empty masks agree; a skeleton
    without voxels beside one with some scores 0.

    Raises
    ------
    StepError
        If the shapes differ.
    """
    truth, found = _same(as_mask(reference), as_mask(result))
    lines = [
        lee_skeleton(mask) if given is None else as_mask(given)
        for mask, given in ((truth, reference_skeleton), (found, result_skeleton))
    ]
    lines = [_same(truth, line)[1] for line in lines]
    if not any(bool(mask.any()) for mask in (truth, found)):
        return ClDice(1.0, 1.0, 1.0)
    precision = _hits(lines[1], truth)
    sensitivity = _hits(lines[0], found)
    both = precision + sensitivity
    return ClDice(2 * precision * sensitivity / both if both else 0.0, precision, sensitivity)


def betti_errors(reference: Mask, result: Mask) -> BettiErrors:
    """Return how far a mask is from a reference in components, loops and cavities.

    Of whole masks: errors that cancel each other are not seen.
    """
    numbers = [betti_numbers(as_mask(mask)) for mask in (reference, result)]
    return BettiErrors(*(abs(a - b) for a, b in zip(*numbers, strict=True)))


def _hits(line: torch.Tensor, mask: torch.Tensor) -> float:
    count = int(line.sum())
    return int((line & mask).sum()) / count if count else 0.0


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _same(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both on the device of the first."""
    if a.shape != b.shape:
        raise StepError(
            "the masks have different shapes",
            expected=f"shape {tuple(a.shape)}",
            got=f"shape {tuple(b.shape)}",
        )
    return a, b.to(a.device)
