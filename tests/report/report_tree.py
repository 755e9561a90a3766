# ruff: noqa: E501 - records read better in long lines
"""A made-up output folder, as a run would leave it."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

DIGEST = hashlib.sha256(b"workflow").hexdigest()
WORKFLOW = {"name": "head-ct-prepare", "version": "1", "digest": DIGEST}
STEPS = (
    ("load", "load_volume", {"missing_slices": "refuse"}),
    ("resample", "resample", {"spacing_mm": [1.0, 1.0, 1.0], "mode": "linear"}),
    ("head", "head_mask", {"threshold_hu": -300.0, "closing_mm": 5.0}),
    ("stats", "statistics", {"labels": "head"}),
)


@functools.cache
def pictures() -> tuple[tuple[bytes, str], ...]:
    """A few pictures of simulated heads with their numbers as JSON."""
    import torch
    from monai.data import MetaTensor

    from medpipe.figures.qc import render

    out = []
    # Small pictures: these tests are about the pages.
    small = mock.patch.multiple("medpipe.figures.layout", STRIP_MAX=110, ROW_MAX=60)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        shape = (44, 52, 40)
        g = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
        radius = np.sqrt((g[0] / 0.7) ** 2 + (g[1] / 0.85) ** 2 + (g[2] / 0.8) ** 2)
        data = np.where(radius < 1, 38 + 6 * rng.standard_normal(shape), -1000)
        data[(radius > 0.92) & (radius < 1)] = 900
        data[(np.abs(g[0] - 0.15) < 0.08) & (np.abs(g[1]) < 0.25) & (np.abs(g[2]) < 0.2)] = 8
        affine = np.diag([-4.0, -4.0, 4.0, 1.0])
        affine[:3, 3] = [86, 102, -78]
        image = MetaTensor(
            torch.as_tensor(data, dtype=torch.float32)[None], affine=torch.as_tensor(affine)
        )
        mask = MetaTensor(torch.as_tensor(radius < 1).float()[None], affine=torch.as_tensor(affine))
        overlay, options = (mask if seed == 2 else None), {"labels": {"1": "head"}, "slices": 4}
        with small:
            figure = render("mosaic", image, overlay=overlay, options=options)
        out.append((figure.png, json.dumps(figure.data)))
    return tuple(out)


def step_records(n: int, reused: bool = False, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "id": name, "use": use, "version": "1", "params": params,
            "key": hashlib.sha256(name.encode()).hexdigest(),
            "status": "reused" if reused else "computed",
            "seconds": 0.002 if reused else float(rng.gamma(4, 0.3) * (1 + 2 * (name == "resample"))),
            "out": ["ct"], "object": True,
        }
        for name, use, params in STEPS[:n]
    ]  # fmt: skip


def case_record(case_id: str, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A complete record of a case that is done."""
    rng = np.random.default_rng(seed)
    steps = step_records(4, seed=seed, reused=seed % 7 == 3)
    volume = float(rng.normal(1450, 110) + (900 if seed % 41 == 5 else 0))
    return {
        "schema": 1, "case_id": case_id, "workflow": dict(WORKFLOW), "status": "done",
        "run_id": "20260101-000000-abcd", "seconds": sum(s["seconds"] for s in steps) + 0.1,
        "peak_rss_bytes": int(rng.normal(1.6e9, 1e8)), "peak_gpu_bytes": None, "device": "cpu",
        "attempts": 1, "seed": 0,
        "inputs": {"ct": {"kind": "dicom", "digest": hashlib.sha256(case_id.encode("utf-8", "replace")).hexdigest(),
                          "files": 28, "bytes": 14_900_000}},
        "steps": steps,
        "outputs": [{"step": "resample", "file": "ct.nii.gz", "object": "a" * 64, "sha256": "b" * 64,
                     "bytes": 9_000_000, "makes": "volume"}],
        "qc": [{"step": "resample", "object": "c" * 64, "png": "qc-resample-ct.png",
                "json": "qc-resample-ct.json"}],
        "findings": [
            {"check": "dicom.gantry_tilt", "severity": "info", "message": f"gantry tilt of {rng.normal(15, 2):.1f}°",
             "fix": None, "fixed": False},
            *([{"check": "dicom.step", "severity": "warning", "fix": "variable_step=resample", "fixed": True,
                "message": "slice steps of 4.22 and 7.38 mm"}] if seed % 5 == 0 else []),
        ],
        "tables": {"stats": {"head": {"volume_ml": volume, "mean_hu": float(rng.normal(36, 3)), "voxels": int(volume * 1000)}}},
        "error": None,
    } | changes  # fmt: skip


