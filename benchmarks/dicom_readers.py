"""What MONAI, SimpleITK and medpipe make of the same DICOM folders.

    python benchmarks/dicom_readers.py [FOLDER ...] [--json OUT]

Every file's own tags say where each of its pixels lies, so a volume is judged
by content: each stored slice is looked up in the volume, and the distance
between where the volume's affine puts its first pixel and where the tags put
it is the error. `right` is below 0.1 mm with all slices there; anything else
that was returned is `wrong-warned` if Python or C++ (on stderr) warned of
anything it does not warn of for a faultless series, else `wrong-silent`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "bad_inputs"))
from dicom_inputs import (
    AXIAL,
    ball,
    line,
    ramp,
    tilted,
    write_enhanced,
    write_series,
)

LPS = np.array([-1.0, -1.0, 1.0])
ONE = {"series": "1.2.3.4", "study": "1.2.3"}
TOLERANCE_MM = 0.1
Image = tuple[np.ndarray, np.ndarray]


def read_monai(folder: Path) -> Image:
    """MONAI LoadImage with PydicomReader, as when itk is not installed."""
    from monai.transforms import LoadImage

    image = LoadImage(reader="PydicomReader", image_only=True)(str(folder))
    data, affine = image.numpy(), image.affine.numpy()
    return data, affine  # LoadImage converts to RAS+


def read_simpleitk(folder: Path) -> Image:
    """SimpleITK's ImageSeriesReader on the first series GDCM finds."""
    import SimpleITK as sitk  # noqa: N813 - its documentation's own name

    reader = sitk.ImageSeriesReader()
    series = reader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise RuntimeError("no series")
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    image = reader.Execute()
    data = sitk.GetArrayFromImage(image).T
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = direction * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return data, np.diag([*LPS, 1.0]) @ affine


def read_medpipe(folder: Path) -> Image:
    """medpipe with default options."""
    from medpipe.io.dicom_series import read_dicom_series

    volume = read_dicom_series(folder)
    return volume.data, volume.affine


READERS: dict[str, Callable[[Path], Image]] = {
    "MONAI LoadImage": read_monai,
    "SimpleITK": read_simpleitk,
    "medpipe": read_medpipe,
}


