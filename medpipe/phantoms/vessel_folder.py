"""A folder of simulated trees: masks or images, the true mask and the true centerline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import UsageError
from medpipe.io.nifti import write_nifti
from medpipe.phantoms.airway_ct import FIELD_MM, airway_ct
from medpipe.phantoms.vessel_images import VesselPhantom, vessel_cta, vessel_mra
from medpipe.phantoms.vessel_tree import TreeKind, VesselTree, vessel_tree
from medpipe.types import Volume

__all__ = ["FolderKind", "write_centerline_swc", "write_vessel_folder"]

FolderKind = Literal["mask", "cta", "mra", "airway"]

CUBE_MM = (0.5, 0.5, 0.5)
"""Voxels of all but the chest CT."""

_HEADER = (
    "# true centerline of a simulated tree",
    "# positions and radii in mm (not um), axes RAS+ (right, anterior, superior)",
    "# types: 0 undefined, 5 fork, 6 tip",
    "# id type x y z r parent",
)


def write_vessel_folder(
    root: Path,
    *,
    kind: FolderKind = "mask",
    walls: TreeKind = "clean",
    cases: int = 2,
    seed: int = 0,
    size: int = 256,
    ostium: bool = False,
) -> list[tuple[str, dict[str, Path]]]:
    """Write trees as NIfTI, and the truth of each beside it.

    Parameters
    ----------
    root : Path
        Made if it is missing.
    kind : {"mask", "cta", "mra", "airway"}
        What the image is.
    walls : {"clean", "rough", "very-rough", "kissing"}
        Kind of tree; images show "clean" or "kissing" ones, airways only "clean".
    cases : int
        How many.
    seed : int
        The same seed gives the same bytes.
    size : int
        Voxels along the longest axis, of 0.5 mm; airways fill 320 mm whatever the size.
    ostium : bool
        With masks: whether the root leaves a large vessel, written as ostium.nii.gz.

    Returns
    -------
    list of (name, files)
        Files by role: ``mask`` or ``image``, ``truth`` with images, ``ostium``,
        ``centerline``.

    Raises
    ------
    UsageError
        If the kinds do not go together or the size is too small.
    """
    if kind not in get_args(FolderKind):
        raise UsageError("unknown kind", expected=", ".join(get_args(FolderKind)), got=str(kind))
    if cases < 1 or size < 16:
        raise UsageError(
            "nothing to write", expected="cases >= 1, size >= 16", got=f"{cases}, {size}"
        )
    if kind == "airway" and walls != "clean":
        raise UsageError("airways have clean walls", got=walls)
    if ostium and kind != "mask":
        raise UsageError("an ostium goes with masks", got=kind)
    out = []
    for case in range(cases):
        name = f"t{case + 1:02d}"
        folder = root / name
        if kind == "mask":
            tree = vessel_tree(
                seed + case,
                kind=walls,
                ostium=ostium,
                root_radius_voxels=_root(size, 9.0),
                shape=(size,) * 3,
                spacing_mm=CUBE_MM,
            )
            folder.mkdir(parents=True, exist_ok=True)
            files = {"mask": _write_mask(folder / "mask.nii.gz", tree.mask, tree)}
            if tree.ostium is not None:
                files["ostium"] = _write_mask(folder / "ostium.nii.gz", tree.ostium, tree)
        else:
            phantom = _SIMULATE[kind](seed + case, size, walls)
            tree = phantom.tree
            folder.mkdir(parents=True, exist_ok=True)
            files = {"image": folder / "image.nii.gz"}
            whole = replace(phantom.volume, data=phantom.volume.data.round())
            write_nifti(files["image"], whole, dtype="int16")
            files["truth"] = _write_mask(folder / "truth.nii.gz", tree.mask, tree)
        files["centerline"] = folder / "centerline.swc"
        write_centerline_swc(files["centerline"], tree)
        out.append((name, files))
    return out


def write_centerline_swc(path: Path, tree: VesselTree) -> None:
    """Write the nodes of a tree as SWC: seven columns, RAS+ mm, parents first, -1 at roots."""
    types = np.zeros(len(tree.parents), np.int64)
    types[tree.junctions], types[tree.leaves] = 5, 6
    above = np.where(tree.parents < 0, -1, tree.parents + 1)  # SWC counts from 1
    rows = zip(types, tree.points_mm, tree.radius_mm, above, strict=True)
    lines = [
        f"{number} {kind} {x:.5f} {y:.5f} {z:.5f} {radius:.5f} {parent}"
        for number, (kind, (x, y, z), radius, parent) in enumerate(rows, 1)
    ]
    path.write_text("\n".join([*_HEADER, *lines, ""]), "utf-8", newline="\n")


def _root(size: int, usual: float) -> float:
    """Return the radius of a trunk that fits a grid smaller than 256 voxels."""
    return min(usual, max(2.5, usual * size / 256))


def _cta(seed: int, size: int, walls: TreeKind) -> VesselPhantom:
    return vessel_cta(
        seed,
        kind=walls,
        root_radius_voxels=_root(size, 9.0),
        shape=(size,) * 3,
        spacing_mm=CUBE_MM,
    )


def _mra(seed: int, size: int, walls: TreeKind) -> VesselPhantom:
    return vessel_mra(
        seed,
        kind=walls,
        root_radius_voxels=_root(size, 7.0),
        shape=(size,) * 3,
        spacing_mm=CUBE_MM,
    )


def _airway(seed: int, size: int, walls: TreeKind) -> VesselPhantom:
    spacing = FIELD_MM[0] / size
    shape = tuple(round(extent / spacing) for extent in FIELD_MM)
    return airway_ct(seed, shape=shape, spacing_mm=(spacing,) * 3)


_SIMULATE: dict[str, Callable[[int, int, TreeKind], VesselPhantom]] = {
    "cta": _cta,
    "mra": _mra,
    "airway": _airway,
}


def _write_mask(path: Path, mask: NDArray[np.bool_], tree: VesselTree) -> Path:
    write_nifti(path, Volume(mask.astype(np.uint8), tree.affine), dtype="uint8")
    return path
