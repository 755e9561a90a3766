"""What is made of a map of surfaces: labels, thickness, meshes, OCTExplorer files."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.geometry import spacing_mm
from medpipe.graphcut.meshes import surface_mesh
from medpipe.graphcut.octexplorer import OctSurfaces, octexplorer_bytes
from medpipe.graphcut.sectors import Sectors, ring_sectors
from medpipe.graphcut.thickness import column_thickness_mm, thickness_table
from medpipe.graphcut.transforms.height_map import HeightMap, read_heights
from medpipe.io.vtp import PolyData, vtp_bytes
from medpipe.steps._base import ArrayStep, DictStep, affine_of, as_image, check_choice, rewrap
from medpipe.types import Json

__all__ = [
    "LayerThickness",
    "LayerThicknessD",
    "LayerThicknessDict",
    "LayerThicknessd",
    "OctExplorerXml",
    "OctExplorerXmlD",
    "OctExplorerXmlDict",
    "OctExplorerXmld",
    "SurfaceLabels",
    "SurfaceLabelsD",
    "SurfaceLabelsDict",
    "SurfaceLabelsd",
    "SurfaceMesh",
    "SurfaceMeshD",
    "SurfaceMeshDict",
    "SurfaceMeshd",
]

RingParts = Literal["auto", "none", "six", "quadrants"]


class _Reading(DictStep):
    """Base of the steps that need the image beside the map of its surfaces."""

    image: str

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key replaced by what is made of it."""
        out = dict(data)
        if self.image not in data:
            raise StepError("the image is absent", expected=f"a key named {self.image}")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], data[self.image])
        return out


class SurfaceLabels(ArrayStep):
    """Label the regions between surfaces on the grid of the image.

    Label l lies between surfaces l and l + 1 (counted from 1); what lies before the
    first surface is 0. A voxel belongs to a region if its centre does; a centre on a
    surface belongs to the region before it.

    Parameters
    ----------
    beyond : bool
        Number also what lies beyond the last surface; always so for one surface.
    axis : int, optional
        Axis of the columns, for maps that do not tell.
    """

    def __init__(self, beyond: bool = False, axis: int | None = None) -> None:
        self.beyond, self.axis = beyond, axis

    def __call__(self, heights: Any, img: Any) -> MetaTensor:
        """Return a uint8 label map (1, I, J, K).

        Parameters
        ----------
        heights : MetaTensor
            Map of S surfaces.
        img : MetaTensor
            The image in which they were found.

        Raises
        ------
        StepError
            If the map is not on the grid of the image or there are too many surfaces.
        """
        surfaces, image = read_heights(heights, self.axis), as_image(img)
        positions = surfaces.positions_mm
        if len(positions) > 255:
            raise StepError("there are too many surfaces for labels", expected="at most 255")
        columns = surfaces.columns(image)
        labels = columns.labels(positions, image.shape[1:], affine_of(image))
        if not self.beyond and len(positions) > 1:
            labels = torch.where(labels == len(positions), 0, labels)
        # the record of the surfaces says how they were found
        made = rewrap(image, labels.to(torch.uint8))
        made.meta["medpipe"] = dict(as_image(heights).meta.get("medpipe") or {})
        return made


