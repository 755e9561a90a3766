"""Shape priors as arcs between voxels: what must be inside when a voxel is inside.

A vector field that points to the centre of an object becomes arcs "p inside implies q
inside", q being the next voxels along the field. An object that obeys them is star-shaped
about the place where the field ends, along the field's own lines (Veksler 2008,
doi 10.1007/978-3-540-88690-7_34, for straight ones). With all neighbours in a cone around
the field the arcs bound the angle between the object's normal and the field: the hedgehog
prior (Isack, Veksler, Sonka and Boykov, CVPR 2016; Isack, Boykov and Veksler,
arXiv 1602.01006).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import cos, pi
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import csgraph

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.vector_field import VectorField
from medpipe.steps._base import check_choice, check_triple

__all__ = ["ArcRule", "CycleReport", "PriorArcs", "prior_arcs"]

ArcRule = Literal["rounded", "cone"]
Offset = tuple[int, int, int]

NEIGHBOURS: tuple[Offset, ...] = tuple(
    (a, b, c) for a, b, c in product((-1, 0, 1), repeat=3) if (a, b, c) != (0, 0, 0)
)
TIE = 1e-6
"""Tolerance of the cosine: a neighbour exactly on the cone is inside."""


@dataclass(frozen=True)
class CycleReport:
    """Voxels that arcs lead round in a circle, which the prior glues together.

    Attributes
    ----------
    groups : int
        Groups of two or more voxels of which each implies every other.
    voxels : int
        Voxels in these groups.
    largest : int
        Voxels in the largest group.
    opened : int
        Groups whose arcs were taken out because they are larger than allowed.
    """

    groups: int
    voxels: int
    largest: int
    opened: int


class PriorArcs(NamedTuple):
    """Directed arcs of a shape prior and the cycles among them.

    Attributes
    ----------
    arcs : list of (offset, capacity)
        ``capacity[p]``, shape (X, Y, Z), is paid when p is inside and p + offset
        is not; ``inf`` is a hard constraint, 0 no arc.
    cycles : CycleReport
    """

    arcs: list[tuple[Offset, torch.Tensor]]
    cycles: CycleReport


def prior_arcs(
    field: VectorField | torch.Tensor,
    spacing_mm: float | tuple[float, float, float],
    rule: ArcRule = "rounded",
    angle_deg: float = 45.0,
    weight: float | torch.Tensor | None = None,
    *,
    min_length: float = 1e-3,
    max_core_voxels: int | None = 64,
) -> PriorArcs:
    """Return the arcs of a shape prior along a vector field.

    Parameters
    ----------
    field : VectorField or Tensor, shape (3, X, Y, Z)
        Directions in mm along the axes of the grid, towards the object's centre.
    spacing_mm : float or three floats
        Voxel size along X, Y, Z.
    rule : {"rounded", "cone"}
        ``"rounded"``: one arc per voxel, to the neighbour that the vector meets, its
        steps in voxels rounded relative to the largest. On an exactly radial field
        this ends at the centre and has no cycles. ``"cone"``: also all of the 26
        neighbours within ``90° - angle_deg`` of the vector.
    angle_deg : float
        Cone rule: how far the inward normal of the object may turn away from the
        field, 0 (excluded) to 90. At 90 the cone is the field line alone; smaller is
        stricter.
    weight : float or Tensor, shape (X, Y, Z), optional
        Price of each arc that is not obeyed; by default the arcs are hard.
    min_length : float
        A voxel whose vector is shorter than this part of the longest has no arcs.
    max_core_voxels : int or None
        Where the field ends, rounding makes arcs that lead round in circles, and the
        voxels of such a circle are inside only together. Groups up to this size are
        kept: a core of a few voxels about the centre is inside in every object with
        this centre. In larger groups (a medial sheet, an eddy) the arcs between the
        voxels of the group are taken out, so that the cut may pass through. None
        keeps all, 1 keeps none.

    Returns
    -------
    PriorArcs
        Arcs whose head is outside the grid are left out; families without arcs too.

    Raises
    ------
    StepError
        If the field has a wrong shape, is not finite or is zero everywhere, or the
        weight is negative or has a wrong shape.
    UsageError
        If a parameter is out of range.
    """
    check_choice("rule", rule, get_args(ArcRule))
    spacing = check_triple("spacing_mm", spacing_mm)
    if rule == "cone" and not 0 < angle_deg <= 90:
        raise UsageError("angle_deg is wrong", expected="above 0, at most 90", got=f"{angle_deg:g}")
    if not 0 < min_length < 1:
        raise UsageError("min_length is wrong", expected="between 0 and 1", got=f"{min_length:g}")
    if max_core_voxels is not None and max_core_voxels < 1:
        raise UsageError(
            "max_core_voxels is wrong", expected="1 or more, or None", got=str(max_core_voxels)
        )
    vectors = field.vectors if isinstance(field, VectorField) else field
    usable = _usable(vectors, min_length)
    price = _price(weight, vectors)
    masks = _rounded(vectors, spacing, usable)
    if rule == "cone":
        masks = _cone(vectors, spacing, usable, angle_deg, masks)
    masks = {o: m for o, m in masks.items() if bool(m.any())}
    cycles, masks = _treat_cycles(masks, tuple(usable.shape), max_core_voxels)
    return PriorArcs([(o, price.where(m, 0.0)) for o, m in masks.items()], cycles)


def _usable(vectors: torch.Tensor, min_length: float) -> torch.Tensor:
    """Return where a vector is long enough to have a direction, bool (X, Y, Z)."""
    if vectors.ndim != 4 or vectors.shape[0] != 3 or 0 in vectors.shape:
        raise StepError(
            "the field does not have the right axes",
            expected="a non-empty tensor (3, X, Y, Z)",
            got=f"shape {tuple(vectors.shape)}",
        )
    length = torch.linalg.vector_norm(vectors, dim=0)
    longest = length.max()
    if not bool(torch.isfinite(longest)):
        raise StepError("the field holds NaN or infinite values")
    if not bool(longest > 0):
        raise StepError("the field is zero everywhere, so it has no direction")
    return length > min_length * longest


def _price(weight: float | torch.Tensor | None, vectors: torch.Tensor) -> torch.Tensor:
    """Return the capacity of an arc as a floating tensor that fits (X, Y, Z)."""
    dtype = vectors.dtype
    price = torch.as_tensor(torch.inf if weight is None else weight, device=vectors.device)
    if price.ndim and price.shape != vectors.shape[1:]:
        raise StepError(
            "the weight of the shape prior has a wrong shape",
            expected=f"a number or {tuple(vectors.shape[1:])}",
            got=str(tuple(price.shape)),
        )
    if not bool((price >= 0).all()):
        raise StepError("the weight of the shape prior is negative or NaN", expected="0 or more")
    return price.to(dtype)


def _rounded(
    vectors: torch.Tensor, spacing: tuple[float, float, float], usable: torch.Tensor
) -> dict[Offset, torch.Tensor]:
    """Return, for each neighbour, where the vector meets it after rounding."""
    steps = vectors / vectors.new_tensor(spacing)[:, None, None, None]
    largest = steps.abs().amax(0).clamp(min=torch.finfo(steps.dtype).tiny)
    # half away from 0: opposite vectors then have opposite arcs
    whole = torch.sign(steps) * torch.floor(steps.abs() / largest + 0.5)
    code = ((whole[0] * 3 + whole[1]) * 3 + whole[2]).to(torch.int8)
    return {o: _inside_grid((code == (o[0] * 3 + o[1]) * 3 + o[2]) & usable, o) for o in NEIGHBOURS}


def _cone(
    vectors: torch.Tensor,
    spacing: tuple[float, float, float],
    usable: torch.Tensor,
    angle_deg: float,
    rounded: dict[Offset, torch.Tensor],
) -> dict[Offset, torch.Tensor]:
    """Return, for each neighbour, where it lies in the polar cone or is the rounded one."""
    least = cos((90 - angle_deg) / 180 * pi) - TIE
    unit = vectors / torch.linalg.vector_norm(vectors, dim=0).clamp(
        min=torch.finfo(vectors.dtype).tiny
    )
    out = {}
    for o in NEIGHBOURS:
        step = np.array(o) * np.array(spacing)
        step /= np.linalg.norm(step)
        cosine = sum(float(s) * u for s, u in zip(step, unit, strict=True) if s)
        out[o] = rounded[o] | _inside_grid((cosine >= least) & usable, o)
    return out


def _inside_grid(mask: torch.Tensor, offset: Offset) -> torch.Tensor:
    """Return a mask of tails without those whose head is outside the grid, in place."""
    for axis, step in enumerate(offset):
        if step:
            mask.select(axis, -1 if step > 0 else 0).fill_(False)
    return mask


def _treat_cycles(
    masks: dict[Offset, torch.Tensor], shape: tuple[int, ...], most: int | None
) -> tuple[CycleReport, dict[Offset, torch.Tensor]]:
    """Report the strongly connected groups and take the arcs out of those larger than `most`."""
    if not masks:
        return CycleReport(0, 0, 0, 0), masks
    group = _strong_groups(masks, shape)
    size = torch.bincount(group.reshape(-1))
    glued = size[size > 1]
    report = CycleReport(
        groups=glued.numel(),
        voxels=int(glued.sum()),
        largest=int(glued.max()) if glued.numel() else 1,
        opened=0 if most is None else int((glued > most).sum()),
    )
    if not report.opened or most is None:
        return report, masks
    large = (size > most)[group]
    out = {}
    for offset, mask in masks.items():
        # heads outside the grid wrap around here, but they have no arc
        head = torch.roll(group, [-o for o in offset], (0, 1, 2))
        out[offset] = mask & ~(large & (group == head))
    return report, {o: m for o, m in out.items() if bool(m.any())}


def _strong_groups(masks: dict[Offset, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """Return the number of the strongly connected group of each voxel, int64 (X, Y, Z)."""
    index = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    tails, heads = [], []
    for offset, mask in masks.items():
        tail = index[mask.detach().to("cpu").numpy()]
        tails.append(tail)
        heads.append(tail + np.int32((offset[0] * shape[1] + offset[1]) * shape[2] + offset[2]))
    tail, head = np.concatenate(tails), np.concatenate(heads)
    ones = np.ones(tail.size, np.int8)
    graph = sparse.csr_array((ones, (tail, head)), shape=(index.size, index.size))
    _, group = csgraph.connected_components(graph, connection="strong")
    device = next(iter(masks.values())).device
    return torch.from_numpy(group.reshape(shape)).to(device, torch.int64)
