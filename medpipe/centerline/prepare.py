"""From a label map to the structures in it: checked, cut out, with distances and neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn.functional import max_pool3d

from medpipe.centerline.distance import distance_transform
from medpipe.centerline.graph import ForegroundGraph, foreground_graph
from medpipe.centerline.lumen import Lumen, Paths
from medpipe.centerline.solve import shortest_paths
from medpipe.centerline.topology import components, loops_per_component
from medpipe.errors import StepError
from medpipe.geometry import affine_problem, spacing_mm
from medpipe.types import Affine

__all__ = ["Structure", "check_labels", "structures_of"]

MAX_SPACING_MM = 50.0
MAX_LABEL = 255
MOST_SHARE = 0.8
"""Of a volume; a structure of more that reaches all of its faces is taken for the background."""


def _host(values: torch.Tensor) -> NDArray[np.generic]:
    """Return a tensor as an array on the host."""
    return np.asarray(values.detach().cpu().numpy())


@dataclass(frozen=True, eq=False)
class Structure:
    """One structure, on the device of its label map and as lists on the host.

    Parameters
    ----------
    lumen : Lumen
    graph : ForegroundGraph
    depth_mm : Tensor
        float32 (N,), as in `lumen`.
    """

    lumen: Lumen
    graph: ForegroundGraph
    depth_mm: torch.Tensor

    def loops(self) -> list[int]:
        """Return the number of loops of each component."""
        component = torch.from_numpy(self.lumen.component).to(self.depth_mm.device)
        return loops_per_component(self.graph, component)

    def cut(self, volume: torch.Tensor) -> torch.Tensor:
        """Return the values (N,) of a volume (I, J, K) at the voxels of the structure."""
        i, j, k = (self.graph.voxels + torch.from_numpy(self.lumen.origin).to(volume.device)).T
        return volume[i.long(), j.long(), k.long()]

    @property
    def box(self) -> tuple[slice, ...]:
        """Where the structure lies in the volume."""
        ends = self.lumen.origin + np.array(self.lumen.shape)
        return tuple(slice(a, b) for a, b in zip(self.lumen.origin, ends, strict=True))

    def dense(self, values: torch.Tensor) -> torch.Tensor:
        """Return values (N,) as an array over the box, 0 elsewhere."""
        out = values.new_zeros(self.lumen.shape)
        i, j, k = self.graph.voxels.long().T
        out[i, j, k] = values
        return out

    def near(self, mask: torch.Tensor) -> NDArray[np.bool_]:
        """Return which voxels lie in a mask (I, J, K) or touch it, (N,)."""
        low = self.lumen.origin - 1
        high = self.lumen.origin + np.array(self.lumen.shape) + 1
        low, high = np.maximum(low, 0), np.minimum(high, mask.shape)
        box = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        grown = torch.zeros(mask.shape, dtype=torch.bool, device=mask.device)
        grown[box] = max_pool3d((mask[box] > 0).float()[None], 3, 1, 1)[0] > 0
        return _host(self.cut(grown)).astype(np.bool_)

    def values(self, volume: torch.Tensor) -> NDArray[np.float64]:
        """Return the values of a volume at the voxels on the host, (N,)."""
        return _host(self.cut(volume)).astype(np.float64)

    def paths(self, roots: Sequence[int], cost: torch.Tensor | None) -> Paths:
        """Return the cheapest paths from roots; without a cost the shortest in mm."""
        starts = torch.tensor(list(roots), dtype=torch.int64, device=self.depth_mm.device)
        found = shortest_paths(self.graph, cost, starts)
        per_mm = torch.ones_like(found.distance) if cost is None else cost
        return Paths(
            predecessor=_host(found.predecessor).astype(np.int32, copy=False),
            source=_host(found.source).astype(np.int32, copy=False),
            cost=_host(per_mm).astype(np.float64, copy=False),
            total=_host(found.distance).astype(np.float64, copy=False),
        )


def check_labels(labels: torch.Tensor, affine: ArrayLike) -> torch.Tensor:
    """Return a label map as uint8 (I, J, K).

    Raises
    ------
    StepError
        If it is no label map of a volume, empty, or its affine not usable.
    """
    if labels.ndim != 3 or min(labels.shape, default=0) < 2:
        raise StepError(
            "a centerline needs a volume",
            expected="a label map (I, J, K) of two voxels or more along each axis",
            got=f"shape {tuple(labels.shape)}",
            hint="give the whole series, not one slice",
        )
    problem = affine_problem(affine)
    if problem:
        raise StepError(problem, expected="a finite, invertible affine in mm")
    step = spacing_mm(affine)
    if step.max() > MAX_SPACING_MM:
        raise StepError(
            "the voxels are too large",
            expected=f"a spacing in mm, {MAX_SPACING_MM:g} at most",
            got=f"{step.max():g} mm",
            hint="the affine may be in micrometres; convert it to mm",
        )
    _check_values(labels)
    out = labels.detach().to(torch.uint8)
    if not bool(out.any()):
        raise StepError("the mask is empty", expected="at least one voxel above 0")
    return out


def _check_values(labels: torch.Tensor) -> None:
    """Raise StepError unless the values are whole numbers from 0 to 255."""
    if labels.is_complex():
        raise StepError("the label map is complex", expected="whole numbers, 0 background")
    if labels.is_floating_point():
        if not bool(torch.isfinite(labels).all()):
            raise StepError("the label map holds NaN or infinite values")
        if bool((labels != labels.round()).any()):
            raise StepError(
                "the values are no labels",
                expected="whole numbers, 0 background",
                got="fractions, as in a probability map or an image",
                hint="use threshold first, such as lower = 0.5 for probabilities",
            )
    if labels.dtype in (torch.bool, torch.uint8):
        return
    low, high = float(labels.min()), float(labels.max()) + 0.0  # no -0
    if low < 0 or high > MAX_LABEL:
        raise StepError(
            "the values are no labels",
            expected=f"0 (background) to {MAX_LABEL}",
            got=f"{low:g} to {high:g}",
            hint="an image in HU needs a mask first",
        )


def structures_of(labels: torch.Tensor, affine: Affine) -> list[Structure]:
    """Return the structures of a label map (I, J, K) of uint8, by ascending value.

    Each is cut out with one voxel of margin where there is room: the background next to
    its box is nearer than any behind it, so distances stay exact.

    Raises
    ------
    StepError
        If a structure leaves no voxel free.
    """
    first, last = _box_of(labels)
    corner, end = np.maximum(first - 1, 0), np.minimum(last + 1, labels.shape)
    part = labels[tuple(slice(a, b) for a, b in zip(corner, end, strict=True))].contiguous()
    where = part.nonzero()
    values = part[where[:, 0], where[:, 1], where[:, 2]]
    out = []
    for value in _host(values.unique()).tolist():
        own = where[values == value]
        low = np.maximum(_host(own.amin(dim=0)).astype(np.int64) - 1, 0)
        high = np.minimum(_host(own.amax(dim=0)).astype(np.int64) + 2, part.shape)
        box = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        mask = (part[box] == value).contiguous()
        share = own.shape[0] / labels.numel()
        if bool(mask.all()) or (share > MOST_SHARE and _spans(own, corner, labels)):
            raise StepError(
                "the structure fills the volume",
                expected="background around it",
                got=f"{100 * share:.0f} % of the voxels",
                hint="check that the mask is not inverted",
            )
        out.append(_structure(mask, int(value), corner + low, affine))
    return out


def _spans(own: torch.Tensor, corner: NDArray[np.int64], labels: torch.Tensor) -> bool:
    """Say whether voxels (n, 3) of a part of a volume reach all of its six faces."""
    first, last = (corner + _host(ends).astype(np.int64) for ends in (own.amin(0), own.amax(0)))
    return bool((first == 0).all() and (last == np.array(labels.shape) - 1).all())


def _box_of(labels: torch.Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and the last voxel plus one, along each axis, of what is above 0."""
    # along axes as they lie in memory: others take a hundred times as long
    strides = labels.stride()
    axes = sorted(range(3), key=lambda axis: -strides[axis])
    stored = labels.permute(axes)
    plane = stored.amax(dim=2)
    rows = [plane.amax(dim=1), plane.amax(dim=0), stored.amax(dim=0).amax(dim=0)]
    box = np.empty((2, 3), np.int64)
    for axis, row in zip(axes, rows, strict=True):
        found = np.flatnonzero(_host(row))
        box[:, axis] = found[0], found[-1] + 1
    return box[0], box[1]


def _structure(
    mask: torch.Tensor, value: int, origin: NDArray[np.int64], affine: Affine
) -> Structure:
    shifted = affine.copy()
    shifted[:3, 3] = affine[:3, :3] @ origin + affine[:3, 3]
    depth = distance_transform(mask, spacing_mm(affine).tolist())
    graph = foreground_graph(mask, shifted)
    inside = depth[mask]
    lumen = Lumen(
        value=value,
        voxels=_host(graph.voxels).astype(np.int32, copy=False),
        neighbours=_host(graph.neighbours).astype(np.int32, copy=False),
        steps_mm=_host(graph.steps_mm).astype(np.float64, copy=False),
        depth_mm=_host(inside).astype(np.float64),
        component=_host(components(graph)).astype(np.int32, copy=False),
        origin=origin.astype(np.int64),
        affine=shifted,
        shape=(mask.shape[0], mask.shape[1], mask.shape[2]),
    )
    return Structure(lumen, graph, inside)