def planes(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(first pixel's RAS+ mm position, rescaled pixels (cols, rows)) of all planes, by the tags."""
    out = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with contextlib.suppress(Exception):
            ds = pydicom.dcmread(path)
            groups = ds.get("PerFrameFunctionalGroupsSequence") or [None]
            shared = ds.SharedFunctionalGroupsSequence[0] if groups[0] is not None else None
            pixels = ds.pixel_array.reshape(len(groups), ds.Rows, ds.Columns)
            for group, plane in zip(groups, pixels, strict=True):
                own, scale = ds, ds
                if group is not None:
                    own = group.PlanePositionSequence[0]
                    for holder in (group, shared):
                        if "PixelValueTransformationSequence" in holder:
                            scale = holder.PixelValueTransformationSequence[0]
                            break
                values = plane * float(scale.get("RescaleSlope", 1))
                values = values + float(scale.get("RescaleIntercept", 0))
                out.append((np.array(own.ImagePositionPatient, float) * LPS, values.T))
    return out


def judge(image: Image, truth: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Look each stored plane up in the volume by its pixels; measure where it was put."""
    data, affine = image
    if data.ndim != 3:
        return {"shape": list(data.shape), "error_mm": None, "lost": len(truth)}
    found, lost = [], 0
    slices = [data[..., k].astype(float) for k in range(data.shape[2])]
    for place, values in truth:
        fits = [
            k
            for k, s in enumerate(slices)
            if s.shape == values.shape and np.abs(s - values).max() <= 0.51
        ]
        if fits:
            starts = [affine[:3, 2] * k + affine[:3, 3] for k in fits]
            found.append(min(np.linalg.norm(start - place) for start in starts))
        else:
            lost += 1
    return {
        "shape": list(data.shape),
        "spacing_mm": np.linalg.norm(affine[:3, :3], axis=0).round(3).tolist(),
        "error_mm": round(float(max(found)), 3) if found else None,
        "lost": lost,
    }


@contextlib.contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """Collect what C++ code writes to file descriptor 2."""
    lines: list[str] = []
    with tempfile.TemporaryFile() as file:
        keep = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(keep, 2)
            os.close(keep)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


def run(
    reader: Callable[[Path], Image], folder: Path, expected: int, usual: set[str]
) -> dict[str, Any]:
    """Read one folder and name the outcome.

    `expected` is how many planes the right volume holds; 0 means that the only
    right answer is to refuse. `usual` collects what the reader says about a
    faultless series; only other texts count as a warning.
    """
    with warnings.catch_warnings(record=True) as caught, captured_stderr() as stderr:
        warnings.simplefilter("always")
        try:
            image = reader(folder)
        except Exception as error:
            return {"verdict": "refused", "by": type(error).__name__}
    said = {f"{w.category.__name__} {w.message}"[:60] for w in caught}
    said |= {line[:60] for line in stderr if "warning" in line.lower()}
    if folder.name == "uniform":
        usual |= said
    out = judge(image, planes(folder))
    error = out["error_mm"]
    count = out["shape"][2] if len(out["shape"]) == 3 else -1
    right = expected == count and error is not None and error <= TOLERANCE_MM
    told = bool(said - usual)
    out["verdict"] = "right" if right else "wrong-warned" if told else "wrong-silent"
    return out


def generated(root: Path) -> dict[str, tuple[Path, int]]:
    """Write the series of the table; value: folder and slices of the right volume."""
    cases: dict[str, int] = {}

    def case(name: str, expected: int) -> Path:
        cases[name] = expected
        return root / name

    write_series(case("uniform", 8), line(8), value=ball)
    origins = line(8)
    write_series(case("one slice missing", 0), origins[:3] + origins[4:], value=ball)
    copied = write_series(case("exact copy of a slice", 8), line(8), value=ball)
    (copied[0].parent / "copy.dcm").write_bytes(copied[3].read_bytes())
    folder = case("conflicting slice at one position", 0)
    write_series(folder, line(8), **ONE)
    more = {"value": lambda p: ramp(p) + 9, "name": lambda k: "x.dcm"}
    write_series(folder, line(8)[3:4], **more, **ONE)
    folder = case("two series in one folder", 0)
    write_series(folder, line(8), number=1)
    write_series(
        folder, line(5, start=(-9, -4, 40)), number=2, name=lambda k: f"b{k}.dcm", value=ball
    )
    folder = case("localizer mixed in (marked)", 8)
    write_series(folder, line(8), value=ball, **ONE)

    def mark(ds: pydicom.Dataset, k: int) -> None:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    sagittal = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    write_series(folder, [(0, 0, 0)], iop=sagittal, name=lambda k: "l.dcm", edit=mark, **ONE)

    def shuffle(ds: pydicom.Dataset, k: int) -> None:
        ds.InstanceNumber = [5, 1, 7, 3, 8, 2, 6, 4][k]

    write_series(case("InstanceNumber shuffled", 8), line(8), value=ball, edit=shuffle)
    uneven = [(-9, -4, z) for z in (0, 3, 6, 8, 11, 14)]
    write_series(case("variable step", 0), uneven, value=ball)
    write_series(case("gantry tilt 20°", 8), line(8), iop=tilted(20), value=ball)

    def no_position(ds: pydicom.Dataset, k: int) -> None:
        del ds.ImagePositionPatient

    write_series(case("no ImagePositionPatient", 0), line(8), value=ball, edit=no_position)

    def no_spacing(ds: pydicom.Dataset, k: int) -> None:
        ds.PixelSpacing = ["0", "0"]

    write_series(case("PixelSpacing 0", 0), line(8), value=ball, edit=no_spacing)
    cut = write_series(case("truncated slice", 0), line(8), value=ball)[3]
    cut.write_bytes(cut.read_bytes()[:-100])
    empty = write_series(case("zero-byte slice", 0), line(8), value=ball)[3]
    empty.write_bytes(b"")
    folder = case("two time points", 0)
    for t in (1, 2):
        more = {"value": lambda p, t=t: ramp(p) + 50 * t, "name": lambda k, t=t: f"{t}{k}.dcm"}
        write_series(folder, line(8), **more, **ONE)
    rescale = {"rescale": lambda k: (1.0, -1024.0 + 10 * k)}
    write_series(case("rescale differs per slice", 8), line(8), value=ball, **rescale)
    frames = [{"origin": o, "iop": AXIAL, "slope": 1.0} for o in line(8)]
    enhanced = [frames[k] for k in (4, 0, 6, 2, 7, 1, 5, 3)]
    write_enhanced(case("enhanced, frames out of order", 8) / "e.dcm", enhanced, value=ball)
    return {name: (root / name, expected) for name, expected in cases.items()}


REAL = {  # the right number of slices without any repair; 0: to be refused
    "head_ct_ge_tilt_dicom": 0,
    "failing_gantrytilting_001": 4,
    "failing_notavolume_001": 0,
    "failing_slicecount_001": 2,
    "failing_sliceincrement_001": 0,
    "failing_sliceincrement_002": 0,
    "failing_sliceorientation_001": 0,
    "generic_anatomical_001": 4,
    "generic_compressed_j2k_001": 4,
    "generic_compressed_jpeg_001": 4,
    "generic_compressed_jpegls_001": 4,
    "generic_compressed_rle_001": 4,
    "philips_enhanced_anatomical_001": 8,
    "hyperfine_anatomical_001": 8,
}


def text(result: dict[str, Any]) -> str:
    """One cell of the table."""
    if result["verdict"] == "refused":
        return "refused"
    error = "–" if result["error_mm"] is None else f"{result['error_mm']:.2f} mm"
    lost = f", {result['lost']} slices lost" if result["lost"] else ""
    count = result["shape"][2] if len(result["shape"]) == 3 else "×".join(map(str, result["shape"]))
    step = f", step {result['spacing_mm'][2]:g}" if "spacing_mm" in result else ""
    return f"{result['verdict']}: {count} slices{step}, error {error}{lost}"


def main() -> None:
    """Run all readers on all folders, print a Markdown table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="real folders, by known name")
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    usual: dict[str, set[str]] = {reader: set() for reader in READERS}
    with tempfile.TemporaryDirectory() as scratch:
        cases = generated(Path(scratch))
        for folder in args.folders:
            if folder.name in REAL:
                cases[f"real: {folder.name}"] = (folder, REAL[folder.name])
        print("| folder | right answer | " + " | ".join(READERS) + " |")
        print("|-|-|" + "-|" * len(READERS))
        for name, (folder, expected) in cases.items():
            row = {r: run(read, folder, expected, usual[r]) for r, read in READERS.items()}
            results[name] = {"right": expected or "refuse", "readers": row}
            wanted = f"{expected} slices" if expected else "refuse"
            print(f"| {name} | {wanted} | " + " | ".join(text(v) for v in row.values()) + " |")
    counts = {
        reader: {
            verdict: sum(r["readers"][reader]["verdict"] == verdict for r in results.values())
            for verdict in ("right", "refused", "wrong-warned", "wrong-silent")
        }
        for reader in READERS
    }
    record = {
        "machine": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {n: version(n) for n in ("monai", "SimpleITK", "pydicom", "medpipe")},
        "n": len(results),
        "counts": counts,
        "results": results,
    }
    print("\n" + json.dumps(counts))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
