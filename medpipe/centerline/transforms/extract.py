"""Centerlines of masks as a transform."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.centerline.extract import ExtractionSettings, extract_centerline
from medpipe.centerline.prepare import check_labels
from medpipe.centerline.transforms._base import one_channel
from medpipe.errors import StepError, UsageError
from medpipe.steps._base import (
    ArrayStep,
    DictStep,
    affine_of,
    as_image,
    check_same_grid,
    read_key,
)

if TYPE_CHECKING:
    from medpipe.centerline.maps import CenterlineMaps

__all__ = ["Centerline", "CenterlineD", "CenterlineDict", "Centerlined"]

Root = Literal["auto", "widest", "superior", "inferior", "left", "right", "anterior", "posterior"]
Endpoints = Literal["geodesic", "given", "learned"]


class Centerline(ArrayStep):
    """Find the centerlines of a mask: one tree per root, thin and without cycles.

    Every label value of a label map is a structure of its own, with its own trees.

    Parameters
    ----------
    labels : sequence of int, optional
        Label values to look at; by default all above 0.
    root, root_points_mm, endpoints, endpoint_points_mm, cost, loops
        See `medpipe.centerline.extract.ExtractionSettings`.
    ball_scale, ball_voxels, prune_radii, prune_voxels, smoothing_rounds, snap_mm
        See there.
    min_component_voxels : int
        Smaller parts are left out; the largest of each structure stays.
    weights : str
        Of the network, where ends or costs are learned and no maps are given: a packaged
        model or a file that ``train_centerline`` made.
    """

    def __init__(
        self,
        labels: Sequence[int] | None = None,
        root: Root = "auto",
        root_points_mm: Sequence[Sequence[float]] | None = None,
        endpoints: Endpoints = "geodesic",
        endpoint_points_mm: Sequence[Sequence[float]] | None = None,
        ball_scale: float = 1.5,
        ball_voxels: float = 3.1,
        prune_radii: float = 1.2,
        prune_voxels: float = 2.0,
        loops: Literal["cut", "keep"] = "cut",
        smoothing_rounds: int = 20,
        snap_mm: float = 5.0,
        min_component_voxels: int = 27,
        weights: str = "centerline",
        cost: Literal["depth", "learned"] = "depth",
    ) -> None:
        if labels is not None and (not labels or min(labels) < 1):
            raise UsageError("labels is wrong", expected="label values above 0")
        self.labels = None if labels is None else [int(label) for label in labels]
        self.weights = weights
        self.settings = ExtractionSettings(
            root=root,
            root_points_mm=_points("root_points_mm", root_points_mm),
            endpoints=endpoints,
            endpoint_points_mm=_points("endpoint_points_mm", endpoint_points_mm),
            cost=cost,
            ball_scale=ball_scale,
            ball_voxels=ball_voxels,
            prune_radii=prune_radii,
            prune_voxels=prune_voxels,
            loops=loops,
            smoothing_rounds=smoothing_rounds,
            snap_mm=snap_mm,
            min_component_voxels=min_component_voxels,
        )

    def __call__(self, mask: Any, ostium: Any = None, maps: Any = None) -> bytes:
        """Return the centerlines as a document; `CenterlineTree.from_json` reads it.

        Parameters
        ----------
        mask : MetaTensor (1, I, J, K)
            Whole numbers; above 0 is inside.
        ostium : MetaTensor (1, I, J, K), optional
            Mask of the vessel that the structure leaves, on the same grid.
        maps : MetaTensor (3, I, J, K), optional
            Learned maps: distance, ends, roots, as ``centerline_maps`` makes them. They are
            computed if ends or costs are learned and there are none.

        Raises
        ------
        StepError
            If the mask is empty, a single slice or no label map, or a point lies outside.
        """
        image, values = one_channel(mask, "mask")
        if self.labels is not None:
            values = self._chosen(values)
        contact = None
        if ostium is not None:
            other, inside = one_channel(ostium, "ostium")
            check_same_grid(image, other, "ostium")
            contact = inside.to(values.device) > 0
        affine = affine_of(image)
        learned = None
        if maps is not None:
            learned = _maps(image, maps)
        elif "learned" in (self.settings.endpoints, self.settings.cost):
            from medpipe.centerline.maps import learned_maps

            learned = learned_maps(check_labels(values, affine), affine, model=self.weights)
        found = extract_centerline(values, affine, self.settings, ostium=contact, maps=learned)
        return found.to_json()

    def _chosen(self, values: torch.Tensor) -> torch.Tensor:
        wanted = torch.tensor(self.labels, device=values.device)
        chosen = torch.where(torch.isin(values, wanted), values, 0)
        if not bool(chosen.any()):
            present = torch.unique(values[values > 0]).tolist()
            shown = ", ".join(f"{value:g}" for value in present[:8])
            raise StepError(
                "the mask holds none of the labels",
                expected=", ".join(map(str, self.labels or ())),
                got=(shown + (", …" if len(present) > 8 else "")) or "an empty mask",
            )
        return chosen


def _maps(image: MetaTensor, maps: Any) -> CenterlineMaps:
    """Return learned maps that an image of three channels holds."""
    from medpipe.centerline.maps import CenterlineMaps

    other = as_image(maps)
    check_same_grid(image, other, "image of learned maps")
    if other.shape[0] != 3:
        raise StepError(
            "the image holds no learned maps",
            expected="three channels, as the step centerline_maps makes them",
            got=str(other.shape[0]),
        )
    q, endpoint, root = other.as_tensor().to(image.device)
    return CenterlineMaps(q, endpoint, root)


def _points(
    name: str, points: Sequence[Sequence[float]] | None
) -> tuple[tuple[float, float, float], ...]:
    out = []
    for point in points or ():
        try:
            x, y, z = (float(v) for v in point)
        except (TypeError, ValueError):
            raise UsageError(f"{name} is wrong", expected="a list of [x, y, z] in mm") from None
        out.append((x, y, z))
    return tuple(out)


class Centerlined(DictStep):
    """Find the centerlines of a mask: one tree per root, thin and without cycles.

    Every label value of a label map is a structure of its own, with its own trees. The
    result is a document (``.json``, networkx node-link) that the other steps read.

    Parameters
    ----------
    keys : keys of masks or label maps, replaced by trees
    ostium : str, optional
        Key of a mask of the vessel that the structure leaves: roots are where they touch.
    maps : str, optional
        Key of learned maps (``centerline_maps``): they give roots, and ends and the cost of
        paths where these are learned.
    labels : list of int, optional
        Label values to look at; by default all above 0.
    root : {"auto", "widest", "superior", "inferior", "left", "right", "anterior", "posterior"}
        Where the root is: "auto" is the ostium if there is one, else the end of the
        widest branch; a direction is the wide end farthest that way.
    root_points_mm : list of [x, y, z], optional
        Roots in RAS+ mm, one for a connected part.
    endpoints : {"geodesic", "given", "learned"}
        Where branches end: found in the mask, at given points only, or by a network (by
        `maps`, else by the one of `weights`).
    endpoint_points_mm : list of [x, y, z], optional
        Ends in RAS+ mm that are always reached and never pruned.
    ball_scale, ball_voxels : float
        Ends within `ball_scale` times the distance to the wall plus `ball_voxels` of a
        branch belong to it.
    prune_radii, prune_voxels : float
        Branches that end shorter than `prune_radii` times the radius where they leave
        plus `prune_voxels` go.
    loops : {"cut", "keep"}
        "keep" adds an edge that closes each loop of the mask.
    smoothing_rounds : int
        Rounds that smooth the curve; 0 leaves the middles of voxels.
    snap_mm : float
        A given point farther than this from the mask is an error.
    min_component_voxels : int
        Smaller parts are left out; the largest of each structure stays.
    weights : str
        Of the network of learned ends, where there are no `maps`: "centerline", the packaged
        model, or a file that ``train_centerline`` made.
    cost : {"depth", "learned"}
        What makes the middle of a vessel cheap: the distance to the wall, or the learned
        distance to the centerline.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("ostium", "maps")
    optional_reads = ("ostium", "maps")
    writes = ()
    files = ("weights",)
    makes = "document"
    suffix = ".json"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        ostium: str | None = None,
        maps: str | None = None,
        labels: list[int] | None = None,
        root: Root = "auto",
        root_points_mm: list[list[float]] | None = None,
        endpoints: Endpoints = "geodesic",
        endpoint_points_mm: list[list[float]] | None = None,
        ball_scale: float = 1.5,
        ball_voxels: float = 3.1,
        prune_radii: float = 1.2,
        prune_voxels: float = 2.0,
        loops: Literal["cut", "keep"] = "cut",
        smoothing_rounds: int = 20,
        snap_mm: float = 5.0,
        min_component_voxels: int = 27,
        weights: str = "centerline",
        cost: Literal["depth", "learned"] = "depth",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ostium, self.maps = ostium, maps
        self.step = Centerline(
            labels, root, root_points_mm, endpoints, endpoint_points_mm, ball_scale, ball_voxels,
            prune_radii, prune_voxels, loops, smoothing_rounds, snap_mm, min_component_voxels,
            weights, cost,
        )  # fmt: skip

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each mask replaced by its tree."""
        out = dict(data)
        read = {}
        for role, name in (("ostium", self.ostium), ("maps", self.maps)):
            if name is not None and name in data:
                read[role] = read_key(data, name, role)
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], **read)
        return out


CenterlineD = CenterlineDict = Centerlined
