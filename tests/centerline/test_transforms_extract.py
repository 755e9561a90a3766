"""The step that finds centerlines: parameters, inputs it refuses, what it passes on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medpipe.centerline.extract import ExtractionSettings, extract_centerline
from medpipe.centerline.transforms.extract import Centerline, Centerlined
from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import InputError, MedpipeError, StepError, UsageError
from medpipe.workflow.describe import describe_step

AFFINE = np.diag([0.8, 0.8, 0.8, 1.0])
AFFINE[:3, 3] = [-10.0, 4.0, 30.0]


def y_tube(shape=(40, 44, 30), radius: float = 3.2) -> torch.Tensor:
    """A trunk along j that parts in two."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1).astype(float)
    mask = np.zeros(shape, bool)
    for end, r in (((20, 4, 15), radius), ((8, 38, 15), radius - 1), ((32, 38, 15), radius - 1)):
        fork, tip = np.array([20.0, 20.0, 15.0]), np.array(end, float)
        way = tip - fork
        share = np.clip(((grid - fork) @ way) / (way @ way), 0, 1)
        mask |= np.linalg.norm(grid - fork - share[..., None] * way, axis=-1) <= r
    return torch.from_numpy(mask)


def image(data: torch.Tensor) -> MetaTensor:
    return MetaTensor(data[None] if data.ndim == 3 else data, affine=torch.from_numpy(AFFINE))


def world(*voxel: float) -> list[float]:
    return (AFFINE[:3, :3] @ voxel + AFFINE[:3, 3]).tolist()


@pytest.fixture(scope="module")
def mask() -> torch.Tensor:
    return y_tube()


def test_the_document_is_the_tree_of_the_function(mask: torch.Tensor) -> None:
    document = Centerline(root="posterior")(image(mask.float()))
    direct = extract_centerline(mask.to(torch.uint8), AFFINE, ExtractionSettings(root="posterior"))
    assert document == direct.to_json()
    tree = CenterlineTree.from_json(document)
    assert (len(tree.roots), len(tree.leaves), len(tree.branches)) == (1, 2, 3)
    assert tree.positions_mm[0, 1] == pytest.approx(world(20, 2, 15)[1], abs=2.0)


def test_the_dictionary_step_replaces_each_key_and_leaves_the_rest(mask: torch.Tensor) -> None:
    data = {"a": image(mask.float()), "b": image(mask.float()), "other": 5}
    out = Centerlined(["a", "b"], root="posterior")(data)
    assert out["a"] == out["b"] == Centerline(root="posterior")(data["a"])
    assert out["other"] == 5
    assert isinstance(data["a"], MetaTensor)


def test_every_parameter_reaches_the_extraction(mask: torch.Tensor) -> None:
    chosen = {
        "root": "widest", "ball_scale": 1.4, "ball_voxels": 2.5, "prune_radii": 1.1,
        "prune_voxels": 1.5, "loops": "keep", "smoothing_rounds": 7, "snap_mm": 3.0,
        "min_component_voxels": 9,
    }  # fmt: skip
    given = {"endpoint_points_mm": [world(8, 38, 15)], "endpoints": "given"}
    step = Centerlined("m", **chosen, **given).step
    for name, value in chosen.items():
        assert getattr(step.settings, name) == value
    assert step.settings.endpoint_points_mm == (tuple(world(8, 38, 15)),)
    tree = CenterlineTree.from_json(step(image(mask)))
    assert len(tree.leaves) == 1


def test_the_step_declares_a_document_and_defaults_of_the_settings() -> None:
    info = describe_step("centerline")
    assert (info.makes, info.suffix) == ("document", ".json")
    defaults = {p.name: p.default for p in info.parameters if not p.required}
    for name, value in vars(ExtractionSettings()).items():
        assert defaults[name] == (value if value != () else None), name


