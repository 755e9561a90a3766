"""Lumen and external elastic membrane in intravascular ultrasound as transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.solve import Solver
from medpipe.graphcut.transforms.certificate import with_certificate
from medpipe.graphcut.transforms.grid import one_channel
from medpipe.graphcut.transforms.wall_contours import WallContours
from medpipe.graphcut.vessel_measures import frame_table, summary_table
from medpipe.graphcut.vessel_wall import (
    VesselWallParameters,
    VesselWallResult,
    vessel_wall,
)
from medpipe.io.vtp import vtp_bytes
from medpipe.steps._base import ArrayStep, DictStep, affine_of, rewrap
from medpipe.types import Affine, Finding, Json, Severity

__all__ = [
    "LumenMedia",
    "LumenMediaD",
    "LumenMediaDict",
    "LumenMediad",
    "VesselWallMesh",
    "VesselWallMeshD",
    "VesselWallMeshDict",
    "VesselWallMeshd",
    "VesselWallTable",
    "VesselWallTableD",
    "VesselWallTableDict",
    "VesselWallTabled",
]

MOSTLY_BRIDGED = 0.5
"""Share of shadowed rays of a frame beyond which its contours are a guess."""


class LumenMedia(ArrayStep):
    """Find lumen and external elastic membrane in intravascular ultrasound.

    The recipe of `medpipe.graphcut.vessel_wall`: rays from the catheter, both contours
    of all frames in one minimum cut. Each contour crosses each ray once, so it is a
    single closed curve, and the lumen lies inside the membrane in every frame. Rays in
    the shadow of calcium or a guide wire are bridged from their neighbours.

    Parameters
    ----------
    center_mm : sequence of 3 floats, optional
        A point on the catheter in RAS+ mm, moved along the frames; by default the
        middle of the image.
    inner_mm : float
        Radius at which the rays start, beyond catheter and ring-down.
    outer_mm : float, optional
        Radius at which they end; by default the border of the image.
    min_wall_mm, max_wall_mm : float
        Limits of the distance from lumen to membrane along the rays.
    angles : int
        Rays per frame.
    node_mm : float
        Spacing of the nodes along the rays.
    edge_mm : float
        Width of the derivative along the rays.
    blur_deg : float
        Width of the Gaussian across the rays, against speckle.
    stiffness, frame_stiffness : float
        Cost of changes of radius between neighbouring rays and frames.
    slope, frame_slope : float
        Largest change of radius over distance around and along the vessel.
    region_weight : float
        Weight of the brightness of blood, wall and surroundings.
    rounds : int
        Cuts; brightness and shadows are measured again between them.
    solver : {"auto", "pseudoflow", "stencil", "ortools", "scipy"}
        See `medpipe.graphcut.solve.min_cut`.
    """

    def __init__(
        self,
        center_mm: Sequence[float] | None = None,
        inner_mm: float = 0.7,
        outer_mm: float | None = None,
        min_wall_mm: float = 0.08,
        max_wall_mm: float = 2.5,
        angles: int = 256,
        node_mm: float = 0.025,
        edge_mm: float = 0.05,
        blur_deg: float = 3.0,
        stiffness: float = 0.15,
        frame_stiffness: float = 0.15,
        slope: float = 0.8,
        frame_slope: float = 0.8,
        region_weight: float = 0.05,
        rounds: int = 3,
        solver: Solver = "auto",
    ) -> None:
        self.center_mm = None if center_mm is None else tuple(float(c) for c in center_mm)
        if self.center_mm is not None and len(self.center_mm) != 3:
            raise UsageError("center_mm is wrong", expected="three numbers, RAS+ mm")
        if angles < 8:
            raise UsageError("angles is out of range", expected="8 or more", got=str(angles))
        self.parameters = VesselWallParameters(
            angles=angles,
            node_mm=node_mm,
            inner_mm=inner_mm,
            outer_mm=outer_mm,
            edge_mm=edge_mm,
            blur_deg=blur_deg,
            min_wall_mm=min_wall_mm,
            max_wall_mm=max_wall_mm,
            stiffness=stiffness,
            frame_stiffness=frame_stiffness,
            slope=slope,
            frame_slope=frame_slope,
            region_weight=region_weight,
            rounds=rounds,
        )
        self.solver: Solver = solver

    def __call__(self, img: Any) -> MetaTensor:
        """Return a uint8 label map (1, I, J, frames): 1 lumen, 2 wall, 0 elsewhere.

        Parameters
        ----------
        img : MetaTensor
            Frames (1, I, J, frames), brighter for stronger echoes; voxels need not be
            square.

        Raises
        ------
        StepError
            If the frames hold NaN or nothing, the catheter lies outside them, or they
            leave no room for a wall.
        """
        return self.both(img)[0]

    def both(self, img: Any) -> tuple[MetaTensor, MetaTensor]:
        """Return the label map and the contours as an image (`WallContours`)."""
        image, frames, _ = one_channel(img)
        affine = affine_of(image)
        center = self._center(affine, tuple(frames.shape))
        found = vessel_wall(
            frames[None],
            affine,
            center_mm=torch.from_numpy(center).to(frames.device),
            parameters=self.parameters,
            solver=self.solver,
        )
        before = found.columns.labels(found.radius_mm, tuple(frames.shape), affine)
        labels = torch.where(before == 2, 0, before + 1).to(torch.uint8)
        out = rewrap(image, labels)
        for n, cut in enumerate(found.cuts):
            out = with_certificate(out, f"lumen and media, round {n + 1}", cut)
        out.meta["medpipe"]["findings"].append(_shadows(found).to_dict())
        origin = affine.copy()
        origin[:3, 3] = center
        return out, WallContours(found.radius_mm, found.seen, origin).image(out)

    def _center(self, affine: Affine, shape: tuple[int, ...]) -> Affine:
        """Return the catheter in the plane of the first frame, (3,) in RAS+ mm."""
        voxel: Affine = (np.array(shape, np.float64) - 1) / 2
        if self.center_mm is not None:
            offset = np.array(self.center_mm) - affine[:3, 3]
            voxel = np.linalg.solve(affine[:3, :3], offset).astype(np.float64)
            inside = (voxel[:2] >= 0) & (voxel[:2] <= np.array(shape[:2]) - 1)
            if not inside.all():
                raise StepError(
                    "the centre lies outside the frames",
                    expected=f"a point within {shape[0]} × {shape[1]} pixels",
                    got=f"pixel ({voxel[0]:.0f}, {voxel[1]:.0f})",
                    hint="center_mm is in RAS+ mm",
                )
        voxel[2] = 0
        return np.asarray(affine[:3, :3] @ voxel + affine[:3, 3], dtype=np.float64)


def _shadows(found: VesselWallResult) -> Finding:
    """Say how much of the contours was bridged."""
    hidden = (~found.seen).to(torch.float64)
    share = hidden.mean((1, 2)).tolist()
    worst, frame = hidden[1].mean(0).max(0)
    bad = float(worst) > MOSTLY_BRIDGED
    text = (
        f"in shadow and bridged from neighbours: {100 * share[0]:.0f} % of the lumen, "
        f"{100 * share[1]:.0f} % of the media; most in frame {int(frame) + 1}, "
        f"{100 * float(worst):.0f} %"
    )
    return Finding("ivus.shadow", Severity.WARNING if bad else Severity.INFO, text)


class LumenMediad(DictStep):
    """Find lumen and external elastic membrane in intravascular ultrasound.

    The result is a label map: 1 lumen, 2 wall between lumen and membrane.

    Parameters
    ----------
    keys : keys of the frames, replaced by label maps
    contours : str, optional
        Key that receives the contours between pixels; for one image only.
    center_mm : list of 3 floats, optional
        A point on the catheter in RAS+ mm; by default the middle of the image.
    inner_mm : float
        Radius at which the rays start, beyond catheter and ring-down.
    outer_mm : float, optional
        Radius at which they end; by default the border of the image.
    min_wall_mm, max_wall_mm : float
        Limits of the distance from lumen to membrane.
    angles : int
        Rays per frame.
    node_mm, edge_mm, blur_deg, stiffness, frame_stiffness, slope, frame_slope
        See `LumenMedia`.
    region_weight, rounds, solver
        See `LumenMedia`.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ("contours",)
    files = ()
    makes = "labels"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        contours: str | None = None,
        center_mm: list[float] | None = None,
        inner_mm: float = 0.7,
        outer_mm: float | None = None,
        min_wall_mm: float = 0.08,
        max_wall_mm: float = 2.5,
        angles: int = 256,
        node_mm: float = 0.025,
        edge_mm: float = 0.05,
        blur_deg: float = 3.0,
        stiffness: float = 0.15,
        frame_stiffness: float = 0.15,
        slope: float = 0.8,
        frame_slope: float = 0.8,
        region_weight: float = 0.05,
        rounds: int = 3,
        solver: Literal["auto", "pseudoflow", "stencil", "ortools", "scipy"] = "auto",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if contours is not None and len(self.keys) != 1:
            raise UsageError("contours holds those of one image", expected="one image")
        self.contours = contours
        self.step = LumenMedia(
            center_mm, inner_mm, outer_mm, min_wall_mm, max_wall_mm, angles, node_mm, edge_mm,
            blur_deg, stiffness, frame_stiffness, slope, frame_slope, region_weight, rounds, solver,
        )  # fmt: skip

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key replaced by its label map."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key], contours = self.step.both(out[key])
            if self.contours is not None:
                out[self.contours] = contours
        return out


