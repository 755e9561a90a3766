"""Gradient vector flow: the normals of an object, carried smoothly into its inside and outside.

Gradient vector flow (Xu and Prince 1998, doi 10.1109/83.661186) is the field v with

    mu laplace(v) = |grad f|^2 (v - grad f)

and its generalised form (Xu and Prince 1998, doi 10.1016/S0165-1684(98)00140-6) the one with
``mu g laplace(v) = (1 - g) (v - grad f)``, ``g = exp(-|grad f| / kappa)``. Both are
``(c - laplace) v = c grad f`` with a weight c >= 0 that is large on edges. That is a linear
system, symmetric and positive definite, so it is solved by conjugate gradients instead of
by marching in time, where the steps that stability allows number in the square of the
voxels along an axis. Coarser grids come first and give each finer one its start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from monai.networks.layers.convutils import gaussian_1d
from monai.networks.layers.simplelayers import separable_filtering
from torch.nn import functional

from medpipe.errors import StepError, UsageError
from medpipe.steps._base import check_choice, check_triple

__all__ = ["FlowKind", "VectorField", "gradient_vector_flow", "smooth_mask"]

FlowKind = Literal["gvf", "ggvf"]
Spacing = tuple[float, float, float]

COARSEST = 12
"""Grids are coarsened until no axis that can be halved has more voxels than this."""
STIFFEST = 1e5
"""Limit of ``c h^2``: above it the flow equals the gradient within float32."""
CHECK_EVERY = 5


@dataclass(frozen=True)
class VectorField:
    """A field of vectors on a voxel grid and how well its equations are met.

    Attributes
    ----------
    vectors : Tensor, shape (3, X, Y, Z)
        Components along the axes of the grid, directions in mm; the steepest
        gradient of the input has length 1.
    iterations : int
        Conjugate gradient steps on the finest grid.
    change : float
        How far one further relaxation step would move a vector, at most,
        relative to the longest vector.
    converged : bool
        Whether `change` fell below the tolerance.
    coarse_iterations : tuple of int
        Steps on the coarser grids, coarsest first.
    """

    vectors: torch.Tensor
    iterations: int
    change: float
    converged: bool
    coarse_iterations: tuple[int, ...] = ()


def gradient_vector_flow(
    image: torch.Tensor,
    spacing_mm: float | tuple[float, float, float],
    mu_mm2: float = 1.0,
    kind: FlowKind = "gvf",
    *,
    kappa: float = 0.1,
    smooth_mm: float = 2.0,
    tol: float = 1e-3,
    max_iterations: int = 500,
    multilevel: bool = True,
) -> VectorField:
    """Return the gradient vector flow of an edge map or of an object.

    Parameters
    ----------
    image : Tensor, shape (X, Y, Z)
        An edge map or distance map (floating point): vectors point to its high
        values. Or a mask (bool): it is smoothed, so vectors point from both sides
        of the surface to the object's centre.
    spacing_mm : float or three floats
        Voxel size along X, Y, Z.
    mu_mm2 : float
        Weight of smoothness, the square of the length over which an edge of full
        strength is smoothed. The gradient is scaled to at most 1, so `mu_mm2` does
        not depend on the units of the image.
    kind : {"gvf", "ggvf"}
        Gradient vector flow, or its generalised form, which keeps the direction of
        the edges better in thin parts.
    kappa : float
        Generalised form: gradients well below `kappa` of the steepest are smoothed.
    smooth_mm : float
        Standard deviation of the Gaussian that smooths a mask.
    tol : float
        Stop when one further relaxation step would move no vector by more than
        this part of the longest.
    max_iterations : int
        Limit of the conjugate gradient steps on each grid.
    multilevel : bool
        Start from coarser grids.

    Returns
    -------
    VectorField
        On the device of the input, float32 (float64 for float64 input). The
        normal derivative is 0 at the border of the grid.

    Raises
    ------
    StepError
        If the image is not three-dimensional, not finite, or constant.
    UsageError
        If a parameter is out of range.
    """
    spacing = check_triple("spacing_mm", spacing_mm)
    check_choice("kind", kind, get_args(FlowKind))
    positive = {"mu_mm2": mu_mm2, "kappa": kappa, "tol": tol, "max_iterations": max_iterations}
    for name, value in positive.items():
        if not 0 < value < float("inf"):
            raise UsageError(f"{name} is wrong", expected="above 0", got=f"{value:g}")
    gradient = _gradient(_check_image(image, spacing, smooth_mm), spacing)
    length = torch.linalg.vector_norm(gradient, dim=0)
    steepest = length.max()
    if not bool(steepest > 0):
        raise StepError(
            "the image is constant, so it has no edges",
            expected="an edge map, or a mask that is neither empty nor full",
        )
    gradient, length = gradient / steepest, length / steepest
    if kind == "gvf":
        weight = length**2 / mu_mm2
    else:
        smoothness = torch.exp(-length / kappa)
        weight = (1 - smoothness) / (smoothness * mu_mm2)
    weight = weight.clamp_(max=STIFFEST / min(spacing) ** 2)
    levels = _levels(weight, weight * gradient, spacing) if multilevel else []
    start, steps = torch.zeros_like(gradient), []
    for coarse_weight, coarse_right, coarse_spacing in reversed(levels):
        start = _enlarge(start, coarse_right.shape[1:])
        start, n, _ = _solve(
            coarse_weight, coarse_right, coarse_spacing, start, tol, max_iterations
        )
        steps.append(n)
    start = _enlarge(start, gradient.shape[1:])
    vectors, n, change = _solve(weight, weight * gradient, spacing, start, tol, max_iterations)
    return VectorField(vectors, n, change, change <= tol, tuple(steps))


def smooth_mask(mask: torch.Tensor, spacing_mm: Spacing, smooth_mm: float) -> torch.Tensor:
    """Return a mask (X, Y, Z) smoothed by a Gaussian, float32 in 0..1.

    Parameters
    ----------
    spacing_mm : three floats
    smooth_mm : float
        Standard deviation. What lies outside the image continues its border.
    """
    kernels = [gaussian_1d(torch.tensor(smooth_mm / s), truncated=3.0) for s in spacing_mm]
    kernels = [k.to(mask.device, torch.float32) for k in kernels]
    return separable_filtering(mask.float()[None, None], kernels, mode="replicate")[0, 0]


def _check_image(image: torch.Tensor, spacing: Spacing, smooth_mm: float) -> torch.Tensor:
    """Return the edge map of an image: itself, or a smoothed mask."""
    if image.ndim != 3 or 0 in image.shape:
        raise StepError(
            "the image does not have the right axes",
            expected="a non-empty tensor (X, Y, Z)",
            got=f"shape {tuple(image.shape)}",
        )
    if image.dtype == torch.bool:
        if not 0 < smooth_mm < float("inf"):
            raise UsageError("smooth_mm is wrong", expected="above 0", got=f"{smooth_mm:g}")
        return smooth_mask(image, spacing, smooth_mm)
    if not image.is_floating_point():
        raise StepError(
            "the image is neither an edge map nor a mask",
            expected="floating point or bool",
            got=str(image.dtype),
        )
    if not bool(torch.isfinite(image).all()):
        raise StepError("the edge map holds NaN or infinite values", hint="fill them first")
    return image if image.dtype == torch.float64 else image.float()


def _gradient(image: torch.Tensor, spacing: Spacing) -> torch.Tensor:
    """Return the gradient (3, X, Y, Z) per mm; an axis of one voxel has none."""
    parts = [
        torch.gradient(image, spacing=step, dim=axis)[0]
        if image.shape[axis] > 1
        else torch.zeros_like(image)
        for axis, step in enumerate(spacing)
    ]
    return torch.stack(parts)


Level = tuple[torch.Tensor, torch.Tensor, Spacing]


def _levels(weight: torch.Tensor, right: torch.Tensor, spacing: Spacing) -> list[Level]:
    """Return weight, right-hand side and spacing of the coarser grids, finest first.

    Only the axes with the finest spacing are halved, so that voxels become cubes.
    """
    out: list[Level] = []
    while True:
        shape = weight.shape
        finest = min((s for s, n in zip(spacing, shape, strict=True) if n > COARSEST), default=None)
        if finest is None:
            return out
        factor = [
            2 if n > COARSEST and s < 1.5 * finest else 1
            for s, n in zip(spacing, shape, strict=True)
        ]
        both = torch.cat([weight[None], right])[None]
        both = functional.avg_pool3d(both, factor, ceil_mode=True, count_include_pad=False)[0]
        weight, right = both[0], both[1:]
        spacing = (spacing[0] * factor[0], spacing[1] * factor[1], spacing[2] * factor[2])
        out.append((weight, right, spacing))


def _enlarge(vectors: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return a coarse field (3, ...) at the voxel centres of the next finer grid."""
    if vectors.shape[1:] == shape:
        return vectors
    small = zip(vectors.shape[1:], shape, strict=True)
    factor = tuple(1.0 if a == b else 2.0 for a, b in small)
    out = functional.interpolate(vectors[None], scale_factor=factor, mode="trilinear")[0]
    return out[:, : shape[0], : shape[1], : shape[2]].contiguous()


