"""Several interacting objects in one minimum cut.

Each object is a layer of binary labels over the voxels. Its energy is the data
cost of the voxels inside, the weights of the links its surface severs and the
capacities of the directed prior arcs it breaks; relations make layers contain or
exclude each other at a distance. All of it is one cut, so the result is the
global optimum (Boykov and Jolly 2001, doi 10.1109/ICCV.2001.937505; Delong and
Boykov 2009, doi 10.1109/ICCV.2009.5459263).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.contradictions import explain_contradiction, refuse_contradictions
from medpipe.graphcut.layer_graph import LayerGraph, build_graph, demands_of
from medpipe.graphcut.links import (
    Metric,
    Neighbours,
    contrast_links,
    difference_sigma,
)
from medpipe.graphcut.problem import INFINITE, CutResult, finite_total
from medpipe.graphcut.relations import (
    Contain,
    Exclude,
    Layer,
    Relation,
    ball_offsets,
    beyond_border,
    check_layers,
)
from medpipe.graphcut.solve import Solver, min_cut
from medpipe.graphcut.unaries import gaussian_mixture_costs, histogram_costs
from medpipe.graphcut.voxels import Spacing, check_spacing, pair

__all__ = [
    "Contain",
    "Exclude",
    "Layer",
    "MultiObjectResult",
    "Relation",
    "boykov_jolly",
    "multi_object_cut",
    "multi_object_energy",
]

COARSER = 16.0
"""Factor of the step where the sum of all costs is too large for the solver."""


@dataclass(frozen=True, eq=False)
class MultiObjectResult:
    """The labelling of several layers and how near it is to the best one.

    Parameters
    ----------
    masks : Tensor
        Bool (O, X, Y, Z), in the order of the layers.
    names : tuple of str
        Names of the layers.
    energy : float
        Energy of the masks in nats, from the real costs in float64.
    bound : float
        No labelling that keeps the hard constraints has an energy below it.
    step : float
        Nats per unit of the integer costs, a power of two.
    proved : bool
        Whether flow and cut of the integer problem are equal.
    notes : list of str
        What a reader should know: objects that are empty, a coarser step.
    cut : CutResult
        The cut of the integer problem.
    details : dict
        Parameters that were estimated (JSON values).
    """

    masks: torch.Tensor
    names: tuple[str, ...]
    energy: float
    bound: float
    step: float
    proved: bool
    notes: list[str]
    cut: CutResult
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """Energy minus bound: below one `step` for each term that the labelling pays."""
        return self.energy - self.bound

    def mask(self, name: str) -> torch.Tensor:
        """Return the mask (X, Y, Z) of one layer."""
        return self.masks[self.names.index(name)]


def multi_object_cut(
    layers: Sequence[Layer],
    relations: Sequence[Relation] = (),
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    *,
    step: float | None = None,
    solver: Solver = "auto",
) -> MultiObjectResult:
    """Segment several objects at once, with a proof of optimality.

    Parameters
    ----------
    layers : sequence of Layer
        The objects, all on one grid and device.
    relations : sequence of Contain or Exclude
        How they relate.
    spacing_mm : sequence of 3 float
        Distance of voxel centres along each axis.
    step : float, optional
        Nats per unit of the integer costs, rounded down to a power of two. By
        default the largest finite cost becomes at most 2^20 units; the step
        grows where their sum is too large for the solver, and `notes` then says so.
    solver : str
        See `min_cut`.

    Returns
    -------
    MultiObjectResult
        Where several labellings are best, the largest of the layers that are
        not flipped: the first one and all that it contains or that contain it.

    Raises
    ------
    StepError
        If costs are NaN or negative, grids differ, relations form a frustrated
        cycle, or seeds, relations and hard prior arcs contradict each other.

    Notes
    -----
    Costs are rounded down, so ``energy - bound`` is the sum of what was cut off
    from the terms that the labelling pays: below `step` times their number.
    """
    spacing = check_spacing(spacing_mm)
    check_layers(layers)
    graph = build_graph(layers, relations, spacing)
    refuse_contradictions(layers, relations, spacing)
    used, cut, coarser = _solve(graph, layers, relations, spacing, step, solver)
    masks = graph.masks(cut.source_side)
    energy = multi_object_energy(layers, relations, masks, spacing)
    # the optimum is at most this energy; the two sums may differ in the last digits
    bound = min(graph.constant + used * cut.flow, energy)
    names = tuple(layer.name for layer in layers)
    notes = _notes(names, masks)
    if coarser:
        notes.append(
            f"costs were rounded to {used:g} nats, as their sum is too large for the solver"
        )
    return MultiObjectResult(masks, names, energy, bound, used, cut.proved, notes, cut)


def multi_object_energy(
    layers: Sequence[Layer],
    relations: Sequence[Relation],
    masks: torch.Tensor,
    spacing_mm: Sequence[float],
) -> float:
    """Return the energy of a labelling in nats, inf if it breaks a hard constraint.

    Parameters
    ----------
    layers, relations, spacing_mm
        As in `multi_object_cut`.
    masks : Tensor
        Bool (O, X, Y, Z).
    """
    spacing = check_spacing(spacing_mm)
    terms = []
    for layer, mask in zip(layers, masks, strict=True):
        demands = demands_of(layer)
        if bool((demands.inside & ~mask).any()) or bool((demands.outside & mask).any()):
            return math.inf
        terms.append(float(demands.cost[mask].sum()))
        for offset, weights in layer.links:
            tail, head = pair(mask, offset)
            terms.append(_paid(weights, offset, tail ^ head))
        for offset, capacity in layer.arcs:
            tail, head = pair(mask, offset)
            terms.append(_paid(capacity, offset, tail & ~head))
    names = [layer.name for layer in layers]
    for relation in relations:
        first, second = (masks[names.index(name)] for name in relation.layers)
        broken = _broken_pairs(relation, first, second, spacing)
        terms.append(relation.weight * broken if broken else 0.0)
    return math.fsum(terms) if math.inf not in terms else math.inf


def boykov_jolly(
    image: torch.Tensor,
    spacing_mm: Sequence[float],
    foreground_seeds: torch.Tensor,
    background_seeds: torch.Tensor,
    *,
    unary: Literal["gaussian_mixture", "histogram", "none"] = "gaussian_mixture",
    components: int = 3,
    weight: float = 1.0,
    sigma: float | None = None,
    neighbours: Neighbours = 26,
    metric: Metric = "euclidean",
    solver: Solver = "auto",
) -> MultiObjectResult:
    """Segment one object from seeds.

    Parameters
    ----------
    image : Tensor
        Intensities (X, Y, Z).
    spacing_mm : sequence of 3 float
        Distance of voxel centres along each axis.
    foreground_seeds, background_seeds : Tensor
        Masks (X, Y, Z): these voxels are inside and outside, and their
        intensities teach the model of each side.
    unary : {"gaussian_mixture", "histogram", "none"}
        Model of the intensities; "none" lets edges and seeds decide alone.
    components : int
        Components of each Gaussian mixture.
    weight, sigma, neighbours, metric
        See `contrast_links`. By default a surface costs 1 nat per mm² where
        the image is flat, less along edges.
    solver : str
        See `min_cut`.

    Returns
    -------
    MultiObjectResult
        One mask, named ``"object"``; ``details["sigma"]`` is the sigma used.

    Raises
    ------
    StepError
        If there are no seeds on a side, they overlap, or the image is not finite.
    """
    if unary == "gaussian_mixture":
        inside, outside = gaussian_mixture_costs(
            image, foreground_seeds, background_seeds, components=components
        )
    elif unary == "histogram":
        inside, outside = histogram_costs(image, foreground_seeds, background_seeds)
    elif unary == "none":
        inside = outside = torch.zeros(image.shape, device=image.device)
        if not bool(foreground_seeds.any()) or not bool(background_seeds.any()):
            raise StepError("there are no seeds on one side", expected="seeds of both sides")
    else:
        raise UsageError("unary is wrong", expected="gaussian_mixture, histogram or none")
    width = difference_sigma(image) if sigma is None else float(sigma)
    links = contrast_links(image, spacing_mm, neighbours, weight, width, metric)
    layer = Layer(
        "object", inside - outside, links, inside=foreground_seeds, outside=background_seeds
    )
    result = multi_object_cut([layer], (), spacing_mm, solver=solver)
    result.details["sigma"] = width
    return result


def _solve(
    graph: LayerGraph,
    layers: Sequence[Layer],
    relations: Sequence[Relation],
    spacing_mm: Spacing,
    step: float | None,
    solver: Solver,
) -> tuple[float, CutResult, bool]:
    """Return the step, the cut, and whether the step had to grow."""
    used = graph.auto_step() if step is None else _power_of_two(step)
    coarser = False
    while True:
        problem = graph.problem(used)
        try:
            return used, min_cut(problem, solver), coarser
        except StepError:
            contradiction = explain_contradiction(layers, relations, spacing_mm)
            if contradiction is not None:
                raise contradiction from None
            # below INFINITE no infinite arc need be cut
            if step is not None or finite_total(problem) < INFINITE:
                raise
        used, coarser = used * COARSER, True


def _power_of_two(step: float) -> float:
    if not 0 < step < math.inf:
        raise UsageError("step is wrong", expected="above 0", got=f"{step:g}")
    return 2.0 ** math.floor(math.log2(step))


def _paid(capacity: torch.Tensor | float, offset: Sequence[int], where: torch.Tensor) -> float:
    """Return the sum of the capacities at the tails of the arcs in `where`."""
    if not isinstance(capacity, torch.Tensor) or capacity.ndim == 0:
        count = int(where.sum())
        return float(capacity) * count if count else 0.0
    return float(pair(capacity, offset)[0][where].sum(dtype=torch.float64))


def _broken_pairs(
    relation: Relation, first: torch.Tensor, second: torch.Tensor, spacing_mm: Spacing
) -> int:
    """Return how many pairs of voxels break a relation."""
    wrong = ~second if isinstance(relation, Contain) else second
    broken = 0
    for offset in ball_offsets(relation.distance_mm, spacing_mm):
        broken += int((pair(first, offset)[0] & pair(wrong, offset)[1]).sum())
    if isinstance(relation, Contain) and relation.border == "outside":
        beyond = beyond_border(first.shape, relation.distance_mm, spacing_mm, first.device)
        broken += int(beyond[first].sum())
    return broken


def _notes(names: Sequence[str], masks: torch.Tensor) -> list[str]:
    notes = []
    for name, mask in zip(names, masks, strict=True):
        if not bool(mask.any()):
            notes.append(f"layer {name} is empty")
        elif bool(mask.all()):
            notes.append(f"layer {name} fills the whole image")
    return notes