class VesselWallTable(ArrayStep):
    """Measure lumen, vessel and wall: areas, plaque burden, diameters, thickness.

    Parameters
    ----------
    per_frame : bool
        A row for every frame instead of the summary of the pullback.
    """

    def __init__(self, per_frame: bool = False) -> None:
        self.per_frame = per_frame

    def __call__(self, contours: Any) -> dict[str, Json]:
        """Return the table of contours; see `medpipe.graphcut.vessel_measures`."""
        found = WallContours.read(contours)
        rows = frame_table(found.in_plane_mm, found.step_mm)
        if not self.per_frame:
            return summary_table(rows, found.step_mm)
        hidden = (100 * (~found.seen).to(torch.float64).mean(1)).T.tolist()
        return {
            name: {**row, "lumen_bridged_percent": lumen, "media_bridged_percent": media}
            for (name, row), (lumen, media) in zip(rows.items(), hidden, strict=True)
        }


class VesselWallTabled(DictStep):
    """Replace contours of `lumen_media` by a table: areas, plaque burden, diameters, thickness.

    Parameters
    ----------
    keys : keys of contours, replaced by tables
    per_frame : bool
        A row for every frame instead of the summary of the pullback.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "table"
    random = False

    def __init__(
        self, keys: KeysCollection, per_frame: bool = False, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = VesselWallTable(per_frame)


class VesselWallMesh(ArrayStep):
    """Lumen and membrane as a triangle mesh in RAS+ mm; a single frame gives two lines."""

    def __call__(self, contours: Any) -> bytes:
        """Return a .vtp file.

        Its points carry ``surface`` (1 lumen, 2 media), ``frame`` (from 1),
        ``radius_mm`` from the catheter, ``wall_um`` along the ray, and ``seen`` (0 where a shadow
        was bridged). Triangles face outwards.
        """
        return vtp_bytes(WallContours.read(contours).mesh())


class VesselWallMeshd(DictStep):
    """Replace contours of `lumen_media` by a mesh of lumen and media (.vtp, RAS+ mm).

    Parameters
    ----------
    keys : keys of contours, replaced by documents
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "document"
    suffix = ".vtp"
    random = False

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = VesselWallMesh()


LumenMediaD = LumenMediaDict = LumenMediad
VesselWallTableD = VesselWallTableDict = VesselWallTabled
VesselWallMeshD = VesselWallMeshDict = VesselWallMeshd
