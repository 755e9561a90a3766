"""Inputs that no cut can use: each is refused in one line that names what is wrong.

Through the functions, and through the command line where a step takes the same.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.cli.main import invoke
from medpipe.errors import MedpipeError, StepError, UsageError
from medpipe.graphcut.convex import ConvexPrior
from medpipe.graphcut.incremental import IncrementalCut
from medpipe.graphcut.layers import Layer, boykov_jolly, multi_object_cut
from medpipe.graphcut.organs import shape_prior_cut
from medpipe.graphcut.problem import INFINITE, ArcFamily, CutProblem, cut_value, quantise
from medpipe.graphcut.shape_prior import prior_arcs
from medpipe.graphcut.solve import min_cut
from medpipe.graphcut.surface_session import SurfaceSession
from medpipe.graphcut.surfaces import Separation, SurfaceProblem, optimal_surfaces
from medpipe.graphcut.transforms.height_map import read_heights
from medpipe.graphcut.vector_field import gradient_vector_flow
from medpipe.graphcut.vessel_wall import VesselWallParameters, vessel_wall

NAN, INF = math.nan, math.inf
NONE = torch.zeros(3, 3, dtype=torch.int32)
HARD = torch.full((3, 3), INFINITE)
IMAGE = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0))
INSIDE = torch.zeros(8, 8, 8, dtype=torch.bool)
INSIDE[3:5, 3:5, 3:5] = True
OUTSIDE = torch.zeros_like(INSIDE)
OUTSIDE[0] = True
ROUGH = INSIDE.to(torch.int64)
FRAMES = torch.rand(1, 64, 64, 2, generator=torch.Generator().manual_seed(1))
FRAME_GRID = np.diag([0.1, 0.1, 0.5, 1.0])


def at_one(values: torch.Tensor, value: float) -> torch.Tensor:
    out = values.clone()
    out[(1,) * out.ndim] = value
    return out


def cut(source=NONE, sink=NONE, arc=(1, 0), capacity=3):
    return min_cut(CutProblem(source, sink, [ArcFamily(arc, capacity)]))


def change(source, sink=NONE):
    IncrementalCut(CutProblem(NONE, NONE, [])).change(source, sink)


def surfaces(value=0.0, positions=None, prior=None, gap=None, step=None):
    costs = at_one(torch.zeros(2, 3, 3, 8, dtype=torch.float64), value)
    positions = torch.arange(8.0) if positions is None else torch.tensor(positions)
    prior, gap = prior or ConvexPrior("linear", 1.0), gap or Separation()
    return optimal_surfaces(SurfaceProblem(costs, positions, prior, gap), step=step)


def session() -> SurfaceSession:
    prior = ConvexPrior("linear", 1.0, max_jump_mm=1.0)
    return SurfaceSession(SurfaceProblem(torch.zeros(1, 3, 3, 8), torch.arange(8.0), prior))


def pins_that_conflict():
    edited = session()
    edited.pin(0, (0, 0), 0.0, 0.1)
    edited.pin(0, (0, 1), 7.0, 0.1)
    edited.solve()


def seeded(image=IMAGE, spacing=(1, 1, 1), inside=INSIDE, outside=OUTSIDE, **more):
    return boykov_jolly(image, spacing, inside, outside, components=1, **more)


def organs(rough=ROUGH, image=IMAGE, **more):
    return shape_prior_cut(image, rough, (1, 1, 1), **more)


def wall(frames=FRAMES, grid=FRAME_GRID, **more):
    parameters = VesselWallParameters(**({"angles": 16, "node_mm": 0.1} | more))
    return vessel_wall(frames, grid, parameters=parameters)


REFUSED = {
    # capacities
    "NaN": (lambda: cut(at_one(NONE.float(), NAN)), "the source capacities are not integers"),
    "negative": (lambda: cut(at_one(NONE, -1)), "source capacities are out of range.* got -1 to 0"),
    "negative arc": (lambda: cut(capacity=-1), r"offset \(1, 0\) are out of range.* got -1"),
    "fraction": (lambda: cut(capacity=2.5), "are not integers; expected a tensor .* got float"),
    "array": (lambda: cut(NONE.numpy()), "no tensor; expected a tensor of integers, got ndarray"),
    "too large": (lambda: cut(HARD + 1), "out of range; expected .* got 1073741825"),
    "no nodes": (lambda: cut(NONE[:0], NONE[:0]), r"the lattice is empty; got shape \(0, 3\)"),
    "offset": (lambda: cut(arc=(1.5, 0)), r"unusable offset; expected 2 integers.* got \(1.5, 0\)"),
    "contradiction": (lambda: cut(HARD, HARD), "no cut satisfies the hard constraints"),
    "change": (lambda: change(NONE[0]), r"does not fit the problem; expected \(3, 3\), got \(3,\)"),
    "change below 0": (lambda: change(NONE - 1), "out of range; expected 0 to"),
    "sides": (
        lambda: cut_value(CutProblem(NONE, NONE, []), torch.ones(2, dtype=torch.bool)),
        r"source side does not fit the problem; expected \(3, 3\), got \(2,\)",
    ),
    "step": (lambda: quantise(torch.ones(3), INF), "step is not positive and finite.* got inf"),
    # surfaces
    "NaN cost": (lambda: surfaces(NAN), r"surface 1 · column \(1, 1\) · node 1: the costs hold"),
    "equal nodes": (
        lambda: surfaces(positions=[0.0, 1, 2, 2, 4, 5, 6, 7]),
        r"node 3: the positions of a column do not increase; expected more than 2 mm, got 2 mm",
    ),
    "reversed nodes": (
        lambda: surfaces(positions=[7.0, 6, 5, 4, 3, 2, 1, 0]),
        "positions of a column do not increase; expected more than 7 mm, got 6 mm",
    ),
    "NaN node": (lambda: surfaces(positions=[NAN] * 8), "positions_mm hold NaN or infinite"),
    "short column": (
        lambda: surfaces(gap=Separation(9.0)),
        r"column \(0, 0\): the column is shorter than .* expected 9 mm or more, got 7 mm",
    ),
    "min above max": (
        lambda: surfaces(gap=Separation(3.0, 1.0)),
        "separation of surfaces 0 and 1 contradict .* at least 3 mm and at most 1 mm",
    ),
    "infinite min": (
        lambda: surfaces(gap=Separation(INF)),
        "separation of surfaces 0 and 1 has a limit that no position keeps; expected .* got inf",
    ),
    "NaN min": (lambda: surfaces(gap=Separation(NAN)), "surfaces 0 and 1 has a limit that is NaN"),
    "steps too small": (
        lambda: surfaces(1.0, step=1e-300),
        "costs are too large for exact integers; expected a quantisation step of .* got 1e-300",
    ),
    "jump": (
        lambda: surfaces(prior=ConvexPrior("linear", 1.0, max_jump_mm=-1.0)),
        "max_jump_mm of a prior is wrong; expected 0 or more, got -1",
    ),
    "pin at NaN": (lambda: session().pin(0, (0, 0), NAN, 1.0), "the pin is wrong; expected a fin"),
    "pin within NaN": (lambda: session().pin(0, (0, 0), 1.0, NAN), "got 1 mm within nan mm"),
    "pins": (pins_that_conflict, r"no position to surface 0; got at least 6 mm by .* and a pin"),
    "attract": (
        lambda: session().attract(0, (0, 0), 3.0, strength=NAN),
        r"surface 0 · column \(0, 0\): the point is wrong; .* got 3 mm and nan",
    ),
    # one object from seeds
    "no object": (lambda: seeded(inside=INSIDE & False), "there are no object seeds; expected"),
    "no background": (lambda: seeded(outside=INSIDE & False), "there are no background seeds"),
    "both": (lambda: seeded(outside=INSIDE), "seeds of layer object contradict .* got 8 voxels"),
    "other grid": (
        lambda: seeded(inside=INSIDE[:4]),
        r"object seeds are on another grid; expected shape \(8, 8, 8\), got shape \(4, 8, 8\)",
    ),
    "NaN voxel": (lambda: seeded(at_one(IMAGE, NAN)), "not finite; got 1 voxels"),
    "spacing": (lambda: seeded(spacing=(1, 1, 0)), "spacing_mm is wrong; expected three positive"),
    "weight": (lambda: seeded(weight=NAN), "weight is wrong; expected 0 or more, got nan"),
    "NaN in a layer": (
        lambda: multi_object_cut([Layer("a", at_one(IMAGE, NAN))]),
        "layer a: the data cost holds NaN; got 1 voxels",
    ),
    # organs
    "no outline": (lambda: organs(ROUGH * 0), "the rough outlines are empty; expected labels of 1"),
    "full outline": (lambda: organs(ROUGH * 0 + 1), "label 1 leaves no background to learn from"),
    "outlines elsewhere": (lambda: organs(ROUGH[:4]), r"not on the grid.* got shape \(4, 8, 8\)"),
    "negative outlines": (lambda: organs(ROUGH - 5), "unusable labels; expected 1 to 255, got -5"),
    "fractions": (lambda: organs(ROUGH * 1.5), "the rough outlines are no labels; expected whole"),
    "distance": (lambda: organs(distance_mm=NAN), "distance_mm is wrong; expected .* got nan"),
    "outside": (lambda: organs(outside_mm=-3.0), "outside_mm is wrong; expected .* got -3"),
    "endless": (lambda: organs(outside_mm=INF), "outside_mm is wrong; expected finite.* got inf"),
    "core": (
        lambda: prior_arcs(torch.rand(3, 4, 4, 4), (1, 1, 1), max_core_voxels=0),
        "max_core_voxels is wrong; expected 1 or more, or None, got 0",
    ),
    "flat field": (lambda: gradient_vector_flow(IMAGE * 0, (1, 1, 1)), "constant, so it has no"),
    # vessels
    "empty frames": (lambda: wall(FRAMES * 0), "NaN or nothing at all; .* got 0 of 8192 not fin"),
    "NaN frames": (lambda: wall(FRAMES * NAN), "got 8192 of 8192 not finite"),
    "small frames": (
        lambda: wall(FRAMES[:, :8, :8]),
        "rays are too short for a vessel wall; expected 0.9 mm or more .* got 0.35 mm",
    ),
    "wide wall": (lambda: wall(max_wall_mm=1.0, min_wall_mm=2.0), "min_wall_mm .* got 2"),
    "NaN wall": (lambda: wall(min_wall_mm=NAN), "min_wall_mm is out of range; .* got nan"),
    "nodes": (lambda: wall(node_mm=INF), "node_mm is out of range; expected above 0, got inf"),
    "rounds": (lambda: wall(rounds=1.5), "angles or rounds is out of range.* got 16 and 1.5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_input_is_refused_in_one_line_that_names_it(name):
    call, says = REFUSED[name]
    with pytest.raises(MedpipeError, match=says) as error:
        call()
    assert isinstance(error.value, StepError | UsageError)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 300


def test_a_vessel_may_have_no_largest_wall():
    assert VesselWallParameters(max_wall_mm=INF, slope=INF, frame_slope=INF).max_wall_mm == INF


def test_what_an_image_says_of_itself_is_not_repeated():
    said = {"source": {"surfaces": {"axis": "DOE^JANE"}}}
    image = MetaTensor(torch.zeros(1, 2, 2, 1), affine=torch.eye(4), meta={"medpipe": said})
    with pytest.raises(UsageError, match="axis is wrong; expected 0, 1 or 2, got str") as error:
        read_heights(image)
    assert "DOE" not in str(error.value)


# --- the command line ------------------------------------------------------------------

HEAD = """
name = "bad-inputs"
version = "1"
summary = "One cut"
[inputs.image]
kind = "volume"
[[step]]
id = "load"
use = "load_volume"
in = "image"
out = "picture"
"""

SEEDED = (
    HEAD
    + """
