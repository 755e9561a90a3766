"""A simulated cohort of the published size, from images to an evaluated model, and controls.

    python benchmarks/outcome_cohort.py WORK [--patients 219] [--workers 2] [--device auto]

In the folder WORK: 219 simulated patients of subarachnoid haemorrhage, of whom 63 die (28.8 %;
the best classifier that there can be reaches an AUC of 0.90), `medpipe outcome-train` with nested
folds, the same training with shuffled outcomes, and three leaks that have to be refused. A
run that was interrupted goes on. Writes results/outcome_cohort.json and the report of the
study, results/outcome_cohort.html. All patients are simulated: no figure is about people.
Settings were chosen on the cohort of another seed (``--tune``: three folds, not nested).
``--control`` runs the shuffled training alone, beside the other where there are cores.
``--pin`` puts the model of the study into the package, with its card and digest.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, package_model, versions, write_results

from medpipe.cli.outcome import PREPARED, outcome_train
from medpipe.errors import UsageError
from medpipe.outcome.bundle import pack_bundle, read_bundle
from medpipe.outcome.cohort import read_cohort
from medpipe.outcome.folds import read_folds
from medpipe.outcome.leaks import check_leaks, volume_digest
from medpipe.phantoms.sah import SahScan
from medpipe.phantoms.sah_folder import SahCohort, write_sah_cohort

NAME, OUTCOME = "sah-mortality-demo", "death within 90 days"
TRAINING: dict[str, Any] = {
    "grid": "compact", "spacing_mm": 4.0, "size_voxels": (44, 52, 44), "architecture": "local",
    "iterations": 400, "batch_size": 8, "learning_rate": 2e-2, "weight_decay": 0.05,
    "mirrored": True, "nested": True, "validation_share": 0.0,
    "covariates": ["age_years", "sex", "wfns"],
}  # fmt: skip
SHOWN = (
    "auroc", "average_precision", "brier", "scaled_brier", "calibration_slope",
    "calibration_intercept", "accuracy", "f1_event", "sensitivity", "specificity",
)  # fmt: skip


def simulated(folder: Path, patients: int, seed: int, workers: int) -> Path:
    """Return the table of a cohort, written where it is not there yet."""
    if not (folder / "truth.json").is_file():
        scan = SahScan((3.2, 3.2, 3.2))
        cohort = SahCohort(patients, seed, scan=scan, sites=3, deaths=round(0.288 * patients))
        write_sah_cohort(folder, cohort, workers=workers)
    return folder / "cases.csv"


def changed(table: Path, out: Path, change: Any) -> Path:
    """Write a table whose rows are changed, images where they were; return it."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["image"] = str((table.parent / row["image"]).resolve())
    rows = change(rows)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out