def failed_record(case_id: str, kind: str = "input", **changes: Any) -> dict[str, Any]:
    """A record of a case that failed."""
    errors = {
        "input": {
            "kind": "input", "type": "InputError", "step": "load", "what": "slices are missing from the series",
            "where": "step load · ct", "expected": "one slice every 5 mm",
            "got": "a gap of 10 mm after slice 14 at z = 62.5 mm",
            "hint": "--set load.missing_slices=interpolate, or export the series again",
            "message": "…", "frames": ["dicom_series.py:214 assemble", "transforms.py:88 __call__"],
        },
        "died": {
            "kind": "died", "type": "WorkerDied", "step": "resample", "what": "the process of this case was killed",
            "where": "step resample", "expected": None, "got": "SIGKILL", "signal": "SIGKILL",
            "hint": "give it more memory: --memory-gb 24", "message": "…", "frames": [],
        },
    }  # fmt: skip
    return case_record(case_id) | {
        "status": "failed", "error": errors[kind], "steps": step_records(1), "outputs": [], "qc": [],
        "tables": {}, "findings": [], "seconds": 3.2, "attempts": 2 if kind == "died" else 1,
    } | changes  # fmt: skip


def write_case(
    out: Path, record: dict[str, Any], picture: int | None = 0, folder: str | None = None
) -> Path:
    """Write a case folder with its record, a result and a picture."""
    place = out / "cases" / (folder or record["case_id"])
    place.mkdir(parents=True)
    (place / "case.json").write_text(json.dumps(record))
    for output in record["outputs"]:
        (place / output["file"]).write_bytes(b"volume")
    if picture is not None:
        png, numbers = pictures()[picture % len(pictures())]
        for entry in record["qc"]:
            (place / entry["png"]).write_bytes(png)
            (place / entry["json"]).write_text(numbers)
    return place


def write_run(out: Path, status: str = "done") -> None:
    """Write the record of a run."""
    place = out / "runs" / "20260101-000000-abcd"
    place.mkdir(parents=True)
    record = {
        "schema": 1, "run_id": place.name, "status": status, "workflow": WORKFLOW,
        "compiled": {
            "summary": "Head CT on a 1 mm grid with a head mask",
            "description": "The series is assembled and checked.\n\nThe tilt of the gantry is corrected.",
            "steps": [],
        },
        "environment": {"python": "3.11.9", "system": "Linux x86_64",
                        "packages": {"medpipe": "0.1.0", "torch": "2.13.0", "monai": "1.6.1", "numpy": "2.4.0"}},
    }  # fmt: skip
    (place / "run.json").write_text(json.dumps(record))


def make_tree(out: Path, n: int = 12, n_failed: int = 2) -> Path:
    """Make an output folder of `n` cases of which `n_failed` failed."""
    write_run(out)
    for i in range(n):
        case_id = f"sub-{i + 1:03d}"
        if i % 9 == 4 and n_failed:
            n_failed -= 1
            write_case(out, failed_record(case_id, ("input", "died")[n_failed % 2]), None)
        else:
            write_case(out, case_record(case_id, seed=i), picture=i)
    return out
