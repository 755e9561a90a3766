"""Examples for training from a folder: masks as NIfTI, their true centerlines as SWC.

An example is ``mask.nii.gz`` with ``centerline.swc`` in a folder of its own, as
``medpipe data vessels`` writes them, or ``NAME.nii.gz`` with ``NAME.swc``. Masks may have any
spacing and orientation; positions and radii are RAS+ mm.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medpipe.centerline.cubes import cubic_index, cubic_mask
from medpipe.centerline.examples import TreeSample, tree_sample
from medpipe.centerline.prepare import check_labels
from medpipe.centerline.swc import read_swc
from medpipe.errors import InputError, MedpipeError
from medpipe.geometry import spacing_mm
from medpipe.io.nifti import read_nifti
from medpipe.phantoms.vessel_tree import VesselTree
from medpipe.types import Volume

__all__ = ["read_examples"]

CURVE_NAME = "centerline.swc"
MASK_NAMES = ("mask", "truth")
SUFFIXES = (".nii.gz", ".nii")

MARGIN = 3
"""Voxels of background that are kept around a mask."""

LEAST_INSIDE = 0.8
"""Share of a curve's nodes that must lie in the mask or next to it."""


def read_examples(folder: str | Path) -> list[TreeSample]:
    """Return the examples of a folder and all folders below, in the order of their names.

    Parameters
    ----------
    folder : path

    Returns
    -------
    list of TreeSample
        On cubes of the smallest spacing of each mask; what is above 0 is inside.

    Raises
    ------
    InputError, StepError
        If there is no example, a curve has no mask, a file cannot be read, or a curve does
        not run in its mask. An example is named by its number, never by its file.
    """
    root = Path(folder)
    pairs = _pairs(root)
    if not pairs:
        raise InputError(
            "the folder holds no example to train with",
            expected=f"mask.nii.gz with {CURVE_NAME}, or NAME.nii.gz with NAME.swc",
            hint="medpipe data vessels FOLDER writes some",
        )
    samples = []
    for number, (mask, curve) in enumerate(pairs, 1):
        try:
            samples.append(_sample(mask, curve))
        except MedpipeError as error:
            raise error.at(f"example {number} of {len(pairs)}") from None
    return samples


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    """Return the files of each example: mask and curve."""
    if not root.is_dir():
        raise InputError("the examples are no folder", expected="a folder of masks and curves")
    curves = sorted(
        (path for path in root.rglob("*.swc") if not path.name.startswith(".")),
        key=lambda path: path.relative_to(root).parts,
    )
    found = [(_mask_of(curve), curve) for curve in curves]
    alone = sum(mask is None for mask, _ in found)
    if alone:
        raise InputError(
            f"{alone} of {len(found)} curves have no mask beside them",
            expected=f"mask.nii.gz with {CURVE_NAME}, or NAME.nii.gz with NAME.swc",
        )
    return [(mask, curve) for mask, curve in found if mask is not None]


def _mask_of(curve: Path) -> Path | None:
    names = (curve.stem, *(MASK_NAMES if curve.name == CURVE_NAME else ()))
    paths = [curve.with_name(name + suffix) for name in names for suffix in SUFFIXES]
    return next((path for path in paths if path.is_file()), None)


def _sample(mask_file: Path, curve_file: Path) -> TreeSample:
    """Return one example; everything is brought to voxels of cubes."""
    volume, nodes = read_nifti(mask_file), read_swc(curve_file)
    inside = _mask(volume)
    index = (nodes.points_mm - volume.affine[:3, 3]) @ np.linalg.inv(volume.affine[:3, :3]).T
    _check_place(index, inside.shape)
    where = inside.nonzero()
    low = np.maximum(np.asarray(where.amin(0)) - MARGIN, 0)
    high = np.asarray(where.amax(0)) + 1 + MARGIN
    part = inside[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]
    spacing = spacing_mm(volume.affine)
    cubes = cubic_mask(part, spacing)
    points = cubic_index(index - low, part.shape, cubes.shape)
    tree = VesselTree(
        points,
        nodes.radius_mm / spacing.min(),
        nodes.parents,
        _branches(nodes.parents),
        np.asarray(cubes),
        np.eye(4),
    )
    _check_curve(tree)
    return tree_sample(tree)


def _mask(volume: Volume) -> torch.Tensor:
    data = volume.data
    plain = data if data.dtype.kind == "c" else np.ascontiguousarray(data, np.float32)
    inside = check_labels(torch.from_numpy(plain), volume.affine) > 0
    if bool(inside.all()):
        raise InputError("the mask fills its volume", hint="check that it is not inverted")
    return inside


def _check_place(index: NDArray[np.float64], shape: torch.Size) -> None:
    """Raise InputError unless the curve lies in the volume."""
    within = ((index > -1) & (index < np.array(shape))).all(axis=1).mean()
    if within < LEAST_INSIDE:
        raise InputError(
            "the curve does not lie in the volume of its mask",
            expected="positions in RAS+ mm in the space of the NIfTI file",
            got=f"{100 * within:.0f} % of its nodes inside",
            hint="curves of ITK and older 3D Slicer are LPS (x and y negated), SWC of neurons µm",
        )


def _check_curve(tree: VesselTree) -> None:
    """Raise InputError unless the curve has an end and runs in the mask."""
    if not len(tree.leaves):
        raise InputError("the curve has no end", expected="two nodes or more, one a root")
    near = np.rint(tree.points_mm)[:, None] + np.indices((3, 3, 3)).reshape(3, -1).T - 1
    last = np.array(tree.mask.shape) - 1
    at = np.clip(near, 0, last).astype(np.int64)
    share = tree.mask[tuple(np.moveaxis(at, -1, 0))].any(axis=1).mean()
    if share < LEAST_INSIDE:
        raise InputError(
            "the curve does not run in its mask",
            expected=f"{100 * LEAST_INSIDE:.0f} % of its nodes in the mask or beside it",
            got=f"{100 * share:.0f} %",
            hint="check that mask and curve belong together",
        )


def _branches(parents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the branch of each node: it begins after a root's or a fork's node."""
    children = np.bincount(parents[parents >= 0], minlength=len(parents))
    branch: list[int] = []
    count = 0
    for parent in parents.tolist():
        if parent >= 0 and children[parent] == 1:
            branch.append(branch[parent])
        else:
            branch.append(count)
            count += 1
    return np.array(branch, np.int64)
