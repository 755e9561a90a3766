"""Centerlines of masks: one tree per root, along cheapest paths through the middle.

The distance to the background makes the middle of a vessel cheap (1/D² per mm); paths
of least cost from the ends of branches to the root are joined to a tree. By construction
there is one root per tree and no cycle, a node and its parent are 26-neighbours, and
branches end at requested or found ends only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from medpipe.centerline.assemble import prune, without_shortcuts
from medpipe.centerline.endpoints import Growth, grow
from medpipe.centerline.findings import findings_of
from medpipe.centerline.learned_ends import learned_ends, learned_roots
from medpipe.centerline.loops import close_loops
from medpipe.centerline.lumen import Floats, Lumen, Paths
from medpipe.centerline.prepare import Structure, check_labels, structures_of
from medpipe.centerline.roots import contact_roots, deepest_voxel, rule_root, snap_points
from medpipe.centerline.sections import area_radius
from medpipe.centerline.settings import ExtractionSettings
from medpipe.centerline.smoothing import smooth_positions
from medpipe.centerline.tips import centred_ends
from medpipe.centerline.touching import cut_contacts
from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import StepError, UsageError
from medpipe.types import Affine, Json

if TYPE_CHECKING:
    from medpipe.centerline.maps import CenterlineMaps

__all__ = ["ExtractionSettings", "extract_centerline"]

Q_FLOOR, Q_POWER = 0.02, 2
"""A mm of learned cost is 0.02 + q²: little on the centerline (q = 0), 1 at the wall."""


@dataclass
class _Job:
    """One structure on its way to trees."""

    structure: Structure
    settings: ExtractionSettings
    maps: CenterlineMaps | None
    groups: list[NDArray[np.int64]]
    roots: dict[int, list[int]] = field(default_factory=dict)
    asked: dict[int, list[int]] = field(default_factory=dict)
    small: list[int] = field(default_factory=list)
    unasked: list[int] = field(default_factory=list)
    rules: dict[int, str] = field(default_factory=dict)
    unsupported: int = 0
    contacts: int = 0
    closing: list[NDArray[np.int64]] = field(default_factory=list)

    @property
    def lumen(self) -> Lumen:
        """The structure on the host."""
        return self.structure.lumen

    @property
    def kept(self) -> list[int]:
        """Components that get a tree."""
        gone = {*self.small, *self.unasked}
        return [c for c in range(len(self.groups)) if c not in gone]

    @cached_property
    def loops(self) -> list[int]:
        """Loops of each component."""
        return self.structure.loops()

    @property
    def cost(self) -> torch.Tensor:
        """Cost per mm of each voxel, float64 (N,)."""
        if self.maps is None or self.settings.cost == "depth":
            depth = self.structure.depth_mm.double()
            return 1 / (depth * depth)
        return Q_FLOOR + self.structure.cut(self.maps.q).double().clamp(0, 1) ** Q_POWER


def extract_centerline(
    labels: torch.Tensor,
    affine: ArrayLike,
    settings: ExtractionSettings | None = None,
    *,
    ostium: torch.Tensor | None = None,
    maps: CenterlineMaps | None = None,
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
    maps : CenterlineMaps, optional
        Learned maps on the grid of the labels. They give roots that neither a point nor
        the ostium gives, and ends and the cost of paths if the settings say so.

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
    UsageError
        If learned ends or costs are wanted without maps.
    """
    chosen = settings or ExtractionSettings()
    volume = check_labels(labels, affine)
    matrix = np.array(affine, np.float64)
    others = {"ostium": ostium} if maps is None else {"ostium": ostium, "maps": maps.q}
    for name, other in others.items():
        if other is not None and other.shape != volume.shape:
            raise StepError(
                f"the {name} and the mask are not on the same grid",
                expected=f"shape {tuple(volume.shape)}",
                got=f"shape {tuple(other.shape)}",
            )
    for name in ("endpoints", "cost"):
        if getattr(chosen, name) == "learned" and maps is None:
            raise UsageError(f"{name} = learned needs maps", hint="use the step centerline_maps")
    jobs = [_job(s, chosen, maps) for s in structures_of(volume, matrix)]
    _place_points(jobs, chosen)
    for job in jobs:
        _leave_out(job)
        _find_roots(job, ostium)
    tree = _joined(jobs, [_trees(job) for job in jobs], chosen, matrix, volume.shape)
    area = area_radius(
        volume, matrix, tree.positions_mm, tree.parents, tree.radius_mm, tree.structures
    )
    return replace(tree, area_radius_mm=area, facts=_facts(jobs, tree, chosen))


