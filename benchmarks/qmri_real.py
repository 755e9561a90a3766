"""Least squares on real images: voxel tables, a relaxation phantom, a whole head.

    python benchmarks/qmri_real.py FOLDER

FOLDER holds ``vfa_voxels``, ``phantom_relaxometry`` and ``vfa_ir_head``. Stored values of
the phantom were fitted by another program to means of 5 × 5 pixels; where in the spheres
it measured is known for two series only, so all series are measured at centres found by
fitting the layout of the plate to the images (tests/qmri/phantom_spheres.json).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from common import ROOT, versions, write_results

from medpipe.qmri.estimate import Estimate, Flag
from medpipe.qmri.hybrid import Hybrid
from medpipe.qmri.least_squares import NonlinearLeastSquares
from medpipe.qmri.perk import train_perk
from medpipe.qmri.protocol import Acquisition, Protocol
from medpipe.qmri.signals import MODELS, register_model
from medpipe.qmri.signals._model import Settings, Values, setting, value

TESTS = ROOT / "tests" / "qmri"
sys.path.insert(0, str(TESTS))

from phantom_images import means, phantom  # noqa: E402

SPHERES = TESTS / "phantom_spheres.json"
NMR_1_5_T = {
    "plate4": (
        "2376 2183 1870 1539 1237 1030 752.2 550.2 413.4 292.9 194.9 160.2 106.4 83.3",
        "939.4 594.3 416.5 267 184.9 140.6 91.76 64.84 45.28 30.62 19.76 15.99 10.47 8.15",
    ),
    "plate5": (
        "2033 1489 1012 730.8 514.1 367.9 260.1 184.6 132.7 92.7 65.4 46.32 32.45 22.859",
        "1669 1244 859.3 628.5 446.3 321.2 227.7 161.9 117.1 81.9 57.7 41 28.7 20.2",
    ),
}
"""T1 and T2 in ms of spheres 1 to 14 at 1.5 T and 20 °C as the maker of the phantom states
them, by spectrometer; the images are not corrected for temperature."""

TABLES = (
    ("t1_brain_data.csv", "R1", 1.0, 1.0, None),
    ("t1_quiba_data.csv", "R1", 1e3, 1.0, None),
    ("t1_prostate_data.csv", "T1 nonlinear", -1e3, 1e-3, None),
    ("t1_prostate_data.csv", "T1 nonlinear B1cor", -1e3, 1e-3, "B1"),
)
HEAD = {"flip_angle_deg": (2, 5, 12), "repetition_time_s": 0.0054}
ABOVE_AIR = 12


def one(model: str, settings: dict[str, Any]) -> Protocol:
    """Return the protocol of one acquisition."""
    return Protocol((Acquisition(model, settings),))


def milliseconds(found: Estimate, name: str) -> np.ndarray:
    """Return a map in ms."""
    return found.values[name].double().numpy() * 1e3


def voxel_tables(folder: Path) -> list[dict[str, Any]]:
    """Compare R1 with the tables, within 0.05 /s and 5 %."""
    out = []
    for file, column, factor, seconds, b1 in TABLES:
        with (folder / file).open(newline="") as stream:
            rows = [{k.strip(): v for k, v in r.items()} for r in csv.DictReader(stream)]
        angles, times = ([float(t) for t in rows[0][n].split()] for n in ("FA", "TR"))
        protocol = one(
            "spgr", {"flip_angle_deg": angles, "repetition_time_s": [t * seconds for t in times]}
        )
        signal = torch.tensor([[float(t) for t in r["s"].split()] for r in rows])
        known = {"kappa": torch.tensor([float(r[b1]) / 100 for r in rows])} if b1 else None
        found = NonlinearLeastSquares(protocol).estimate(signal, known)
        stored = np.array([float(r[column]) for r in rows])
        want = stored * factor if factor > 0 else -factor / stored
        part = np.abs(1e3 / milliseconds(found, "t1_s") - want) / (0.05 + 0.05 * want)
        row = {
            "table": file,
            "column": column,
            "voxels": len(rows),
            "within": int((part <= 1).sum()),
            "worst_part_of_tolerance": round(float(part.max()), 5),
        }
        print(row)
        out.append(row)
    return out


def stored_recovery(values: Values, settings: Settings) -> torch.Tensor:
    """Return the recovery that the stored values were fitted with: f in one place alone."""
    t1, f = (value(values, n) for n in ("t1_s", "inversion_efficiency"))
    ti, tr = (setting(settings, n, t1) for n in ("inversion_time_s", "repetition_time_s"))
    return 1 - (1 + f) * torch.exp(-ti / t1) + torch.exp(-tr / t1)


def compare(name: str, found: np.ndarray, want: np.ndarray, within: float) -> dict[str, Any]:
    """Return a row: values, and how many lie within a part of `want` or 1 ms."""
    off = found - want
    row = {
        "method": name,
        "ms": np.round(found, 1).tolist(),
        "within": int((np.abs(off) <= np.maximum(1, within * want)).sum()),
        "rms_percent": round(float(np.sqrt(np.mean((off / want) ** 2)) * 100), 2),
    }
    print(f"  {name:34s}" + " ".join(f"{v:7.1f}" for v in found), row["within"], row["rms_percent"])
    return row


def phantom_t1(folder: Path, stored: dict[str, Any]) -> list[dict[str, Any]]:
    """Fit every recovery series with the model of the package and that of the stored values."""
    model = dataclasses.replace(
        MODELS["inversion_recovery"], name="stored_recovery", signal=stored_recovery
    )
    register_model(model)
    out = []
    for series, centres in spheres("T1"):
        times, repetitions, images = phantom(folder / series, "T1")
        want = np.array(stored["T1"][series[3:]]["values"][:14])
        nmr = np.array(NMR_1_5_T[series[-6:]][0].split(), float)
        settings = {"inversion_time_s": times, "repetition_time_s": repetitions}
        print(series, "TR", repetitions)
        entry: dict[str, Any] = {"series": series, "stored_ms": want.tolist(), "fits": []}
        for name in ("inversion_recovery", "stored_recovery"):
            found = NonlinearLeastSquares(one(name, settings)).estimate(means(images, centres))
            row = compare(name, milliseconds(found, "t1_s"), want, 0.02)
            at_bound = (found.quality & int(Flag.AT_BOUND)) != 0
            row["at_bound"] = (at_bound.nonzero()[:, 0] + 1).tolist()
            entry["fits"].append(row)
        entry["stored_to_nmr"] = compare("stored, to NMR", want, nmr, 0.02)
        ours = np.array(entry["fits"][0]["ms"])
        entry["ours_to_nmr"] = compare("inversion_recovery, to NMR", ours, nmr, 0.02)
        out.append(entry)
    return out


def phantom_t2(folder: Path, stored: dict[str, Any]) -> list[dict[str, Any]]:
    """Fit every echo train by one exponential and by extended phase graphs with B1."""
    out = []
    for series, centres in spheres("T2"):
        times, _, images = phantom(folder / series, "T2")
        signal = means(images, centres)
        want = np.array(stored["T2"][series[3:]]["values"][:14])
        nmr = np.array(NMR_1_5_T[series[-6:]][1].split(), float)
        one_t2 = NonlinearLeastSquares(one("spin_echo", {"echo_time_s": times}))
        later = NonlinearLeastSquares(one("spin_echo", {"echo_time_s": times[1:]}))
        graphs = NonlinearLeastSquares(
            one("epg_spin_echo_b1", {"echo_time_s": times}), bounds={"kappa": (0.5, 1.0)}
        )
        fits = {
            "one exponential": milliseconds(one_t2.estimate(signal), "t2_s"),
            "one exponential, echoes 2 on": milliseconds(later.estimate(signal[:, 1:]), "t2_s"),
            "extended phase graphs with B1": milliseconds(graphs.estimate(signal), "t2_s"),
        }
        print(series, len(times), "echoes; to the stored values")
        to_stored = [compare(n, v, want, 0.01) for n, v in fits.items()]
        print(series, "to NMR, spheres above 45 ms")
        long = nmr > 45
        shown = {"stored": want, **fits}
        to_nmr = [compare(n, v[long], nmr[long], 0.05) for n, v in shown.items()]
        out.append({"series": series, "to_stored": to_stored, "to_nmr_above_45_ms": to_nmr})
    return out


def spheres(kind: str) -> list[tuple[str, list[list[int]]]]:
    """Return the series of one kind with the centres of their spheres."""
    found = json.loads(SPHERES.read_text())["spheres"]
    return [(s, c) for s, c in found.items() if s.startswith(kind)]


def whole_head(folder: Path) -> dict[str, Any]:
    """Map T1 of a head from three flip angles; every voxel above air."""
    images = [nib.load(folder / f"FA{a}.nii.gz").get_fdata() for a in (2, 5, 12)]
    stack = np.stack(images, -1)
    signal = torch.tensor(stack[stack[..., 1] > ABOVE_AIR], dtype=torch.float32)
    protocol = one("spgr", HEAD)
    began = time.process_time()
    perk = train_perk(protocol, None, 0.003, features=500)
    trained = time.process_time() - began
    out: dict[str, Any] = {"voxels": len(signal), "threads": torch.get_num_threads()}
    out["perk_training_cpu_s"] = round(trained, 2)
    maps = {}
    for name, estimator in (
        ("least_squares", NonlinearLeastSquares(protocol)),
        ("least_squares_float32", NonlinearLeastSquares(protocol, dtype=torch.float32)),
        ("perk", perk),
        ("hybrid", Hybrid(perk)),
    ):
        began, clock = time.process_time(), time.perf_counter()
        found = estimator.estimate(signal)
        used = time.process_time() - began
        maps[name] = found.values["t1_s"]
        out[name] = {
            "cpu_s": round(used, 2),
            "wall_s": round(time.perf_counter() - clock, 2),
            "cpu_us_per_voxel": round(used / len(signal) * 1e6, 2),
            "flags": {k: v for k, v in found.counts.items() if v},
            "t1_median_s": round(float(maps[name].nanmedian()), 4),
        }
        print(name, out[name])
    both = ((maps["hybrid"] - maps["least_squares"]) / maps["least_squares"]).abs()
    both = both[both.isfinite()]
    out["hybrid_to_least_squares_p999"] = float(both.kthvalue(int(0.999 * len(both))).values)
    return out


def main() -> None:
    """Run all comparisons and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    stored = json.loads((folder / "phantom_relaxometry" / "reference_values.json").read_text())
    record = {
        "versions": versions("torch", "numpy", "pydicom"),
        "voxel_tables": voxel_tables(folder / "vfa_voxels"),
        "phantom_t1": phantom_t1(folder / "phantom_relaxometry", stored),
        "phantom_t2": phantom_t2(folder / "phantom_relaxometry", stored),
        "whole_head": whole_head(folder / "vfa_ir_head"),
    }
    print(write_results("qmri_real", record))


if __name__ == "__main__":
    main()
