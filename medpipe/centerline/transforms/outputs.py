"""What is made of centerlines: label images, tables, SWC, VTP and GraphML."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, get_args

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.centerline.dense import Shown, dense_labels, line_labels, node_values
from medpipe.centerline.graphml import graphml_bytes
from medpipe.centerline.measures import bifurcations, branch_table, summary
from medpipe.centerline.polydata import vtp_bytes_of
from medpipe.centerline.swc import swc_bytes
from medpipe.centerline.transforms._base import (
    check_grid_of_tree,
    one_channel,
    read_tree,
    tree_findings,
)
from medpipe.errors import StepError, UsageError
from medpipe.steps._base import ArrayStep, DictStep, check_choice, rewrap, with_facts
from medpipe.types import Json

__all__ = [
    "CenterlineGraphml",
    "CenterlineGraphmlD",
    "CenterlineGraphmlDict",
    "CenterlineGraphmld",
    "CenterlineLabels",
    "CenterlineLabelsD",
    "CenterlineLabelsDict",
    "CenterlineLabelsd",
    "CenterlineSwc",
    "CenterlineSwcD",
    "CenterlineSwcDict",
    "CenterlineSwcd",
    "CenterlineTable",
    "CenterlineTableD",
    "CenterlineTableDict",
    "CenterlineTabled",
    "CenterlineVtp",
    "CenterlineVtpD",
    "CenterlineVtpDict",
    "CenterlineVtpd",
]

Rows = Literal["summary", "branches", "bifurcations"]
Radius = Literal["inscribed", "area"]


class CenterlineLabels(ArrayStep):
    """Label the voxels of a mask by the branch of its centerline that is nearest within it.

    Parameters
    ----------
    show : {"branch", "generation", "strahler", "structure", "line"}
        The label: one more than the number of the branch, one more than its generation,
        Strahler order, value of the structure, or 1.
    thin : bool
        Only the voxels of the centerline, one voxel wide; always so with "line".
    """

    def __init__(self, show: Shown = "branch", thin: bool = False) -> None:
        self.show: Shown = check_choice("show", show, get_args(Shown))
        self.thin = thin or show == "line"

    def __call__(self, mask: Any, tree: Any) -> MetaTensor:
        """Return an integer label map (1, I, J, K) with what was noticed in the extraction.

        Raises
        ------
        StepError
            If the mask is not the one of the tree or there are more than 65535 labels.
        """
        image, inside = one_channel(mask, "mask")
        found = read_tree(tree)
        check_grid_of_tree(image, found, "mask")
        values = node_values(found, self.show)
        if self.thin:
            labels = line_labels(found, values)
        else:
            labels = dense_labels(found, _integers(inside), values)
        made = rewrap(image, labels[None].to(image.device))
        facts = {name: value for name, value in found.facts.items() if name != "findings"}
        return with_facts(made, {"centerline": facts}, tree_findings(found))


def _integers(values: torch.Tensor) -> torch.Tensor:
    """Return label values as integers; an extraction takes none above 255."""
    return values.clamp(0, 255).to(torch.uint8)


class CenterlineLabelsd(DictStep):
    """Label the voxels of masks by the branch of the centerline that is nearest within them.

    Parameters
    ----------
    keys : keys of the masks in which the centerline was found, replaced by label maps
    tree : str
        Key of the centerline.
    show : {"branch", "generation", "strahler", "structure", "line"}
        The label: one more than the number of the branch, one more than its generation,
        Strahler order, value of the structure, or 1.
    thin : bool
        Only the voxels of the centerline, one voxel wide; always so with "line".
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("tree",)
    writes = ()
    files = ()
    makes = "labels"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        tree: str = "tree",
        show: Literal["branch", "generation", "strahler", "structure", "line"] = "branch",
        thin: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.tree = tree
        self.step = CenterlineLabels(show, thin)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each mask replaced by its labels."""
        out = dict(data)
        if self.tree not in data:
            raise StepError("the centerline is absent", expected=f"a key named {self.tree}")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], data[self.tree])
        return out


class CenterlineTable(ArrayStep):
    """Measure a centerline.

    Parameters
    ----------
    rows : {"summary", "branches", "bifurcations"}
        One row of the whole, or one for each branch or bifurcation.
    """

    def __init__(self, rows: Rows = "summary") -> None:
        self.rows = check_choice("rows", rows, get_args(Rows))

    def __call__(self, tree: Any) -> dict[str, Json]:
        """Return the table; see `medpipe.centerline.measures`."""
        found = read_tree(tree)
        if self.rows == "summary":
            return dict(summary(found))
        rows = branch_table(found) if self.rows == "branches" else bifurcations(found)
        # the label of a branch in the label image is one more than its number
        noun = "label" if self.rows == "branches" else "bifurcation"
        return {f"{noun} {number}": dict(row) for number, row in enumerate(rows, 1)}


class CenterlineTabled(DictStep):
    """Replace centerlines by tables of their measures, units in the names.

    Parameters
    ----------
    keys : keys of centerlines, replaced by tables
    rows : {"summary", "branches", "bifurcations"}
        One row of the whole, or one for each branch or bifurcation.
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
        rows: Literal["summary", "branches", "bifurcations"] = "summary",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = CenterlineTable(rows)