class SurfaceLabelsd(_Reading):
    """Label the regions between surfaces on the grid of the image.

    Label l lies between surfaces l and l + 1 (counted from 1); what lies before the
    first surface is 0.

    Parameters
    ----------
    keys : keys of maps of surfaces, replaced by label maps
    image : str
        Key of the image in which the surfaces were found.
    beyond, axis
        See `SurfaceLabels`.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("image",)
    writes = ()
    files = ()
    makes = "labels"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        image: str = "image",
        beyond: bool = False,
        axis: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image = image
        self.step = SurfaceLabels(beyond, axis)


class LayerThickness(ArrayStep):
    """Measure the layers between consecutive surfaces along the columns.

    Parameters
    ----------
    names : list of str, optional
        One for each layer; by default the names of the two surfaces around it.
    total : bool
        Add the distance from the first surface to the last.
    unit : {"um", "mm"}
        Unit of the thicknesses.
    sectors : {"auto", "none", "six", "quadrants"}
        Sectors of a ring scan around the optic disc to have rows of their own; auto
        takes six where the scan closes on itself.
    start_deg : float
        Angle of the first column of a ring scan: 0 temporal, 90 superior, 180 nasal,
        270 inferior. The default, temporal first and then superior, is the order
        (TSNIT) in which such scans are stored.
    descending : bool
        The ring scan runs from temporal to inferior instead.
    axis : int, optional
        Axis of the columns, for maps that do not tell.
    """

    def __init__(
        self,
        names: Sequence[str] | None = None,
        total: bool = True,
        unit: Literal["um", "mm"] = "um",
        sectors: RingParts = "auto",
        start_deg: float = 0.0,
        descending: bool = False,
        axis: int | None = None,
    ) -> None:
        check_choice("unit", unit, ("um", "mm"))
        check_choice("sectors", sectors, get_args(RingParts))
        self.names = None if names is None else tuple(names)
        self.total, self.unit, self.axis = total, unit, axis
        self.sectors: RingParts = sectors
        self.start_deg, self.descending = start_deg, descending

    def __call__(self, heights: Any) -> dict[str, Json]:
        """Return a row for each layer and, as ``layer/sector``, for each of its sectors.

        See `medpipe.graphcut.thickness.thickness_table` for the columns. Area and
        volume are there where columns have an area, in a scan of several rows.

        Raises
        ------
        StepError
            If there are fewer than two surfaces, they cross, or sectors are wanted of
            a scan that is no ring.
        """
        surfaces = read_heights(heights, self.axis)
        layers = column_thickness_mm(surfaces.positions_mm)
        names = list(self.names or _layer_names(surfaces.names))
        if self.total and len(layers) > 1:
            layers = torch.cat([layers, layers.sum(0, keepdim=True)])
            names.append("total")
        a, b = surfaces.lateral
        step = spacing_mm(surfaces.affine)
        area = float(step[a] * step[b]) if min(layers.shape[1:]) > 1 else None
        return thickness_table(
            layers, names, unit=self.unit, area_mm2=area, sectors=self._sectors(surfaces)
        )

    def _sectors(self, surfaces: HeightMap) -> Sectors | None:
        ring = len(surfaces.wrap) == 1
        if self.sectors == "none" or (self.sectors == "auto" and not ring):
            return None
        if not ring:
            raise StepError(
                "sectors are those of a ring scan", expected="a scan that closes on itself"
            )
        shape = surfaces.positions_mm.shape[1:]
        along = surfaces.lateral.index(surfaces.wrap[0])
        count = shape[along]
        turn = torch.arange(count, dtype=torch.float64, device=surfaces.positions_mm.device)
        turn = self.start_deg + (-360.0 if self.descending else 360.0) * turn / count
        turn = turn[:, None] if along == 0 else turn
        return ring_sectors(turn.expand(shape), "six" if self.sectors == "auto" else self.sectors)


def _layer_names(surfaces: Sequence[str]) -> list[str]:
    return [f"{a} to {b}" for a, b in pairwise(surfaces)]


class LayerThicknessd(DictStep):
    """Measure the layers between consecutive surfaces, in µm, also by sectors of a ring scan.

    Parameters
    ----------
    keys : keys of maps of surfaces, replaced by tables
    names, total, unit, sectors, start_deg, descending, axis
        See `LayerThickness`.
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
        self,
        keys: KeysCollection,
        names: list[str] | None = None,
        total: bool = True,
        unit: Literal["um", "mm"] = "um",
        sectors: Literal["auto", "none", "six", "quadrants"] = "auto",
        start_deg: float = 0.0,
        descending: bool = False,
        axis: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = LayerThickness(names, total, unit, sectors, start_deg, descending, axis)


class SurfaceMesh(ArrayStep):
    """Make a VTP mesh of surfaces: triangles, or lines for a single row of columns.

    Every point has its ``surface`` (numbered from 1), its ``position_mm`` along the
    column and ``to_next_um``, the distance to the next surface (0 for the last). A
    ring scan is drawn as it lies in the file, unrolled, so its ends are not joined.

    Parameters
    ----------
    axis : int, optional
        Axis of the columns, for maps that do not tell.
    """

    def __init__(self, axis: int | None = None) -> None:
        self.axis = axis

    def __call__(self, heights: Any) -> bytes:
        """Return the content of a ``.vtp`` file, in RAS+ mm.

        Raises
        ------
        StepError
            If there is a single column only.
        """
        surfaces = read_heights(heights, self.axis)
        points = surfaces.points_mm
        count, size = len(points), points[0, ..., 0].numel()
        if size < 2:
            raise StepError("a mesh needs two columns or more", got=f"{size} column")
        offsets = torch.arange(count, device=points.device) * size
        triangles = torch.empty((0, 3), dtype=torch.int64, device=points.device)
        lines: list[Any] = []
        if min(points.shape[1:3]) > 1:
            each = [surface_mesh(p)[1] + o for p, o in zip(points, offsets, strict=True)]
            triangles = torch.cat(each)
        else:
            chain = torch.arange(size, device=points.device)
            lines = [chain + offset for offset in offsets]
        positions = surfaces.positions_mm
        gaps = torch.cat([positions.diff(dim=0) * 1000, torch.zeros_like(positions[:1])])
        number = torch.arange(1, count + 1, dtype=torch.int32, device=points.device)
        mesh = PolyData(
            points.reshape(-1, 3),  # type: ignore[arg-type] # tensors become arrays
            triangles=triangles,  # type: ignore[arg-type]
            lines=lines,
            point_data={
                "surface": number.repeat_interleave(size),  # type: ignore[dict-item]
                "position_mm": positions.reshape(-1).to(torch.float32),  # type: ignore[dict-item]
                "to_next_um": gaps.reshape(-1).to(torch.float32),  # type: ignore[dict-item]
            },
        )
        return vtp_bytes(mesh)