def test_labels_chooses_structures(mask: torch.Tensor) -> None:
    both = mask.to(torch.int64) * 3
    both[2:4, 2:40, 2:4] = 7
    every = CenterlineTree.from_json(Centerline()(image(both)))
    assert set(every.structures.tolist()) == {3, 7}
    one = CenterlineTree.from_json(Centerline(labels=[7])(image(both.float())))
    assert set(one.structures.tolist()) == {7}
    with pytest.raises(StepError, match=r"none of the labels; expected 5, got 3, 7"):
        Centerline(labels=[5])(image(both))


def test_the_ostium_is_where_the_root_is(mask: torch.Tensor) -> None:
    ostium = torch.zeros_like(mask)
    ostium[:, 40:, :] = True
    data = {"m": image(mask), "o": image(ostium.float())}
    tree = CenterlineTree.from_json(Centerlined("m", ostium="o")(data)["m"])
    assert len(tree.roots) == 2  # both small branches reach it
    # a case without the optional input goes on
    alone = CenterlineTree.from_json(Centerlined("m", ostium="o")({"m": data["m"]})["m"])
    assert len(alone.roots) == 1


def test_learned_maps_give_ends(mask: torch.Tensor) -> None:
    """Maps that support one end of two, and the root at a tip."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in mask.shape], indexing="ij"), -1)

    def blob(*at: float) -> torch.Tensor:
        return torch.from_numpy(np.exp(-((grid - np.array(at)) ** 2).sum(-1) / 18)).float()

    q = 1 - mask.float()
    maps = image(torch.stack([q, blob(8, 39, 15), blob(20, 2, 15)]))
    data = {"m": image(mask), "maps": maps}
    tree = CenterlineTree.from_json(Centerlined("m", maps="maps", endpoints="learned")(data)["m"])
    assert len(tree.leaves) == 1
    assert np.linalg.norm(tree.voxels[0] - [20, 2, 15]) < 4
    assert np.linalg.norm(tree.voxels[tree.leaves[0]] - [8, 39, 15]) < 4
    with pytest.raises(StepError, match="holds no learned maps; expected three channels"):
        Centerlined("m", maps="maps", endpoints="learned")({**data, "maps": image(q)})


BAD = {
    "empty": (torch.zeros(9, 9, 9), "the mask is empty"),
    "slice": (torch.ones(9, 9, 1), "two voxels or more along each axis, got shape (9, 9, 1)"),
    "probability": (torch.rand(9, 9, 9), "use threshold first"),
    "hounsfield": (torch.full((9, 9, 9), -1000.0), "got -1000 to -1000"),
    "nan": (torch.full((9, 9, 9), torch.nan), "NaN"),
    "full": (torch.ones(9, 9, 9), "check that the mask is not inverted"),
    "channels": (torch.zeros(2, 9, 9, 9), "the mask is not scalar"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_mask_is_refused_in_one_line(name: str) -> None:
    data, message = BAD[name]
    with pytest.raises(MedpipeError) as caught:
        Centerline()(image(data))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [b"{}", {"rows": []}])
def test_documents_and_tables_are_no_masks(value: object) -> None:
    with pytest.raises(StepError, match="the step needs an image"):
        Centerline()(value)


def test_a_point_outside_and_a_wrong_point(mask: torch.Tensor) -> None:
    with pytest.raises(StepError, match=r"endpoint 1 lies [\d.]+ mm outside the mask"):
        Centerline(endpoint_points_mm=[[500, 0, 0]])(image(mask))
    for points in ([[1, 2]], [3], [["a", 1, 2]]):
        with pytest.raises(UsageError, match="root_points_mm is wrong"):
            Centerline(root_points_mm=points)
    with pytest.raises(UsageError, match="labels is wrong"):
        Centerline(labels=[0])


def test_an_ostium_on_another_grid(mask: torch.Tensor) -> None:
    with pytest.raises(StepError, match="the ostium is not on the grid of the image"):
        Centerline()(image(mask), image(mask[:-1]))


def test_a_foreign_document_is_no_tree() -> None:
    with pytest.raises(InputError, match="the document is no centerline"):
        CenterlineTree.from_json(json.dumps({"graph": {}}).encode())
