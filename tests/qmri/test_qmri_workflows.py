"""The workflows of quantitative MRI from the command line, on phantoms with known truth."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from medpipe.cli.main import invoke
from medpipe.phantoms.qmri import QmriPhantom, qmri_phantom
from medpipe.phantoms.qmri_folder import QmriCase, write_qmri_folder

Medpipe = Callable[..., "CompletedProcess[str]"]

TISSUES = (1, 2, 3)  # white and grey matter, fluid


@pytest.fixture(scope="module")
def phantom() -> QmriPhantom:
    return qmri_phantom(0, shape=(36, 40, 2), spacing_mm=(5.5, 5.5, 6.0))


@pytest.fixture(scope="module")
def cases(phantom: QmriPhantom, tmp_path_factory: pytest.TempPathFactory) -> dict[str, QmriCase]:
    made = write_qmri_folder(tmp_path_factory.mktemp("qmri") / "data", phantom)
    return {case.protocol: case for case in made}


def manifest(path: Path, rows: dict[str, dict[str, Path]]) -> Path:
    columns = ["case_id", *dict.fromkeys(name for row in rows.values() for name in row)]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows({"case_id": name, **row} for name, row in rows.items())
    return path


def whole(case: QmriCase, *, b1: bool = True) -> dict[str, Path]:
    more = {"b1": case.b1} if b1 else {}
    return {"images": case.images, "mask": case.mask, **more}


def voxels(path: Path) -> NDArray[np.float64]:
    return np.asarray(nib.load(path).get_fdata())


def record(out: Path, case: str = "c1") -> dict[str, Any]:
    return json.loads((out / "cases" / case / "case.json").read_text())


def check_maps(out: Path, phantom: QmriPhantom, times: dict[str, float]) -> None:
    """Compare maps with the truth in each tissue: `times` gives the greatest mean error."""
    folder = out / "cases" / "c1"
    quality = voxels(folder / "quality.nii.gz")
    fitted = quality > 0
    np.testing.assert_array_equal(fitted, phantom.brain > 0)
    assert (quality[fitted] == 1).mean() > 0.98
    for name, limit in times.items():
        truth = {"T1map": phantom.t1_s, "T2map": phantom.t2_s}[name]
        found, error = voxels(folder / f"{name}.nii.gz"), voxels(folder / f"{name}-error.nii.gz")
        assert (found[~fitted] == 0).all()
        for tissue in TISSUES:
            here = (phantom.tissue == tissue) & fitted
            assert here.sum() > 40
            assert abs(found[here].mean() / truth[here].mean() - 1) < limit
        z = (found - truth)[fitted] / error[fitted]
        assert 0.9 < np.clip(z, -6, 6).std() < 1.12
        sidecar = json.loads((folder / f"{name}.nii.gz.json").read_text())
        assert sidecar["Units"] == "s"
        assert "least squares" in sidecar["EstimationAlgorithm"]
        assert sidecar["EstimationReference"].startswith("https://doi.org/")
        assert "bids:inputs:c1/images" in sidecar["Sources"]
        picture = json.loads(
            (folder / f"qc-{name[:2].lower()}-{name[:2].lower()}.json").read_text()
        )
        assert (picture["unit"], picture["window"][0]) == ("ms", 0)
        low, high = np.percentile(found[fitted], [5, 99])
        assert picture["percentiles"]["p5"] == pytest.approx(low * 1000, rel=0.02)
        assert picture["window"][1] >= high * 990
    measured = record(out)["tables"]["relaxation"]
    assert list(measured) == ["all"]
    first = next(iter(times)).removesuffix("map").lower() + "_s"
    first_map = voxels(folder / f"{next(iter(times))}.nii.gz")
    assert measured["all"][f"{first}_median"] == pytest.approx(
        np.median(first_map[fitted]), rel=1e-5
    )
    assert (folder / "relaxation.csv").read_text().startswith("name,voxels,")


@pytest.mark.usefixtures("cases_here")
@pytest.mark.parametrize(
    ("workflow", "protocol", "times", "b1"),
    [
        ("qmri-t1-vfa", "vfa", {"T1map": 0.01}, True),
        ("qmri-t1-ir", "irt1", {"T1map": 0.02}, False),
        ("qmri-t2-mese", "mese", {"T2map": 0.01}, False),
        ("qmri-mp2rage", "mp2rage", {"T1map": 0.01}, True),
        ("qmri-t1t2", "spgr-dess", {"T1map": 0.01, "T2map": 0.01}, True),
    ],
)
def test_maps_of_a_phantom_are_its_truth(
    cases: dict[str, QmriCase],
    phantom: QmriPhantom,
    tmp_path: Path,
    workflow: str,
    protocol: str,
    times: dict[str, float],
    b1: bool,
) -> None:
    source = manifest(tmp_path / "cases.csv", {"c1": whole(cases[protocol], b1=b1)})
    more = []
    if workflow == "qmri-t1t2":
        more = ["--set", f"fit.protocol={cases[protocol].dataset / 'protocol.json'}"]
    assert invoke(["run", workflow, str(source), str(tmp_path / "out"), *more]) == 0
    check_maps(tmp_path / "out", phantom, times)


@pytest.mark.usefixtures("cases_here")
def test_a_folder_alone_is_enough(
    cases: dict[str, QmriCase], phantom: QmriPhantom, tmp_path: Path
) -> None:
    """No manifest, mask, B1 map or protocol file: settings and models from the folder."""
    out = tmp_path / "out"
    assert invoke(["run", "qmri-t1t2", str(cases["spgr-dess"].images), str(out)]) == 0
    (case,) = (out / "cases").iterdir()
    made = json.loads((case / "case.json").read_text())
    said = " ".join(f["message"] for f in made["findings"])
    assert "those with a signal" in said
    assert "flip angles taken as nominal" in said
    assert "SPGR 15°, SPGR 5°, DESS 30° echo 1, DESS 30° echo 2" in said
    head = phantom.tissue > 0
    fitted = voxels(case / "quality.nii.gz") > 0
    assert (fitted != head).mean() < 0.03
    # without the map T1 is off by the scaling of the angle, and T2 less
    white = (phantom.tissue == 1) & fitted
    t1 = voxels(case / "T1map.nii.gz")
    ratio = np.median(t1[white] / phantom.t1_s[white] / phantom.kappa[white] ** 2)
    assert ratio == pytest.approx(1, abs=0.03)


@pytest.mark.usefixtures("cases_here")
def test_signs_of_mp2rage_come_from_the_uniform_image(
    cases: dict[str, QmriCase], phantom: QmriPhantom, tmp_path: Path
) -> None:
    """Without phases the uniform image tells the sign; without either the case is refused."""
    rows = {}
    for name in ("c1", "bare"):
        folder = tmp_path / name
        shutil.copytree(cases["mp2rage"].images, folder)
        for path in folder.glob("*part-phase*"):
            path.unlink()
        rows[name] = {**whole(cases["mp2rage"]), "images": folder}
    for path in (tmp_path / "bare").glob("*UNIT1*"):
        path.unlink()
    source = manifest(tmp_path / "cases.csv", rows)
    assert invoke(["run", "qmri-mp2rage", str(source), str(tmp_path / "out")]) == 3
    check_maps(tmp_path / "out", phantom, {"T1map": 0.01})
    assert "alike for two T1" in record(tmp_path / "out", "bare")["error"]["message"]


def edit_sidecars(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    for path in sorted(folder.glob("*.json")):
        fields = json.loads(path.read_text())
        change(fields)
        path.write_text(json.dumps(fields))


def rewrite(path: Path, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
    image = nib.load(path)
    data = change(np.asarray(image.get_fdata(), np.float32))
    nib.save(nib.Nifti1Image(data, image.affine), path)


def drop_field(case: Path) -> None:
    (second,) = (case / "images").glob("*flip-2*.json")
    fields = json.loads(second.read_text())
    del fields["RepetitionTimeExcitation"]
    second.write_text(json.dumps(fields))


def milliseconds(case: Path) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["RepetitionTimeExcitation"] *= 1000

    edit_sidecars(case / "images", change)


def percent(case: Path) -> None:
    rewrite(case / "b1.nii.gz", lambda kappa: kappa * 100)


def other_grid(case: Path) -> None:
    rewrite(case / "mask.nii.gz", lambda mask: mask[1:])


def zeros(case: Path) -> None:
    for path in (case / "images").glob("*.nii.gz"):
        rewrite(path, lambda image: image * 0)


def axes_first(case: Path) -> None:
    """One 4-D file whose images lie along its first axis."""
    paths = sorted((case / "images").glob("*.nii.gz"))
    fields = [json.loads(Path(str(p).replace(".nii.gz", ".json")).read_text()) for p in paths]
    stack = np.stack([voxels(path) for path in paths]).astype(np.float32)
    shutil.rmtree(case / "images")
    (case / "images").mkdir()
    nib.save(nib.Nifti1Image(stack, np.eye(4)), case / "images" / "sub-01_VFA.nii.gz")
    joined = fields[0] | {"FlipAngle": [f["FlipAngle"] for f in fields]}
    (case / "images" / "sub-01_VFA.json").write_text(json.dumps(joined))


def not_numbers(case: Path) -> None:
    (first,) = (case / "images").glob("*flip-1*.nii.gz")

    def change(image: NDArray[np.float32]) -> NDArray[np.float32]:
        image[15:18, 18:22, 0] = np.nan
        return image

    rewrite(first, change)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "drop_field": (drop_field, "image 2: repetition_time_s is missing"),
    "milliseconds": (milliseconds, "repetition_time_s is not plausible"),
    "percent": (percent, "the map of kappa is no fraction"),
    "other_grid": (other_grid, "the mask is not on the grid of the image"),
    "zeros": (zeros, "the images hold nothing but zeros"),
    "not_numbers": (not_numbers, "image 1 of 3: 0.417 % of the voxels (12) are NaN or infinite"),
    "axes_first": (axes_first, "the field FlipAngle of the sidecar does not fit the image"),
}


@pytest.fixture(scope="module")
def batch(
    cases: dict[str, QmriCase], tmp_path_factory: pytest.TempPathFactory, medpipe_here: Medpipe
) -> tuple[int, Path]:
    """A batch in which most cases are broken, each in its own way."""
    root = tmp_path_factory.mktemp("batch")
    rows = {}
    changes = {name: change for name, (change, _) in BROKEN.items()}
    for name, change in {"good": lambda _: None, **changes}.items():
        folder = root / name
        shutil.copytree(cases["vfa"].images, folder / "images")
        shutil.copy(cases["vfa"].b1, folder / "b1.nii.gz")
        shutil.copy(cases["vfa"].mask, folder / "mask.nii.gz")
        change(folder)
        rows[name] = {
            "images": folder / "images",
            "b1": folder / "b1.nii.gz",
            "mask": folder / "mask.nii.gz",
        }
    source = manifest(root / "cases.csv", rows)
    done = medpipe_here("run", "qmri-t1-vfa", source, root / "out", folder=root)
    return done.returncode, root / "out"


def test_broken_cases_leave_the_others(batch: tuple[int, Path]) -> None:
    code, out = batch
    assert code == 3
    done = {p.parent.name: json.loads(p.read_text()) for p in out.glob("cases/*/case.json")}
    assert [name for name, one in done.items() if one["status"] == "done"] == ["good"]
    assert set(done) == {"good", *BROKEN}
    assert (out / "cases" / "good" / "T1map.nii.gz").exists()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_case_is_told_in_one_line(batch: tuple[int, Path], name: str) -> None:
    _, out = batch
    error = record(out, name)["error"]
    assert BROKEN[name][1] in error["message"]
    assert "\n" not in error["message"]
    assert str(out.parent) not in json.dumps(error)
    assert error["kind"] in ("input", "step", "usage")
    files = {p.name for p in (out / "cases" / name).iterdir()}
    assert files == {"case.json"}  # nothing is half-written


@pytest.mark.usefixtures("cases_here")
def test_the_count_of_the_protocol_is_that_of_the_images(
    cases: dict[str, QmriCase], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_ = json.loads((cases["spgr-dess"].dataset / "protocol.json").read_text())
    record_["acquisitions"][0]["flip_angle_deg"] = [15, 5, 2]
    (tmp_path / "three.json").write_text(json.dumps(record_))
    run = ["run", "qmri-t1t2", str(cases["spgr-dess"].images), str(tmp_path / "out"), "--set"]
    assert invoke([*run, f"fit.protocol={tmp_path / 'three.json'}"]) == 4
    said = "".join(capsys.readouterr())
    assert "the number of images does not fit the protocol; expected 5: SPGR 15°" in said
    record_["acquisitions"][0].update(flip_angle_deg=[15, 5], repetition_time_s=12.2)
    (tmp_path / "in_ms.json").write_text(json.dumps(record_))
    assert invoke([*run, f"fit.protocol={tmp_path / 'in_ms.json'}"]) == 2
    said = "".join(capsys.readouterr())
    assert "acquisition 1 (spgr): repetition_time_s is not plausible" in " ".join(said.split())
    assert invoke([*run, f"fit.protocol={tmp_path / 'none.json'}"]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert invoke([*run, "fit.estimator=best"]) == 2
    assert "fit.estimator" in capsys.readouterr().err


@pytest.mark.real_data
@pytest.mark.usefixtures("cases_here")
@pytest.mark.parametrize(
    ("workflow", "series", "spheres"),
    [
        # T1 below the shortest inversion time and T2 of 1.9 s are not in these images
        ("qmri-t1-ir", "T1/site3_ge/plate5", range(1, 13)),
        ("qmri-t2-mese", "T2/site3_ge/plate5", range(2, 14)),
    ],
)
def test_dicom_of_a_phantom_gives_the_stored_values(
    real_data: Path, tmp_path: Path, workflow: str, series: str, spheres: range
) -> None:
    root = real_data / "qmri" / "phantom_relaxometry"
    kind, name = series.split("/", 1)
    stored = json.loads((root / "reference_values.json").read_text())[kind][name]["values"]
    centres = json.loads((Path(__file__).parent / "phantom_spheres.json").read_text())["spheres"]
    out = tmp_path / "out"
    assert invoke(["run", workflow, str(root / series), str(out), "--case-id", "c1"]) == 0
    found = voxels(out / "cases" / "c1" / f"{kind}map.nii.gz")[..., 0]
    quality = voxels(out / "cases" / "c1" / "quality.nii.gz")[..., 0]
    for sphere in spheres:
        row, column = centres[series][sphere - 1]
        # columns of the image run to the patient's left, the first axis of the volume
        here = (slice(column - 2, column + 3), slice(row - 2, row + 3))
        median_ms = np.median(found[here][quality[here] > 0]) * 1000
        assert median_ms == pytest.approx(stored[sphere - 1], rel=0.02, abs=1.0), f"sphere {sphere}"