class SurfaceMeshd(DictStep):
    """Make VTP meshes of surfaces: triangles, or lines for a single row of columns.

    Parameters
    ----------
    keys : keys of maps of surfaces, replaced by documents
    axis : int, optional
        Axis of the columns, for maps that do not tell.
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

    def __init__(
        self, keys: KeysCollection, axis: int | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = SurfaceMesh(axis)


class OctExplorerXml(ArrayStep):
    """Make an OCTExplorer XML file of the surfaces of an OCT scan.

    Parameters
    ----------
    laterality : {"OD", "OS"}, optional
        Right or left eye.
    b_scan_axis : int, optional
        Axis of the image across the B-scans; by default the one of fewer voxels.
    axis : int, optional
        Axis of the columns, for maps that do not tell.
    """

    def __init__(
        self,
        laterality: Literal["OD", "OS"] | None = None,
        b_scan_axis: int | None = None,
        axis: int | None = None,
    ) -> None:
        if laterality is not None:
            check_choice("eye", laterality, ("OD", "OS"))
        self.laterality, self.b_scan_axis, self.axis = laterality, b_scan_axis, axis

    def __call__(self, heights: Any, img: Any) -> bytes:
        """Return the content of an XML file; heights are voxels along the depth.

        Parameters
        ----------
        heights : MetaTensor
            Map of surfaces.
        img : MetaTensor
            The scan in which they were found.
        """
        surfaces, image = read_heights(heights, self.axis), as_image(img)
        surfaces.columns(image)  # refuses another grid
        a, b = sorted(surfaces.lateral, key=lambda n: -image.shape[n + 1])
        if self.b_scan_axis is not None:
            if self.b_scan_axis not in surfaces.lateral:
                raise UsageError(
                    "b_scan_axis is wrong",
                    expected=" or ".join(str(n) for n in surfaces.lateral),
                    got=str(self.b_scan_axis),
                )
            b = self.b_scan_axis
            a = sum(surfaces.lateral) - b
        step = [float(s) for s in spacing_mm(surfaces.affine)]
        heights_mm = surfaces.positions_mm
        if a < b:  # (S, A, B) to (S, B, A)
            heights_mm = heights_mm.transpose(1, 2)
        size = [int(n) for n in image.shape[1:]]
        # the map holds float32: more digits than that would be invented
        voxels = (heights_mm / step[surfaces.axis] * 1e4).round() / 1e4
        return octexplorer_bytes(
            OctSurfaces(
                surfaces.names,
                np.array(voxels.tolist()),
                (step[a], step[surfaces.axis], step[b]),
                (size[a], size[surfaces.axis], size[b]),
                laterality=self.laterality,
            )
        )


class OctExplorerXmld(_Reading):
    """Make OCTExplorer XML files of the surfaces of OCT scans.

    Parameters
    ----------
    keys : keys of maps of surfaces, replaced by documents
    image : str
        Key of the scan in which the surfaces were found.
    laterality, b_scan_axis, axis
        See `OctExplorerXml`.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("image",)
    writes = ()
    files = ()
    makes = "document"
    suffix = ".xml"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        image: str = "image",
        laterality: Literal["OD", "OS"] | None = None,
        b_scan_axis: int | None = None,
        axis: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image = image
        self.step = OctExplorerXml(laterality, b_scan_axis, axis)


LayerThicknessD = LayerThicknessDict = LayerThicknessd
OctExplorerXmlD = OctExplorerXmlDict = OctExplorerXmld
SurfaceLabelsD = SurfaceLabelsDict = SurfaceLabelsd
SurfaceMeshD = SurfaceMeshDict = SurfaceMeshd
