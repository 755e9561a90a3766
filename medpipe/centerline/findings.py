"""What a user should know about the extraction of a centerline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medpipe.centerline.loops import loops_of_voxels
from medpipe.centerline.prepare import Structure
from medpipe.centerline.tree import CenterlineTree
from medpipe.geometry import is_sheared
from medpipe.types import Finding, Severity

__all__ = ["findings_of"]

MAX_RADIUS_MM = 100.0
MIN_RADIUS_MM = 0.02
"""No vessel or airway in an image is wider or, all of it, thinner: the unit is wrong."""


def findings_of(
    tree: CenterlineTree,
    structures: Sequence[Structure],
    *,
    loops_found: int,
    loops_kept: int,
    contacts: int,
    left_out: int,
    left_out_voxels: int,
    unasked: int,
    rootless: int,
    unsupported: int,
) -> list[Finding]:
    """Return what was noticed.

    Parameters
    ----------
    tree : CenterlineTree
    structures : list of Structure
    loops_found, loops_kept : int
        In the mask, and closed by an edge.
    contacts : int
        Loops that were cut where two vessels touch.
    left_out, left_out_voxels : int
        Components that were too small, and their voxels.
    unasked : int
        Components without a requested end, where only those count.
    rootless : int
        Components without a given root, where one was given elsewhere.
    unsupported : int
        Components where the endpoint map supports no end.
    """
    out: list[Finding] = []

    def note(check: str, text: str, severity: Severity = Severity.INFO) -> None:
        out.append(Finding(f"centerline.{check}", severity, text))

    warning = Severity.WARNING
    if left_out:
        note(
            "small_components",
            f"{_count(left_out, 'small component')} of the mask "
            f"({_count(left_out_voxels, 'voxel')}) left out; min_component_voxels sets the limit",
            warning,
        )
    if unasked:
        note(
            "no_endpoint",
            f"{_count(unasked, 'component')} without a given endpoint left out",
            warning,
        )
    if rootless:
        note(
            "root_by_rule",
            f"{_count(rootless, 'component')} without a given root: found by rule",
            warning,
        )
    if unsupported:
        note(
            "unsupported_ends",
            f"the endpoint map supports no end in {_count(unsupported, 'component')}; "
            "the farthest one was kept",
            warning,
        )
    if loops_found > loops_kept:
        note(
            "loops_cut",
            f"{_count(loops_found - loops_kept, 'loop')} of the mask cut"
            f"{f', {contacts} of them where vessels seem to touch' if contacts else ''}: "
            "a tree has none",
            warning,
        )
    if loops_kept:
        note("loops_kept", f"{_count(loops_kept, 'loop')} of the mask closed by an edge")
    single = int((np.bincount(tree.tree_of) == 1).sum())
    if single:
        note(
            "single_node", f"{_count(single, 'tree')} of one node: too small for a branch", warning
        )
    ringed = sum(loops_of_voxels(tree.voxels[tree.tree_of == t]) for t in range(len(tree.roots)))
    if ringed:
        note("voxel_loops", f"branches touch as voxels and close {_count(ringed, 'loop')} there")
    if any(_touches_border(s, tree.shape) for s in structures):
        note("border", "the mask touches the border of the volume: what lies beyond is unknown")
    if is_sheared(tree.affine):
        note("sheared", "the grid is sheared: distances to the wall are taken along its axes")
    widest = max(float(s.lumen.depth_mm.max()) for s in structures)
    if not MIN_RADIUS_MM <= widest <= MAX_RADIUS_MM:
        note(
            "unit",
            f"the largest radius is {widest:.3g} mm: the spacing may be in another unit than mm",
            warning,
        )
    return out


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _touches_border(structure: Structure, shape: Sequence[int]) -> bool:
    """Whether a structure has a voxel in the first or last slice of an axis."""
    index = structure.lumen.voxels + structure.lumen.origin
    return bool(((index == 0) | (index == np.array(shape) - 1)).any())
