"""Optimal surfaces along an axis of an image as a transform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.convex import ConvexPrior
from medpipe.graphcut.displacement import edge_displacement, resample_costs
from medpipe.graphcut.solve import Solver
from medpipe.graphcut.surface_costs import (
    Direction,
    edge_slope,
    fill_missing,
    gaussian_filter,
    gradient_cost,
    valid_columns,
)
from medpipe.graphcut.surfaces import Separation, SurfaceProblem, optimal_surfaces
from medpipe.graphcut.transforms.certificate import with_certificate
from medpipe.graphcut.transforms.grid import one_channel
from medpipe.graphcut.transforms.height_map import height_image
from medpipe.steps._base import ArrayStep, DictStep, check_choice

__all__ = [
    "OptimalSurfaces",
    "OptimalSurfacesD",
    "OptimalSurfacesDict",
    "OptimalSurfacesd",
    "edge_scale",
]

Smoothness = Literal["none", "linear", "quadratic", "dead_zone", "dead_zone_quadratic", "huber"]


class OptimalSurfaces(ArrayStep):
    """Find surfaces along an axis of an image, all at once and provably optimal.

    One column of nodes runs through every voxel of a face of the image; the nodes lie
    half way between samples, where the change from one to the next belongs. Each
    surface takes one node of each column so that edges of the wanted direction, smoothness and
    the distances between surfaces add up to the least cost (Li, Wu, Chen and Sonka
    2006, doi 10.1109/TPAMI.2006.19; convex smoothness on irregular nodes: Shah,
    Abràmoff and Wu 2019, doi 10.1016/j.media.2019.02.004). Columns with NaN have no
    data: the surfaces bridge them.

    Parameters
    ----------
    edges : list of {"dark_to_bright", "bright_to_dark", "either"}
        One for each surface in the order along the columns: the change of intensity
        that it lies on.
    axis : int
        Axis of the image along the columns: 0, 1 or 2.
    reverse : bool
        Columns run from the last voxel of the axis to the first.
    sigma_mm : float, optional
        Width of the derivative along the columns; one sample by default.
    lateral_mm : float
        Width of a Gaussian across the columns, against noise; 0 for none.
    smoothness : {"linear", "none", "quadratic", "dead_zone", "dead_zone_quadratic", "huber"}
        Cost of a difference of height between neighbouring columns.
    weight : float or list of float
        Weight of the smoothness per mm (linear, dead_zone) or mm² of difference, for
        all surfaces or one each. The strongest edges cost 0 (see `edge_scale`), a flat
        place ½, an edge of the other direction up to 1.
    width_mm : float
        Difference that is free (dead zones) or quadratic (huber).
    max_jump_mm : float, optional
        Largest difference of height between neighbouring columns. Quadratic
        smoothness is slow without it.
    min_separation_mm : float or list of float
        Least distance from each surface to the next, for all pairs or one each.
    max_separation_mm : float or list of float, optional
        Largest distance from each surface to the next.
    wrap : list of int
        Axes of the image whose end is joined to their beginning.
    irregular : bool
        Move nodes to where the slopes around them place a step, so that surfaces are not
        tied to the samples. Edges as sharp as the samples or sharper are placed exactly;
        both edges of a layer thinner than a sample are not.
    names : list of str, optional
        One for each surface.
    solver : {"auto", "pseudoflow", "stencil", "ortools", "scipy"}
        See `medpipe.graphcut.solve.min_cut`.
    """

    def __init__(
        self,
        edges: Sequence[Direction],
        axis: int = 2,
        reverse: bool = False,
        sigma_mm: float | None = None,
        lateral_mm: float = 0.0,
        smoothness: Smoothness = "linear",
        weight: float | Sequence[float] = 1.0,
        width_mm: float = 0.0,
        max_jump_mm: float | None = None,
        min_separation_mm: float | Sequence[float] = 0.0,
        max_separation_mm: float | Sequence[float] | None = None,
        wrap: Sequence[int] = (),
        irregular: bool = True,
        names: Sequence[str] | None = None,
        solver: Solver = "auto",
    ) -> None:
        if not edges:
            raise UsageError("there is no surface to find", expected="edges: one direction each")
        for edge in edges:
            check_choice("direction of an edge", edge, get_args(Direction))
        check_choice("smoothness", smoothness, get_args(Smoothness))
        if axis not in (0, 1, 2) or any(w not in (0, 1, 2) or w == axis for w in wrap):
            raise UsageError("axis or wrap is wrong", expected="axes 0, 1, 2; wrap without axis")
        if not (lateral_mm >= 0 and (sigma_mm is None or sigma_mm > 0)):
            raise UsageError("a width is wrong", expected="sigma_mm > 0, lateral_mm of 0 or more")
        if names is not None and (len(names) != len(edges) or len(set(names)) != len(names)):
            raise UsageError("names is wrong", expected=f"{len(edges)} different names")
        self.edges: tuple[Direction, ...] = tuple(edges)
        self.axis, self.reverse, self.irregular = axis, reverse, irregular
        self.sigma_mm, self.lateral_mm = sigma_mm, lateral_mm
        weights = _each("weight", weight, len(edges))
        self.priors = [ConvexPrior(smoothness, w, width_mm, max_jump_mm) for w in weights]
        low = _each("min_separation_mm", min_separation_mm, len(edges) - 1)
        largest = math.inf if max_separation_mm is None else max_separation_mm
        high = _each("max_separation_mm", largest, len(edges) - 1)
        self.separations = [Separation(a, b) for a, b in zip(low, high, strict=True)]
        self.wrap = tuple(wrap)
        self.names = tuple(names or ())
        self.solver: Solver = solver

    def __call__(self, img: Any) -> MetaTensor:
        """Return the surfaces as a map of positions, float32 (S, I, J, K).

        The column axis has one voxel; values are mm from the first sample of each
        column. See `medpipe.graphcut.transforms.height_map`.

        Raises
        ------
        StepError
            If the image has no complete column, several channels or a sheared grid, or
            the limits conflict.
        """
        image, volume, spacing = one_channel(img)
        columns = volume.movedim(self.axis, -1)
        columns = columns.flip(-1) if self.reverse else columns
        valid = valid_columns(columns)
        empty = int((~valid).sum())
        if empty == valid.numel():
            raise StepError("no column has data", expected="columns without NaN along the axis")
        lateral = [n for n in range(3) if n != self.axis]
        wrap = tuple(lateral.index(w) for w in self.wrap)
        step = spacing[self.axis]
        sigma = [self.lateral_mm / spacing[n] for n in lateral]
        smooth = _smoothed(columns, valid, sigma, wrap)
        costs = self._costs(smooth, step)
        nodes = torch.arange(costs.shape[-1], dtype=torch.float64, device=costs.device)
        positions = (step * (nodes + 0.5)).expand(costs.shape[1:])
        if self.irregular:
            width = self.sigma_mm or step
            slope = edge_slope(smooth, step, sigma_mm=width, between=True)
            moved = edge_displacement(slope, positions, sigma_mm=width)
            positions, costs = moved.positions_mm, resample_costs(costs, moved)
        result = optimal_surfaces(
            SurfaceProblem(costs, positions, self.priors, self.separations, valid=valid, wrap=wrap),
            solver=self.solver,
        )
        out = height_image(
            image,
            result.position_mm,
            axis=self.axis,
            reverse=self.reverse,
            names=self.names,
            wrap=self.wrap,
        )
        notes = [f"{empty} of {valid.numel()} columns without data are bridged"] if empty else []
        return with_certificate(out, "optimal_surfaces", result, *notes)

    def _costs(self, columns: torch.Tensor, step_mm: float) -> torch.Tensor:
        """Return the costs of the surfaces half way between samples, (S, X, Y, K - 1)."""
        sigma = self.sigma_mm or step_mm
        made = {
            edge: gradient_cost(
                columns,
                step_mm,
                direction=edge,
                sigma_mm=sigma,
                scale=edge_scale(columns, step_mm, edge, sigma),
                between=True,
            )
            for edge in dict.fromkeys(self.edges)
        }
        return torch.stack([made[edge] for edge in self.edges])


def edge_scale(
    columns: torch.Tensor, step_mm: float, direction: Direction, sigma_mm: float
) -> torch.Tensor:
    """Return the derivative per mm, between samples, that counts as a full edge.

    Of every column (..., K) with data the strongest edge of the direction, and of these
    the 99th percentile: unlike a percentile over nodes it does not depend on how many
    nodes a column has, and it clips no edge that another one could be compared with.
    """
    valid = valid_columns(columns)
    slope = edge_slope(columns, step_mm, sigma_mm=sigma_mm, between=True)
    if direction == "either":
        slope = slope.abs()
    elif direction == "bright_to_dark":
        slope = -slope
    strongest = slope.amax(-1)[valid].clamp(min=0)
    rank = max(1, math.ceil(0.99 * strongest.numel()))
    return torch.kthvalue(strongest, rank).values


def _each(name: str, value: float | Sequence[float], count: int) -> list[float]:
    """Return one number for each of `count`, from one or as many."""
    values = [float(value)] * count if isinstance(value, int | float) else [float(v) for v in value]
    if len(values) != count or any(math.isnan(v) for v in values):
        raise UsageError(f"{name} is wrong", expected=f"one number or {count}", got=str(value)[:40])
    return values


def _smoothed(
    columns: torch.Tensor, valid: torch.Tensor, sigma: Sequence[float], wrap: tuple[int, ...]
) -> torch.Tensor:
    """Return columns averaged with their neighbours; those without data lend and get nothing."""
    widths = [s if n > 1 else 0.0 for s, n in zip(sigma, valid.shape, strict=True)]
    if not any(widths):
        return columns
    weight = valid[..., None].to(columns.dtype)
    total = gaussian_filter(fill_missing(columns), [*widths, 0.0], wrap=wrap)
    share = gaussian_filter(weight, [*widths, 0.0], wrap=wrap)
    return torch.where(valid[..., None], total / share, torch.nan)


class OptimalSurfacesd(DictStep):
    """Find surfaces along an axis of images, all at once and provably optimal.

    The result is a map: one channel a surface, one voxel along the columns, and
    positions in mm from the first sample of each column.

    Parameters
    ----------
    keys : keys of the images, replaced by maps of their surfaces
    edges, axis, reverse, sigma_mm, lateral_mm, smoothness, weight, width_mm, max_jump_mm, \