class CenterlineSwc(ArrayStep):
    """Write a centerline as SWC, in RAS+ mm.

    Parameters
    ----------
    radius : {"inscribed", "area"}
        Of the largest ball inside, or of a circle with the area of the section.
    tree : int, optional
        Number of the one tree to write, from 1; by default all.
    """

    def __init__(self, radius: Radius = "inscribed", tree: int | None = None) -> None:
        if tree is not None and tree < 1:
            raise UsageError("tree is wrong", expected="a number from 1", got=str(tree)[:20])
        self.radius: Radius = check_choice("radius", radius, get_args(Radius))
        self.tree = tree

    def __call__(self, tree: Any) -> bytes:
        """Return the content of an ``.swc`` file."""
        only = None if self.tree is None else self.tree - 1
        return swc_bytes(read_tree(tree), radius=self.radius, only=only)


class CenterlineSwcd(DictStep):
    """Replace centerlines by SWC files (seven columns, RAS+ mm).

    Parameters
    ----------
    keys : keys of centerlines, replaced by documents
    radius : {"inscribed", "area"}
        Of the largest ball inside, or of a circle with the area of the section.
    tree : int, optional
        Number of the one tree to write, from 1; by default all.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "document"
    suffix = ".swc"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        radius: Literal["inscribed", "area"] = "inscribed",
        tree: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = CenterlineSwc(radius, tree)


class CenterlineVtp(ArrayStep):
    """Write a centerline as polylines for ParaView, 3D Slicer and VMTK, in RAS+ mm."""

    def __call__(self, tree: Any) -> bytes:
        """Return the content of a ``.vtp`` file; see `medpipe.centerline.polydata`."""
        return vtp_bytes_of(read_tree(tree))


class CenterlineVtpd(DictStep):
    """Replace centerlines by polylines (.vtp, RAS+ mm) with VMTK's names of arrays.

    Parameters
    ----------
    keys : keys of centerlines, replaced by documents
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
        self.step = CenterlineVtp()


class CenterlineGraphml(ArrayStep):
    """Write a centerline as a GraphML graph, for Gephi, Cytoscape, igraph and networkx."""

    def __call__(self, tree: Any) -> bytes:
        """Return the content of a ``.graphml`` file."""
        return graphml_bytes(read_tree(tree))


class CenterlineGraphmld(DictStep):
    """Replace centerlines by GraphML files.

    Parameters
    ----------
    keys : keys of centerlines, replaced by documents
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "document"
    suffix = ".graphml"
    random = False

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = CenterlineGraphml()


CenterlineLabelsD = CenterlineLabelsDict = CenterlineLabelsd
CenterlineTableD = CenterlineTableDict = CenterlineTabled
CenterlineSwcD = CenterlineSwcDict = CenterlineSwcd
CenterlineVtpD = CenterlineVtpDict = CenterlineVtpd
CenterlineGraphmlD = CenterlineGraphmlDict = CenterlineGraphmld