def shuffled(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Give every patient the outcome of another."""
    order = np.random.default_rng(1).permutation(len(rows))
    names = ("outcome", "time_days", "event")
    taken = [{name: rows[i][name] for name in names} for i in order]
    return [row | other for row, other in zip(rows, taken, strict=True)]


def train(table: Path, out: Path, prepared: Path | None, args: Any, **more: Any) -> dict[str, Any]:
    """Run `medpipe outcome-train`; return its evaluation and seconds."""
    if prepared is not None and not (out / "prepared").exists():
        shutil.copytree(prepared, out / "prepared")  # the same images: none is prepared again
    began = time.perf_counter()
    code = outcome_train(
        table, out, name=NAME, outcome_name=OUTCOME, simulated=True, demonstration=True,
        workers=args.workers, device=args.device, quiet=args.quiet, **TRAINING | more,
    )  # fmt: skip
    assert code == 0, "a case was lost"
    took = time.perf_counter() - began
    return json.loads((out / "evaluation.json").read_text()) | {"seconds": round(took)}


def leaks(table: Path, prepared: Path, folds: Path) -> dict[str, str]:
    """Plant leaks; return what is said of each."""
    cohort = read_cohort(table)
    split = read_folds(folds, cohort)
    digests = {
        case: volume_digest(prepared / "cases" / case / PREPARED) for case in cohort.case_ids
    }
    first, second = (cohort.case_ids[part[0]] for part in split.test[:2])
    people = dict(zip(cohort.case_ids, cohort.patients, strict=True))
    of_one = changed(
        table,
        table.with_name("one_patient.csv"),
        lambda rows: [
            row | {"patient_id": people[first], "outcome": rows[0]["outcome"]}
            if row["case_id"] in (first, second)
            else row
            for row in rows
        ],
    )
    planted: dict[str, Any] = {
        "one patient in two folds": lambda: check_leaks(read_cohort(of_one), split),
        "one study in two folds": lambda: check_leaks(
            cohort, split, study_digests={first: "a", second: "a"}
        ),
        "the same voxels in two folds": lambda: check_leaks(
            cohort, split, pixel_digests=digests | {second: digests[first]}
        ),
    }
    check_leaks(cohort, split, pixel_digests=digests)  # nothing is said where nothing leaks
    said = {}
    for name, plant in planted.items():
        try:
            plant()
        except UsageError as error:
            said[name] = str(error)
        else:
            raise AssertionError(f"{name}: not caught")
    return said


CARD = """# Demonstration: death within 90 days of a subarachnoid haemorrhage

**A demonstration trained on simulated patients. Not for clinical use: what it says of a real
patient means nothing.** It is there so that `medpipe run outcome-predict` runs from a head CT
to a page before anybody has trained a model of their own; every output repeats this.

- **Input**: a non-contrast head CT; {size} voxels of {step} mm in the frame of the head,
  windows of brain, blood and bone as channels.
- **Output**: probability of death within 90 days, with an interval from {n} simulated
  patients and the spread of the {folds} networks.
- **Network**: {folds} DenseNets of one layer at full resolution (`local`), {weights} weights
  each, in half precision.
- **Training**: {iterations} steps of {batch} CT of {n} simulated patients (`medpipe data
  simulate-sah`, seed {seed}, voxels of 3.2 mm, three sites), {events} deaths. No image of a
  patient was used.
- **Made by** `python benchmarks/outcome_cohort.py WORK`, then `--pin`.

## How well it does, on simulated patients
Out of fold, n = {n}; the best classifier that there can be has an AUC of {bayes:.2f}.

| model | AUC | calibration slope |
| --- | --- | --- |
{rows}

## Limits
The phantoms hold blood, shift and age alone; no other disease, no contrast agent, no
metal. The relation between blood and death was written down, not observed.
"""


def pin(study: Path) -> None:
    """Put the model of a study into the package."""
    bundle = read_bundle(study / "model")
    half = [
        {n: v.half() if v.is_floating_point() and "running" not in n else v for n, v in m.items()}
        for m in bundle.members
    ]
    content = pack_bundle(half, bundle.facts)
    measured = json.loads((RESULTS / "outcome_cohort.json").read_text())
    labels = {"clinical": "age, sex, WFNS", "ct": "CT (this model)", "ct_clinical": "both"}
    rows = "\n".join(
        "| {} | {auroc[value]:.3f} ({auroc[low]:.3f} to {auroc[high]:.3f}) "
        "| {calibration_slope[value]:.2f} ({calibration_slope[low]:.2f} to "
        "{calibration_slope[high]:.2f}) |".format(label, **measured["models"][name])
        for name, label in labels.items()
    )
    card = CARD.format(
        size=" × ".join(map(str, bundle.facts.size_voxels)),
        step=" × ".join(f"{v:g}" for v in bundle.facts.spacing_mm),
        folds=len(half),
        weights=sum(v.numel() for v in half[0].values()),
        iterations=TRAINING["iterations"],
        batch=TRAINING["batch_size"],
        n=measured["n"],
        events=measured["events"],
        seed=measured["seed"],
        bayes=measured["bayes_auc"],
        rows=rows,
    )
    package_model(NAME, content, card, "outcome")


def row(model: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a model that a reader looks for first."""
    out = {}
    for name in SHOWN:
        found = model["metrics"].get(name) or {}
        if found.get("value") is not None:
            out[name] = {
                k: round(found[k], 4) if isinstance(found[k], float) else found[k]
                for k in ("value", "low", "high", "method")
            }
    return out


def main() -> None:
    """Simulate, train, shuffle, plant; print and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--patients", type=int, default=219)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--control", action="store_true", help="the shuffled outcomes alone")
    parser.add_argument("--tune", action="store_true", help="three folds of another cohort")
    parser.add_argument("--pin", action="store_true", help="package the model of the study")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    if args.pin:
        pin(args.work / "study")
        return
    if args.tune:
        table = simulated(args.work / "tune", args.patients, args.seed + 1000, args.workers)
        found = train(table, args.work / "tuned", None, args, folds=3, nested=False,
                      validation_share=0.15)  # fmt: skip
        for model in found["models"]:
            print(model["name"], row(model).get("auroc"), row(model).get("calibration_slope"))
        return
    table = simulated(args.work / "cohort", args.patients, args.seed, args.workers)
    truth = json.loads((table.parent / "truth.json").read_text())
    study = args.work / "study"
    if not args.control:
        found = train(table, study, None, args)
    turned = changed(table, table.with_name("shuffled.csv"), shuffled)
    control = train(turned, args.work / "shuffled", study / "prepared", args)
    if args.control:
        return
    results = {
        "what": "out-of-fold figures of a simulated cohort; simulated patients throughout",
        "versions": versions("medpipe", "torch", "monai", "scikit-learn"),
        "n": found["n"],
        "events": found["events"],
        "seed": args.seed,
        "settings": TRAINING | {"folds": 5},
        "bayes_auc": truth["model"]["bayes_auc"],
        "auc_ceilings": truth["model"]["auc_ceilings"],
        "auc_of_true_probability": truth["sample"]["auc_of_true_probability"],
        "models": {model["name"]: row(model) for model in found["models"]},
        "tests": found["tests"],
        "seconds": found["seconds"],
        "shuffled": {model["name"]: row(model) for model in control["models"]},
        "planted_leaks": leaks(table, study / "prepared", study / "folds.json"),
    }
    ct, both, alone = (results["models"][m] for m in ("ct", "ct_clinical", "clinical"))
    chance = results["shuffled"]["ct"]["auroc"]
    results["reached"] = {
        "CT: AUC of 0.80 or more": ct["auroc"]["value"] >= 0.80,
        "CT: calibration slope from 0.7 to 1.3": 0.7 <= ct["calibration_slope"]["value"] <= 1.3,
        "both not below clinical alone": both["auroc"]["value"] >= alone["auroc"]["value"],
        "shuffled: the interval of the AUC holds 0.5": chance["low"] <= 0.5 <= chance["high"],
    }
    for title in ("models", "shuffled"):
        for name, figures in results[title].items():
            for metric in ("auroc", "calibration_slope"):
                if metric in figures:
                    f = figures[metric]
                    print(f"{title} {name} {metric} {f['value']} ({f['low']} to {f['high']})")
    for name, met in results["reached"].items():
        print(f"{'met' if met else 'MISSED'}: {name}")
    for name, said in results["planted_leaks"].items():
        print(f"refused, {name}: {said}")
    shutil.copyfile(study / "index.html", RESULTS / "outcome_cohort.html")
    print(write_results("outcome_cohort", results))


if __name__ == "__main__":
    main()