min_separation_mm, max_separation_mm, wrap, irregular, names, solver
        See `OptimalSurfaces`.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "2"
    reads = ()
    writes = ()
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        edges: list[Literal["dark_to_bright", "bright_to_dark", "either"]],
        axis: int = 2,
        reverse: bool = False,
        sigma_mm: float | None = None,
        lateral_mm: float = 0.0,
        smoothness: Literal[
            "linear", "none", "quadratic", "dead_zone", "dead_zone_quadratic", "huber"
        ] = "linear",
        weight: float | list[float] = 1.0,
        width_mm: float = 0.0,
        max_jump_mm: float | None = None,
        min_separation_mm: float | list[float] = 0.0,
        max_separation_mm: float | list[float] | None = None,
        wrap: list[int] | None = None,
        irregular: bool = True,
        names: list[str] | None = None,
        solver: Literal["auto", "pseudoflow", "stencil", "ortools", "scipy"] = "auto",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = OptimalSurfaces(
            edges=edges,
            axis=axis,
            reverse=reverse,
            sigma_mm=sigma_mm,
            lateral_mm=lateral_mm,
            smoothness=smoothness,
            weight=weight,
            width_mm=width_mm,
            max_jump_mm=max_jump_mm,
            min_separation_mm=min_separation_mm,
            max_separation_mm=max_separation_mm,
            wrap=wrap or (),
            irregular=irregular,
            names=names,
            solver=solver,
        )


OptimalSurfacesD = OptimalSurfacesDict = OptimalSurfacesd
