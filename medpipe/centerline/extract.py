"""Centerlines of masks: one tree per root, along cheapest paths through the middle.

The distance to the background makes the middle of a vessel cheap (1/D² per mm); paths
of least cost from the ends of branches to the root are joined to a tree. By construction
there is one root per tree and no cycle, a node and its parent are 26-neighbours, and
branches end at requested or found ends only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from medpipe.centerline.assemble import prune
from medpipe.centerline.endpoints import Growth, grow
from medpipe.centerline.lumen import Floats, Lumen, Paths
from medpipe.centerline.prepare import Structure, check_labels, structures_of
from medpipe.centerline.roots import contact_roots, deepest_voxel, rule_root, snap_points
from medpipe.centerline.settings import ExtractionSettings
from medpipe.centerline.smoothing import smooth_positions
from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import StepError
from medpipe.types import Affine

__all__ = ["ExtractionSettings", "extract_centerline"]

MAX_RADIUS_MM = 100.0
"""No vessel or airway is wider: lengths beyond are in a wrong unit."""


@dataclass
class _Job:
    """One structure on its way to trees."""

    structure: Structure
    settings: ExtractionSettings
    groups: list[NDArray[np.int64]]
    roots: dict[int, list[int]] = field(default_factory=dict)
    asked: dict[int, list[int]] = field(default_factory=dict)
    by_rule: list[int] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    loops: dict[int, int] = field(default_factory=dict)

    @property
    def lumen(self) -> Lumen:
        """The structure on the host."""
        return self.structure.lumen

    @property
    def kept(self) -> list[int]:
        """Components that get a tree."""
        return [c for c in range(len(self.groups)) if c not in set(self.left_out)]


def extract_centerline(
    labels: torch.Tensor,
    affine: ArrayLike,
    settings: ExtractionSettings | None = None,
    *,
    ostium: torch.Tensor | None = None,
) -> CenterlineTree:
    """Return the centerline tree of each structure of a label map.

    Parameters
    ----------
    labels : Tensor (I, J, K), any device
        Whole numbers from 0 to 255; 0 is background, every other value a structure with
        trees of its own.
    affine : (4, 4)
        Voxel index to RAS+ mm; may be anisotropic or sheared.
    settings : ExtractionSettings, optional
    ostium : Tensor (I, J, K), optional
        Mask of what the structures leave, as the aorta for coronary arteries. Each
        connected part of a structure that touches it becomes a root.

    Returns
    -------
    CenterlineTree
        Trees by label value, then by the first voxel of their component. ``facts`` holds
        the settings, counts and findings.

    Raises
    ------
    StepError
        If the label map is unusable (see `check_labels`), a structure fills the volume, a
        point lies outside the mask, two given roots share a component, or a requested end
        lies in a component without the root that was given.
    """
    chosen = settings or ExtractionSettings()
    volume = check_labels(labels, affine)
    matrix = np.array(affine, np.float64)
    if ostium is not None and ostium.shape != volume.shape:
        raise StepError(
            "the ostium is not on the grid of the mask",
            expected=f"shape {tuple(volume.shape)}",
            got=f"shape {tuple(ostium.shape)}",
        )
    jobs = [_job(s, chosen) for s in structures_of(volume, matrix)]
    _place_points(jobs, chosen)
    growths = []
    for job in jobs:
        _leave_out(job)
        _find_roots(job, ostium)
        job.loops = {c: n for c, n in enumerate(job.structure.loops()) if c in job.kept}
        growths.append(_trees(job))
    return _tree(jobs, growths, chosen, matrix, volume.shape)


def _job(structure: Structure, settings: ExtractionSettings) -> _Job:
    component = structure.lumen.component
    order = np.argsort(component, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    return _Job(structure, settings, groups)


def _place_points(jobs: Sequence[_Job], settings: ExtractionSettings) -> None:
    """Give the requested roots and ends to the components where they lie."""
    lumens = [job.lumen for job in jobs]
    roots = snap_points(lumens, settings.root_points_mm, settings.snap_mm, "root point")
    for number, (which, voxel) in enumerate(roots, start=1):
        component = int(lumens[which].component[voxel])
        if component in jobs[which].roots:
            raise StepError(
                f"root point {number} lies in the same component as another",
                expected="one root for each connected component at most",
                hint="remove it; further ends go into endpoint_points_mm",
            )
        jobs[which].roots[component] = [voxel]
    ends = snap_points(lumens, settings.endpoint_points_mm, settings.snap_mm, "endpoint")
    for number, (which, voxel) in enumerate(ends, start=1):
        component = int(lumens[which].component[voxel])
        if roots and component not in jobs[which].roots:
            raise StepError(
                f"endpoint {number} lies in another component than the given roots",
                expected="a connected way through the mask to a root point",
                hint="close the gap in the mask, or give its component a root point as well",
            )
        jobs[which].asked.setdefault(component, []).append(voxel)


def _leave_out(job: _Job) -> None:
    """Choose the components that are too small, or that no requested end lies in."""
    sizes = [len(g) for g in job.groups]
    wanted = {int(np.argmax(sizes)), *job.roots, *job.asked}
    job.left_out = [
        c
        for c, size in enumerate(sizes)
        if size < job.settings.min_component_voxels and c not in wanted
    ]


def _find_roots(job: _Job, ostium: torch.Tensor | None) -> None:
    """Give every component a root: a point, where the ostium touches, or by rule."""
    lumen = job.lumen
    if ostium is not None:
        for voxel in contact_roots(lumen, job.structure.near(ostium)):
            component = int(lumen.component[voxel])
            if component not in range(len(job.groups)) or component in job.left_out:
                continue
            if job.settings.root_points_mm and component in job.roots:
                continue
            job.roots.setdefault(component, []).append(voxel)
    job.by_rule = [c for c in job.kept if c not in job.roots]
    if not job.by_rule:
        return
    starts = {c: deepest_voxel(lumen, job.groups[c]) for c in job.by_rule}
    shortest, cheapest = _solve(job, list(starts.values()))
    for c, start in starts.items():
        members = job.groups[c]
        grown = _grown(job, cheapest, members, [start], (), shortest.total)
        job.roots[c] = [rule_root(lumen, grown, job.settings.root)]


def _solve(job: _Job, roots: list[int]) -> tuple[Paths, Paths]:
    """Return the shortest and the cheapest paths from roots."""
    depth = job.structure.depth_mm.double()
    return job.structure.paths(roots, None), job.structure.paths(roots, 1 / (depth * depth))


def _grown(
    job: _Job,
    paths: Paths,
    members: NDArray[np.int64],
    roots: Sequence[int],
    asked: Sequence[int],
    distance_mm: Floats | None,
) -> Growth:
    """Return the pruned tree of one component."""
    s, voxel_mm = job.settings, job.lumen.voxel_mm
    grown = grow(
        job.lumen, paths, members, roots, asked=asked, distance_mm=distance_mm,
        ball_mm=(s.ball_scale, s.ball_voxels * voxel_mm),
    )  # fmt: skip
    return prune(job.lumen, grown, radii=s.prune_radii, more_mm=s.prune_voxels * voxel_mm)


def _trees(job: _Job) -> list[Growth]:
    """Return the tree of each component that is kept."""
    kept = job.kept
    roots = [v for c in kept for v in job.roots[c]]
    shortest, cheapest = _solve(job, roots)
    distance = None if job.settings.endpoints == "given" else shortest.total
    return [
        _grown(job, cheapest, job.groups[c], job.roots[c], job.asked.get(c, ()), distance)
        for c in kept
    ]


def _tree(
    jobs: Sequence[_Job],
    growths: Sequence[Sequence[Growth]],
    settings: ExtractionSettings,
    affine: Affine,
    shape: Sequence[int],
) -> CenterlineTree:
    """Return the trees of all structures as one forest."""
    voxels, parents, positions, radius, values = [], [], [], [], []
    count = 0
    for job, grown in zip(jobs, growths, strict=True):
        for growth in grown:
            above = growth.parents
            voxels.append(job.lumen.voxels[growth.voxels] + job.lumen.origin)
            parents.append(np.where(above < 0, -1, above + count))
            positions.append(job.lumen.positions_mm(growth.voxels))
            radius.append(job.lumen.radius_mm(growth.voxels))
            values.append(np.full(len(above), job.lumen.value))
            count += len(above)
    parent = np.concatenate(parents)
    places = smooth_positions(np.concatenate(positions), parent, settings.smoothing_rounds)
    return CenterlineTree(
        voxels=np.concatenate(voxels).astype(np.int64),
        parents=parent.astype(np.int64),
        positions_mm=places,
        radius_mm=np.concatenate(radius),
        area_radius_mm=np.full(count, np.nan),
        structures=np.concatenate(values).astype(np.int64),
        affine=affine,
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
    )
