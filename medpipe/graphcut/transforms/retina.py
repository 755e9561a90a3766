"""Nine boundaries of the retina in an OCT scan as a transform."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.retina import RetinaParameters, retina_surfaces
from medpipe.graphcut.solve import Solver
from medpipe.graphcut.transforms.certificate import with_certificate
from medpipe.graphcut.transforms.grid import one_channel
from medpipe.graphcut.transforms.height_map import height_image, read_heights
from medpipe.graphcut.voxels import Spacing
from medpipe.steps._base import ArrayStep, DictStep, affine_of, read_key, rewrap
from medpipe.types import Finding, Severity

__all__ = [
    "OctLayers",
    "OctLayersD",
    "OctLayersDict",
    "OctLayersd",
    "OctView",
    "OctViewD",
    "OctViewDict",
    "OctViewd",
    "ScanAxes",
    "closes_on_itself",
    "scan_axes",
]

CLEARLY_FINER = 0.8
"""Voxels are that much shorter along the depth than along any other axis, or shorter."""

RING_MM = (9.0, 16.0)
"""Circumferences of ring scans: diameters of 2.9 to 5.1 mm around the disc."""

SEAM_COLUMNS = 8
"""Columns that are averaged on each side when the ends of a scan are compared."""


class ScanAxes(NamedTuple):
    """Axes of an image along the B-scan (A-scans), along the depth and across B-scans."""

    a_scan: int
    depth: int
    b_scan: int


def scan_axes(shape: tuple[int, ...], spacing: Spacing, depth: int | None = None) -> ScanAxes:
    """Return which axis of an OCT scan is which.

    Depth is the axis with the finest voxels, as every OCT device samples it; of the
    two others, the axis with the finer voxels runs along the B-scan. An axis of one
    voxel is the one across B-scans.

    Parameters
    ----------
    shape, spacing
        Of the image (I, J, K), mm.
    depth : int, optional
        Set where the rule does not hold.

    Raises
    ------
    StepError
        If no axis is clearly finer than the others.
    """
    if depth is not None and depth not in (0, 1, 2):
        raise UsageError("axis is wrong", expected="0, 1 or 2", got=str(depth))
    order = sorted(range(3), key=lambda n: (shape[n] == 1, spacing[n]))
    if depth is None:
        depth, second = order[:2]
        unclear = shape[second] > 1 and spacing[depth] > CLEARLY_FINER * spacing[second]
        if shape[depth] == 1 or unclear:
            raise StepError(
                "it is not clear which axis is the depth",
                expected="voxels clearly finer along the depth than along the others",
                got=" × ".join(f"{s:.4g}" for s in spacing) + " mm",
                hint="set axis to 0, 1 or 2",
            )
    a, b = (n for n in order if n != depth)
    return ScanAxes(a, depth, b)


def closes_on_itself(columns: torch.Tensor, step_mm: float) -> bool:
    """Return whether a B-scan (A, K) is probably a ring: as long as one, with ends that meet.

    The mean of the last few columns is compared with that of the first few, and all
    other places of the scan tell how different neighbouring means are: the ends of a
    ring scan differ no more than most of them.

    Parameters
    ----------
    columns : Tensor (A, K)
    step_mm : float
        Distance of the columns.
    """
    if not RING_MM[0] <= columns.shape[0] * step_mm <= RING_MM[1]:
        return False
    count = columns.shape[0] // SEAM_COLUMNS
    if count < 8:
        return False
    start = (columns.shape[0] - count * SEAM_COLUMNS) // 2
    kept = columns[start : start + count * SEAM_COLUMNS]
    # the seam itself must not be trimmed: take the outermost columns for the ends
    means = kept.reshape(count, SEAM_COLUMNS, -1).mean(1)
    means[0], means[-1] = columns[:SEAM_COLUMNS].mean(0), columns[-SEAM_COLUMNS:].mean(0)
    inner = (means[1:] - means[:-1]).abs().mean(-1)
    seam = (means[0] - means[-1]).abs().mean()
    return bool(seam <= torch.quantile(inner, 0.95))


class OctLayers(ArrayStep):
    """Find nine boundaries of the retina in an OCT scan, from the ILM to Bruch's membrane.

    The recipe of `medpipe.graphcut.retina`: minimum cuts from coarse to fine, each
    proved to be optimal. Works on volumes, single B-scans and ring scans around the
    optic disc.

    Parameters
    ----------
    axis : int, optional
        Axis of the image along the depth. By default the one with the finest voxels;
        of the two others the finer one runs along the B-scans.
    reverse : bool
        The vitreous is at the end of the axis instead of its beginning.
    wrap : bool, optional
        Whether a B-scan closes on itself (a ring scan). By default a single B-scan of
        9 to 16 mm does if its two ends look like neighbours, and a volume does not;
        what was taken is a finding of the result.
    exponent : float
        The image is raised to this power: 0.25 for the linear intensities that devices
        store, 1 for images already compressed for display.
    edge_um : float
        Width of the derivative along the depth, about the axial resolution.
    subvoxel : bool
        Find the boundaries between samples.
    solver : {"auto", "pseudoflow", "stencil", "ortools", "scipy"}
        See `medpipe.graphcut.solve.min_cut`.
    """

    def __init__(
        self,
        axis: int | None = None,
        reverse: bool = False,
        wrap: bool | None = None,
        exponent: float = 0.25,
        edge_um: float = 3.5,
        subvoxel: bool = True,
        solver: Solver = "auto",
    ) -> None:
        self.axis, self.reverse, self.wrap = axis, reverse, wrap
        self.parameters = RetinaParameters(exponent=exponent, edge_um=edge_um, subvoxel=subvoxel)
        self.solver: Solver = solver

    def __call__(self, img: Any) -> MetaTensor:
        """Return the boundaries as a map of depths, float32 (9, I, J, K).

        The depth axis has one voxel; values are mm from the first sample of each
        A-scan. See `medpipe.graphcut.transforms.height_map`.

        Raises
        ------
        StepError
            If the scan is not usable, too shallow, or its axes are not clear.
        """
        image, volume, spacing = one_channel(img)
        axes = scan_axes(tuple(volume.shape), spacing, self.axis)
        scan = volume.permute(*axes)
        wraps = self.wrap
        if wraps is None:
            wraps = scan.shape[2] == 1 and closes_on_itself(
                scan[..., 0].clamp(min=0) ** self.parameters.exponent, spacing[axes.a_scan]
            )
        order = [*axes, 3]
        affine = affine_of(image)[:, order]
        found = retina_surfaces(
            scan[None],
            np.ascontiguousarray(affine),
            axis=1,
            reverse=self.reverse,
            wrap=(0,) if wraps else (),
            parameters=self.parameters,
            solver=self.solver,
        )
        depth = found.depth_mm if axes.a_scan < axes.b_scan else found.depth_mm.transpose(1, 2)
        out = height_image(
            image,
            depth,
            axis=axes.depth,
            reverse=self.reverse,
            names=found.names,
            wrap=(axes.a_scan,) if wraps else (),
        )
        stages = ["rough places", "outer boundaries"]
        stages += [f"inner boundaries, round {n + 1}" for n in range(len(found.cuts) - 2)]
        for stage, cut in zip(stages, found.cuts, strict=True):
            out = with_certificate(out, stage, cut)
        out.meta["medpipe"]["findings"].append(self._taken(axes, wraps).to_dict())
        return out

    def _taken(self, axes: ScanAxes, wraps: bool) -> Finding:
        kind = "closes on itself (ring scan)" if wraps else "does not close on itself"
        how = "as told" if self.wrap is not None else "as its ends look" if wraps else "by default"
        text = f"depth along axis {axes.depth}, A-scans along axis {axes.a_scan}; {kind}, {how}"
        return Finding("oct.axes", Severity.INFO, text)


class OctLayersd(DictStep):
    """Find nine boundaries of the retina in OCT scans, from the ILM to Bruch's membrane.

    The result is a map: one channel a boundary, one voxel along the depth, and depths
    in mm from the first sample of each A-scan.

    Parameters
    ----------
    keys : keys of the scans, replaced by maps of their boundaries
    axis, reverse, wrap, exponent, edge_um, subvoxel, solver
        See `OctLayers`.
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
        axis: int | None = None,
        reverse: bool = False,
        wrap: bool | None = None,
        exponent: float = 0.25,
        edge_um: float = 3.5,
        subvoxel: bool = True,
        solver: Literal["auto", "pseudoflow", "stencil", "ortools", "scipy"] = "auto",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = OctLayers(axis, reverse, wrap, exponent, edge_um, subvoxel, solver)