[inputs.seeds]
kind = "volume"
[[step]]
id = "load_seeds"
use = "load_volume"
in = "seeds"
out = "marks"
[[step]]
id = "cut"
use = "graph_cut"
in = "picture"
out = "object"
with = { seeds = "marks", components = 1 }
save = { file = "object.nii.gz", dtype = "uint8" }
"""
)

SURFACES = (
    HEAD
    + """
[[step]]
id = "find"
use = "optimal_surfaces"
in = "picture"
out = "surfaces"
with = { edges = ["dark_to_bright", "bright_to_dark"], min_separation_mm = 6.0 }
save = { file = "surfaces.nii.gz", dtype = "float32" }
"""
)


def ball() -> tuple[np.ndarray, np.ndarray]:
    """Return an image of a ball and its seeds."""
    radius = np.sqrt(((np.indices((16, 16, 16)) - 7.5) ** 2).sum(0))
    noise = np.random.default_rng(0).normal(size=radius.shape)
    image = (100 * (radius < 5) + 10 * noise).astype(np.float32)
    return image, ((radius < 2) + 2 * (radius > 7)).astype(np.uint8)


def write(path: Path, values: np.ndarray, shift_mm: float = 0.0) -> str:
    affine = np.eye(4)
    affine[0, 3] = shift_mm
    nib.save(nib.Nifti1Image(values, affine), path)
    return path.name


def run(folder: Path, workflow: str, rows: dict[str, tuple[str, ...]], capsys, *options: str):
    """Run cases; return the exit code and what was printed as JSON."""
    (folder / "w.toml").write_text(workflow)
    names = ("image", "seeds")[: len(next(iter(rows.values())))]
    lines = [",".join(("case_id", *names)), *(",".join((k, *v)) for k, v in rows.items())]
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    files = [str(folder / name) for name in ("w.toml", "cases.csv", "out")]
    capsys.readouterr()
    code = invoke(["run", *files, "--workers", "1", "--no-report", "--json", *options])
    return code, capsys.readouterr().out


def failures(text: str) -> dict[str, str]:
    """Return case → message, each in one line."""
    found = {f["case_id"]: f["message"] for f in json.loads(text)["failed"]}
    assert all(len(message.splitlines()) == 1 for message in found.values())
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("cases_here")
def test_bad_seeds_fail_their_own_cases_only(tmp_path: Path, capsys):
    image, seeds = ball()
    im = write(tmp_path / "im.nii.gz", image)
    rows = {
        "good": (im, write(tmp_path / "seeds.nii.gz", seeds)),
        "small": (im, write(tmp_path / "small.nii.gz", seeds[:8])),
        "moved": (im, write(tmp_path / "moved.nii.gz", seeds, 5.0)),
        "empty": (im, write(tmp_path / "empty.nii.gz", seeds * 0)),
        "one": (im, write(tmp_path / "one.nii.gz", seeds % 2)),
        "half": (im, write(tmp_path / "half.nii.gz", seeds * np.float32(0.5))),
        "nan": (write(tmp_path / "nan.nii.gz", at_nan(image)), "seeds.nii.gz"),
    }
    code, text = run(tmp_path, SEEDED, rows, capsys)
    assert code == 3
    said = failures(text)
    assert set(said) == set(rows) - {"good"}
    assert "expected shape (16, 16, 16), got shape (8, 16, 16)" in said["small"]
    assert "got the same shape at another place" in said["moved"]
    assert "there are no object seeds" in said["empty"]
    assert "there are no background seeds" in said["one"]
    assert "the seeds are no labels" in said["half"]
    assert "NaN or infinite" in said["nan"]
    assert (tmp_path / "out" / "cases" / "good" / "object.nii.gz").exists()
    for option in ("cut.weight=nan", "cut.neighbours=7"):
        code, _ = run(tmp_path, SEEDED, rows, capsys, "--set", option)
        assert code == 2


def at_nan(image: np.ndarray) -> np.ndarray:
    out = image.copy()
    out[3, 3, 3] = np.nan
    return out


@pytest.mark.slow
@pytest.mark.usefixtures("cases_here")
def test_short_columns_fail_their_own_case_only(tmp_path: Path, capsys):
    image, _ = ball()
    rows = {
        "good": (write(tmp_path / "long.nii.gz", image),),
        "short": (write(tmp_path / "short.nii.gz", image[..., :6]),),
    }
    code, text = run(tmp_path, SURFACES, rows, capsys)
    said = failures(text)
    assert (code, set(said)) == (3, {"short"})
    assert "step find" in said["short"]
    assert "the column is shorter than the separations of surfaces 0 to 1 need" in said["short"]
    assert "expected 6 mm or more, got 4" in said["short"]
    assert (tmp_path / "out" / "cases" / "good" / "surfaces.nii.gz").exists()