def _apply(v: torch.Tensor, weight: torch.Tensor, spacing: Spacing) -> torch.Tensor:
    """Return (weight - laplace) v with Neumann borders, v (3, X, Y, Z)."""
    out = weight * v
    for axis, step in enumerate(spacing, start=1):
        n = v.shape[axis]
        if n > 1:
            flux = (v.narrow(axis, 1, n - 1) - v.narrow(axis, 0, n - 1)).mul_(1 / step**2)
            out.narrow(axis, 0, n - 1).sub_(flux)
            out.narrow(axis, 1, n - 1).add_(flux)
    return out


def _diagonal(weight: torch.Tensor, spacing: Spacing) -> torch.Tensor:
    """Return the diagonal of `_apply`, shape (X, Y, Z)."""
    out = weight.clone()
    for axis, step in enumerate(spacing):
        n = weight.shape[axis]
        if n > 1:
            out.narrow(axis, 0, n - 1).add_(1 / step**2)
            out.narrow(axis, 1, n - 1).add_(1 / step**2)
    return out


def _solve(
    weight: torch.Tensor,
    right: torch.Tensor,
    spacing: Spacing,
    start: torch.Tensor,
    tol: float,
    max_iterations: int,
) -> tuple[torch.Tensor, int, float]:
    """Solve ``(weight - laplace) v = right`` by preconditioned conjugate gradients.

    Each component has a system of its own; the three are solved together. The
    preconditioner is the diagonal.
    """

    def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).sum((1, 2, 3), keepdim=True)

    tiny = torch.finfo(right.dtype).tiny
    inverse = 1 / _diagonal(weight, spacing)
    v = start.clone()
    residual = right - _apply(v, weight, spacing)
    z = inverse * residual
    direction = z.clone()
    rho = dot(residual, z)
    n, change = 0, _change(z, v)
    while change > tol and n < max_iterations:
        for _ in range(min(CHECK_EVERY, max_iterations - n)):
            image = _apply(direction, weight, spacing)
            alpha = rho / dot(direction, image).clamp_(min=tiny)
            v.addcmul_(alpha.expand_as(v), direction)
            residual.addcmul_(-alpha.expand_as(v), image)
            torch.mul(inverse, residual, out=z)
            before, rho = rho, dot(residual, z)
            direction.mul_(rho / before.clamp(min=tiny)).add_(z)
            n += 1
        change = _change(z, v)
    return v, n, change


def _change(step: torch.Tensor, v: torch.Tensor) -> float:
    """Return the longest vector of a relaxation step relative to the longest of the field."""
    longest = [torch.linalg.vector_norm(a, dim=0).max() for a in (step, v)]
    return float(longest[0] / longest[1].clamp(min=torch.finfo(v.dtype).tiny))