def _job(structure: Structure, settings: ExtractionSettings, maps: CenterlineMaps | None) -> _Job:
    component = structure.lumen.component
    order = np.argsort(component, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    return _Job(structure, settings, maps, groups)


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
    wanted = {*job.roots, *job.asked}
    if job.settings.endpoints == "given":
        job.unasked = [c for c in range(len(sizes)) if c not in wanted]
        return
    least, largest = job.settings.min_component_voxels, int(np.argmax(sizes))
    job.small = [c for c, n in enumerate(sizes) if n < least and c not in {largest, *wanted}]


def _find_roots(job: _Job, ostium: torch.Tensor | None) -> None:
    """Give every component a root: a point, where the ostium touches, a map or by rule."""
    lumen = job.lumen
    job.rules = dict.fromkeys(job.roots, "point")
    if ostium is not None:
        for voxel in contact_roots(lumen, job.structure.near(ostium)):
            component = int(lumen.component[voxel])
            if job.rules.setdefault(component, "ostium") == "ostium":
                job.roots.setdefault(component, []).append(voxel)
    if job.maps is not None and job.settings.root == "auto":
        for c, voxel in learned_roots(job.structure, job.maps.root, job.groups).items():
            if job.rules.setdefault(c, "map") == "map":
                job.roots[c] = [voxel]
    by_rule = [c for c in job.kept if c not in job.roots]
    if not by_rule:
        return
    starts = {c: deepest_voxel(lumen, job.groups[c]) for c in by_rule}
    shortest, cheapest = _solve(job, list(starts.values()))
    for c, start in starts.items():
        grown = _grown(job, cheapest, c, [start], (), shortest.total)
        job.roots[c] = [rule_root(lumen, grown, job.settings.root)]
        job.rules[c] = job.settings.root


def _solve(job: _Job, roots: list[int]) -> tuple[Paths, Paths]:
    """Return the shortest and the cheapest paths from roots."""
    return job.structure.paths(roots, None), job.structure.paths(roots, job.cost)


def _grown(
    job: _Job,
    paths: Paths,
    component: int,
    roots: Sequence[int],
    asked: Sequence[int],
    distance_mm: Floats | None,
) -> Growth:
    """Return the pruned tree of one component."""
    s = job.settings
    grown = grow(
        job.lumen,
        paths,
        job.groups[component],
        roots,
        asked=asked,
        distance_mm=distance_mm,
        ball_mm=(s.ball_scale, s.ball_voxels * job.lumen.voxel_mm),
    )
    return _pruned(job, grown)


def _pruned(job: _Job, grown: Growth) -> Growth:
    """Return the tree without short branches at its ends."""
    s = job.settings
    more_mm = s.prune_voxels * job.lumen.voxel_mm
    return prune(job.lumen, grown, radii=s.prune_radii, more_mm=more_mm)


def _uncrossed(job: _Job, paths: Paths, component: int, grown: Growth) -> Growth:
    """Return the tree with loops cut where vessels touch each other."""
    members = job.groups[component]
    cut, contacts = cut_contacts(job.lumen, paths, members, grown, job.loops[component])
    job.contacts += contacts
    return without_shortcuts(job.lumen, _pruned(job, cut)) if contacts else grown


def _trees(job: _Job) -> list[Growth]:
    """Return the tree of each component that is kept."""
    if not job.kept:
        return []
    shortest, cheapest = _solve(job, [v for c in job.kept for v in job.roots[c]])
    how = job.settings.endpoints
    out = []
    for c in job.kept:
        roots, asked = job.roots[c], job.asked.get(c, [])
        grown = _grown(job, cheapest, c, roots, asked, None if how == "given" else shortest.total)
        if how == "learned" and job.maps is not None and len(grown.voxels) > len(roots):
            tips = grown.voxels[grown.found]
            ends = learned_ends(job.structure, tips, job.maps.endpoint)
            if not ends and not asked:
                ends = [int(tips[np.argmax(shortest.total[tips])])]
                job.unsupported += 1
            grown = _grown(job, cheapest, c, roots, [*asked, *ends], None)
        elif how == "geodesic" and job.loops[c] and job.settings.loops == "cut":
            grown = _uncrossed(job, cheapest, c, grown)
        elif how == "geodesic" and not job.loops[c]:  # on a ring, ends are where paths meet
            ends = centred_ends(job.lumen, grown)
            grown = _grown(job, cheapest, c, roots, [*asked, *ends], None)
        out.append(_closed(job, cheapest, c, grown))
    return out


def _closed(job: _Job, paths: Paths, component: int, grown: Growth) -> Growth:
    """Return the tree with what closes its loops, where that is wanted."""
    closing = np.empty((0, 2), np.int64)
    loops = job.loops[component] if job.settings.loops == "keep" else 0
    if loops:
        asked = len(grown.asked)
        grown, edges = close_loops(job.lumen, paths, job.groups[component], grown, loops)
        # what is left of ends where the loop had been cut goes, but for the new edges' ends
        ends = np.concatenate([grown.asked, edges.ravel()])
        kept = _pruned(job, replace(grown, asked=ends))
        grown, closing = replace(kept, asked=kept.asked[:asked]), kept.asked[asked:].reshape(-1, 2)
    job.closing.append(closing)
    return grown


def _joined(
    jobs: Sequence[_Job],
    growths: Sequence[Sequence[Growth]],
    settings: ExtractionSettings,
    affine: Affine,
    shape: Sequence[int],
) -> CenterlineTree:
    """Return the trees of all structures as one forest."""
    voxels, parents, positions, radius, values, closing = [], [], [], [], [], []
    count = 0
    for job, grown in zip(jobs, growths, strict=True):
        for growth, edges in zip(grown, job.closing, strict=True):
            above = growth.parents
            voxels.append(job.lumen.voxels[growth.voxels] + job.lumen.origin)
            parents.append(np.where(above < 0, -1, above + count))
            positions.append(job.lumen.positions_mm(growth.voxels))
            radius.append(job.lumen.radius_mm(growth.voxels))
            values.append(np.full(len(above), job.lumen.value))
            closing.append(edges + count)
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
        closing=np.concatenate(closing),
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
    )