class OctView(ArrayStep):
    """Lay an OCT scan out for pictures: vitreous at the top, depth stretched, cut to the retina.

    The result is not placed in the world: its affine only makes pictures upright. Depth
    is `stretch` times the true one and the distance of B-scans as much smaller, so that
    lengths along the B-scan and volumes stay what they are.

    Parameters
    ----------
    exponent : float
        Values are raised to this power: 0.25 shows the linear intensities that devices
        store as they are usually looked at; 1 for label maps and display images.
    stretch : float
        Factor along the depth; the retina is thin.
    margin_mm : float
        How much is kept before the first and beyond the last surface.
    """

    def __init__(
        self, exponent: float = 0.25, stretch: float = 3.0, margin_mm: float = 0.1
    ) -> None:
        if not (exponent > 0 and stretch > 0 and margin_mm >= 0):
            raise UsageError("a parameter is wrong", expected="exponent and stretch above 0")
        self.exponent, self.stretch, self.margin_mm = exponent, stretch, margin_mm

    def __call__(self, img: Any, heights: Any) -> MetaTensor:
        """Return the scan as (1, A-scans, depth, B-scans).

        Parameters
        ----------
        img : MetaTensor
            Scan, or label map on its grid, (1, I, J, K).
        heights : MetaTensor
            Map of its surfaces.
        """
        image, volume, spacing = one_channel(img)
        surfaces = read_heights(heights)
        surfaces.columns(image)  # refuses another grid
        axes = scan_axes(tuple(volume.shape), spacing, surfaces.axis)
        scan = volume.permute(*axes)
        if affine_of(image)[:3, axes.depth] @ surfaces.affine[:3, axes.depth] < 0:
            scan = scan.flip(1)
        step = [spacing[n] for n in axes]
        low = float(surfaces.positions_mm.min()) - self.margin_mm
        high = float(surfaces.positions_mm.max()) + self.margin_mm
        first, last = max(0, math.floor(low / step[1])), math.ceil(high / step[1]) + 1
        shown = scan[:, first:last]
        if self.exponent != 1:
            shown = shown.clamp(min=0) ** self.exponent
        # pictures run from R to L and from A to P
        affine = np.diag([-step[0], -step[1] * self.stretch, step[2] / self.stretch, 1.0])
        return rewrap(image, shown[None], affine)


class OctViewd(DictStep):
    """Lay OCT scans out for pictures: vitreous at the top, depth stretched, cut to the retina.

    Parameters
    ----------
    keys : keys of scans, or of label maps on their grid
    surfaces : str
        Key of the map of surfaces of the scan.
    exponent, stretch, margin_mm
        See `OctView`.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("surfaces",)
    writes = ()
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        surfaces: str = "surfaces",
        exponent: float = 0.25,
        stretch: float = 3.0,
        margin_mm: float = 0.1,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.surfaces = surfaces
        self.step = OctView(exponent, stretch, margin_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key laid out for pictures."""
        out = dict(data)
        surfaces = read_key(data, self.surfaces, "map of surfaces")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], surfaces)
        return out


OctLayersD = OctLayersDict = OctLayersd
OctViewD = OctViewDict = OctViewd
