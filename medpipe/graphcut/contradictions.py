"""Find seeds and hard relations of layers that cannot all hold, and name them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from medpipe.errors import StepError
from medpipe.graphcut.layer_graph import Demands, demands_of
from medpipe.graphcut.relations import Contain, Layer, Relation, beyond_border
from medpipe.graphcut.voxels import Spacing, pair
from medpipe.steps._balls import dilate_ball

__all__ = ["explain_contradiction", "refuse_contradictions"]


def refuse_contradictions(
    layers: Sequence[Layer], relations: Sequence[Relation], spacing_mm: Spacing
) -> None:
    """Raise StepError if the seeds of one layer, or of two related ones, contradict."""
    demands = {layer.name: demands_of(layer) for layer in layers}
    for name, d in demands.items():
        both = int((d.inside & d.outside).sum())
        if both:
            raise StepError(
                f"the seeds of layer {name} contradict each other",
                got=f"{both} voxels that must lie both inside and outside",
            )
    for relation in relations:
        if math.isinf(relation.weight):
            _refuse_pair(relation, demands, spacing_mm)


def explain_contradiction(
    layers: Sequence[Layer], relations: Sequence[Relation], spacing_mm: Spacing
) -> StepError | None:
    """Follow all hard relations and arcs from the seeds; name the layer they contradict in.

    Returns None if every demand can be kept.
    """
    demands = {layer.name: demands_of(layer) for layer in layers}
    must = {name: d.inside.clone() for name, d in demands.items()}
    never = {name: d.outside.clone() for name, d in demands.items()}
    hard = [r for r in relations if math.isinf(r.weight)]
    for relation in hard:
        if isinstance(relation, Contain) and relation.border == "outside":
            never[relation.inner] |= _near_border(relation, demands, spacing_mm)
    count = -1
    while count != (count := _total(must) + _total(never)):
        for relation in hard:
            _follow_relation(relation, must, never, spacing_mm)
        for layer in layers:
            _follow_arcs(layer, must[layer.name], never[layer.name])
    clash = {n: int((must[n] & never[n]).sum()) for n in must if bool((must[n] & never[n]).any())}
    if not clash:
        return None
    seeded = [n for n, d in demands.items() if bool(d.inside.any()) or bool(d.outside.any())]
    return StepError(
        "the seeds, relations and hard prior arcs contradict each other",
        got=", ".join(
            f"{n} voxels of layer {name} that must lie both inside and outside"
            for name, n in clash.items()
        ),
        hint=f"look at the seeds of {', '.join(seeded)}, the distances and the prior",
    )


def _refuse_pair(relation: Relation, demands: dict[str, Demands], spacing_mm: Spacing) -> None:
    first, second = relation.layers
    margin = f"{relation.distance_mm:g} mm"
    near = first_inside = demands[first].inside
    if isinstance(relation, Contain):
        near = dilate_ball(demands[second].outside, relation.distance_mm, spacing_mm)
        expected = f"layer {first} in layer {second} with a margin of {margin}"
        got = f"voxels that must lie in {first}, too near to voxels that must not lie in {second}"
        if relation.border == "outside":
            near = near | _near_border(relation, demands, spacing_mm)
            got += " or to the border of the image"
    else:
        near = dilate_ball(demands[second].inside, relation.distance_mm, spacing_mm)
        expected = f"layers {first} and {second} {margin} apart"
        got = f"voxels that must lie in {first}, too near to voxels that must lie in {second}"
    clash = int((first_inside & near).sum())
    if clash:
        raise StepError(
            f"the seeds of layers {first} and {second} contradict their relation",
            expected=expected,
            got=f"{clash} {got}",
        )


def _near_border(
    relation: Contain, demands: dict[str, Demands], spacing_mm: Spacing
) -> torch.Tensor:
    cost = demands[relation.inner].cost
    return beyond_border(cost.shape, relation.distance_mm, spacing_mm, cost.device) > 0


def _follow_relation(
    relation: Relation,
    must: dict[str, torch.Tensor],
    never: dict[str, torch.Tensor],
    spacing_mm: Spacing,
) -> None:
    first, second = relation.layers
    radius = relation.distance_mm
    if isinstance(relation, Contain):
        must[second] |= dilate_ball(must[first], radius, spacing_mm)
        never[first] |= dilate_ball(never[second], radius, spacing_mm)
    else:
        never[second] |= dilate_ball(must[first], radius, spacing_mm)
        never[first] |= dilate_ball(must[second], radius, spacing_mm)


def _follow_arcs(layer: Layer, must: torch.Tensor, never: torch.Tensor) -> None:
    for offset, capacity in layer.arcs:
        hard = torch.isinf(torch.as_tensor(capacity, device=must.device)).expand(must.shape)
        at_tail = pair(hard, offset)[0]
        tail, head = pair(must, offset)
        head |= tail.clone() & at_tail
        tail, head = pair(never, offset)
        tail |= head.clone() & at_tail


def _total(masks: dict[str, torch.Tensor]) -> int:
    return sum(int(m.sum()) for m in masks.values())