def _facts(
    jobs: Sequence[_Job], tree: CenterlineTree, settings: ExtractionSettings
) -> dict[str, Json]:
    """Return settings, counts and findings."""
    loops = [sum(n for c, n in enumerate(job.loops) if c in job.kept) for job in jobs]
    given = bool(settings.root_points_mm)
    rules = [job.rules[c] for job in jobs for c in job.kept]
    findings = findings_of(
        tree,
        [job.structure for job in jobs],
        loops_found=sum(loops),
        loops_kept=len(tree.closing),
        contacts=sum(job.contacts for job in jobs),
        left_out=sum(len(job.small) for job in jobs),
        left_out_voxels=sum(len(job.groups[c]) for job in jobs for c in job.small),
        unasked=sum(len(job.unasked) for job in jobs),
        rootless=sum(given and r != "point" for r in rules),
        unsupported=sum(job.unsupported for job in jobs),
    )
    return {
        "settings": settings.facts(),
        "structures": [job.lumen.value for job in jobs],
        "components": len(rules),
        "roots": {rule: rules.count(rule) for rule in sorted(set(rules))},
        "loops_found": sum(loops),
        "loops_kept": len(tree.closing),
        "contacts_cut": sum(job.contacts for job in jobs),
        "findings": [f.to_dict() for f in findings],
    }
