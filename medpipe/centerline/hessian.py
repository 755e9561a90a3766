"""Second derivatives of an image at a scale in mm, and eigenvalues of symmetric 3 × 3 matrices.

Derivatives are those of the image smoothed by a Gaussian, taken along the axes of the
grid with the spacing of each axis, so a tube gives the same values on any grid that
resolves it. A volume is worked through in slabs: beyond the result only the work arrays
of one slab are held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil

import numpy as np
import torch

from medpipe.errors import UsageError

__all__ = ["derivative_kernel", "hessian", "hessian_slabs", "symmetric_eigenvalues"]

SLAB_VOXELS = 4_000_000
"""Voxels of a slab: its work arrays stay near 300 MB."""

TRUNCATE = 4.0
"""Half width of a kernel in sigmas."""

ORDERS = ((2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (1, 0, 1), (0, 1, 1))
"""Derivatives along the axes, in the order of the components: 00, 11, 22, 01, 02, 12."""


def derivative_kernel(sigma_mm: float, step_mm: float, order: int) -> list[float]:
    """Return a correlation kernel: a derivative of a Gaussian, sampled.

    Moments are corrected, so that the derivatives of polynomials of second degree are
    exact whatever the sampling; below about half a voxel it turns into differences.

    Parameters
    ----------
    sigma_mm : float
        Width of the Gaussian.
    step_mm : float
        Distance between samples.
    order : {0, 1, 2}
        Derivative; the result is per mm to that power.

    Returns
    -------
    list of float, odd length
    """
    reach = max(1, ceil(TRUNCATE * sigma_mm / step_mm))
    x = np.arange(-reach, reach + 1) * step_mm
    gauss = np.exp(-0.5 * (x / sigma_mm) ** 2)
    gauss /= gauss.sum()
    if order == 0:
        return [float(v) for v in gauss]
    # beside the middle it underflows where the scale is far below the grid
    gauss = np.maximum(gauss, 1e-60)
    gauss /= gauss.sum()
    if order == 1:
        kernel = x * gauss
        kernel /= (x * kernel).sum()
    else:
        kernel = (x**2 - (x**2 * gauss).sum()) * gauss
        kernel /= (x**2 * kernel).sum() / 2
    return [float(v) for v in kernel]


def _padded(image: torch.Tensor, axis: int, low: int, high: int, reach: int) -> torch.Tensor:
    """Return slices low - reach .. high + reach - 1 of an axis, the ends repeated outside."""
    index = torch.arange(low - reach, high + reach, device=image.device)
    return image.index_select(axis, index.clamp_(0, image.shape[axis] - 1))


def _correlate(padded: torch.Tensor, axis: int, kernel: Sequence[float]) -> torch.Tensor:
    """Return the valid part of the correlation along one axis.

    A sum of shifted views: on one channel it is several times as fast as a
    convolution of torch on a CPU, and reads memory only on a GPU.
    """
    length = padded.shape[axis] - len(kernel) + 1
    out = padded.narrow(axis, 0, length) * kernel[0]
    for shift, weight in enumerate(kernel[1:], 1):
        if weight:
            out.add_(padded.narrow(axis, shift, length), alpha=weight)
    return out


def hessian_slabs(
    image: torch.Tensor,
    spacing_mm: Sequence[float],
    sigma_mm: float | Sequence[float],
    *,
    scale_mm: float | None = None,
    slab_voxels: int = SLAB_VOXELS,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the scale-normalised Hessian of an image in slabs along its first axis.

    Parameters
    ----------
    image : Tensor, shape (I, J, K), floating point
    spacing_mm : sequence of 3 floats
        Distance between voxel centres along each axis.
    sigma_mm : float or sequence of 3 floats
        Width of the Gaussian, along all axes or each.
    scale_mm : float, optional
        The derivatives are multiplied by its square (gamma = 1 of Lindeberg 1998,
        doi 10.1023/A:1008045108935); by default `sigma_mm`.
    slab_voxels : int
        About how many voxels are worked on at once.

    Yields
    ------
    slice, Tensor of shape (6, i, J, K)
        The rows of the first axis, and the components 00, 11, 22, 01, 02, 12 there, in
        the units of the image.
    """
    sigmas = [float(s) for s in np.broadcast_to(np.asarray(sigma_mm, float), (3,))]
    if not all(np.isfinite(s) and s > 0 for s in sigmas):
        raise UsageError("sigma_mm is wrong", expected="positive numbers")
    scale = max(sigmas) if scale_mm is None else float(scale_mm)
    kernels = [
        [derivative_kernel(s, float(step), order) for order in range(3)]
        for s, step in zip(sigmas, spacing_mm, strict=True)
    ]
    reach = [len(k[0]) // 2 for k in kernels]
    rows = max(1, slab_voxels // max(1, image.shape[1] * image.shape[2]))
    for low in range(0, image.shape[0], rows):
        high = min(low + rows, image.shape[0])
        out = image.new_empty((6, high - low, *image.shape[1:]))
        first = _padded(image, 0, low, high, reach[0])
        for a in range(3):
            one = _padded(_correlate(first, 0, kernels[0][a]), 1, 0, image.shape[1], reach[1])
            for b in range(3 - a):
                two = _padded(_correlate(one, 1, kernels[1][b]), 2, 0, image.shape[2], reach[2])
                c = 2 - a - b
                torch.mul(
                    _correlate(two, 2, kernels[2][c]), scale**2, out=out[ORDERS.index((a, b, c))]
                )
        yield slice(low, high), out


def hessian(
    image: torch.Tensor, spacing_mm: Sequence[float], sigma_mm: float | Sequence[float]
) -> torch.Tensor:
    """Return the scale-normalised Hessian of an image, whole.

    Parameters
    ----------
    image : Tensor, shape (I, J, K), floating point
    spacing_mm : sequence of 3 floats
        Distance between voxel centres along each axis.
    sigma_mm : float or sequence of 3 floats
        Width of the Gaussian.

    Returns
    -------
    Tensor, shape (6, I, J, K)
        Components 00, 11, 22, 01, 02, 12, times sigma squared; six times the memory of
        the image: see `hessian_slabs` for large ones.
    """
    return torch.cat([part for _, part in hessian_slabs(image, spacing_mm, sigma_mm)], dim=1)


def symmetric_eigenvalues(
    matrices: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the eigenvalues of symmetric 3 × 3 matrices in closed form.

    Trigonometric solution of the characteristic polynomial (Smith 1961,
    doi 10.1145/355578.366316) on the matrix shifted to zero trace and scaled to unit
    size, so that neither large nor small values overflow. Errors are about the square
    root of the precision for nearly equal eigenvalues, relative to the matrix: 3e-4 in
    float32.

    Parameters
    ----------
    matrices : Tensor, shape (6, ...)
        Components 00, 11, 22, 01, 02, 12. It is used as work space and overwritten.

    Returns
    -------
    tuple of three Tensor, shape (...)
        In descending order, with their signs.
    """
    mean = (matrices[0] + matrices[1] + matrices[2]).div_(3)
    for component in matrices[:3]:
        component -= mean
    a, b, c, d, e, f = matrices
    size = (a * a).addcmul_(b, b).addcmul_(c, c)
    for off in (d, e, f):
        size.addcmul_(off, off, value=2.0)
    size.div_(6).sqrt_()
    matrices /= size.clamp_min(torch.finfo(size.dtype).tiny)
    half = b * c
    half.addcmul_(f, f, value=-1).mul_(a)
    half.addcmul_(d * d, c, value=-1).addcmul_(e * e, b, value=-1)
    half.addcmul_(d * e, f, value=2.0)
    angle = half.div_(2).clamp_(-1, 1).acos_().div_(3)
    size *= 2
    largest = torch.cos(angle).mul_(size).add_(mean)
    smallest = angle.add_(2 * np.pi / 3).cos_().mul_(size).add_(mean)
    middle = mean.mul_(3).sub_(largest).sub_(smallest)
    return largest, middle, smallest
