"""Simulated brains: are the volumes that were wanted those that are there, and what it costs.

    python benchmarks/brain_population.py [--subjects 5] [--heads drawn labels] [--no-write]

Subjects of 64 x 64 x 64 voxels of 3 mm are made from drawn heads and from the real label maps
in brain_labels/ of the real images. For the ventricles and the brain the wanted volume, the
one that follows from the Jacobian of the deformation, and the one that is counted in the
image are compared: correlation, mean and largest relative error. The least Jacobian of the
maps, and processor seconds per head and per subject, stand beside them.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from common import real_folder, spread, versions, write_results

from medpipe.phantoms.brain_ageing import Ageing
from medpipe.phantoms.brain_population import (
    BrainScan,
    PopulationModel,
    draw_person,
    simulate_brain,
)
from medpipe.phantoms.brain_population_labels import BRAIN, drawn_head, read_label_head

SCAN = BrainScan((64, 64, 64), 3.0)


def ageing_of(kind: str, number: int) -> Ageing:
    """Return a head with its velocities."""
    if kind == "drawn":
        made = Ageing(drawn_head(number))
    else:
        made = Ageing(read_label_head(real_folder() / "brain_labels", number))
    for velocity in (made.ventricles, made.loss):
        velocity.field.sum()
    return made


def measured(kind: str, subjects: int, per_head: int) -> dict[str, Any]:
    """Return what is said of subjects, so many from each head."""
    rows, head_s, subject_s = [], [], []
    for number in range(subjects):
        if number % per_head == 0:
            start = time.process_time()
            ageing = ageing_of(kind, number // per_head)
            head_s.append(time.process_time() - start)
            volumes = ageing.head.volumes_ml()
            own_brain = sum(volumes[region.name.lower()] for region in BRAIN)
        start = time.process_time()
        rng = np.random.default_rng([number, 39])
        person = draw_person(rng, PopulationModel(), ageing.reach_ml)
        facts = simulate_brain(ageing, number, person, SCAN).facts
        subject_s.append(time.process_time() - start)
        known, expected = facts["conditions"], facts["expected"]
        rows.append(
            {
                "ventricle_wanted": person.ventricle_ml,
                "ventricle_expected": expected["ventricle_ml"],
                "ventricle_counted": known["ventricle_ml"],
                "ventricle_head": volumes["lateral_ventricle"],
                "brain_wanted": person.brain_share * own_brain * person.size**3,
                "brain_expected": expected["brain_ml"],
                "brain_counted": known["brain_ml"],
                "least_jacobian": facts["jacobian"]["least"],
            }
        )
        print(kind, number, {name: round(value, 2) for name, value in rows[-1].items()}, flush=True)
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {
        "subjects": subjects,
        "heads": len(head_s),
        "ventricle_wanted_ml": spread(table["ventricle_wanted"].tolist(), 2),
        "ventricle": compared(table, "ventricle"),
        "brain": compared(table, "brain"),
        "least_jacobian": spread(table["least_jacobian"].tolist()),
        "cpu_s_per_head": spread(head_s, 2),
        "cpu_s_per_subject": spread(subject_s, 2),
        "rows": [{name: round(float(value), 4) for name, value in row.items()} for row in rows],
    }


def compared(table: dict[str, np.ndarray], name: str) -> dict[str, dict[str, float]]:
    """Return how near two volumes are: wanted and counted, expected and counted."""
    counted = table[f"{name}_counted"]
    made = {}
    for other in ("wanted", "expected"):
        volume = table[f"{name}_{other}"]
        error = counted / volume - 1
        made[f"{other}_counted"] = {
            "r": round(float(np.corrcoef(volume, counted)[0, 1]), 5),
            "mean_error_percent": round(100 * float(error.mean()), 3),
            "mean_absolute_error_percent": round(100 * float(np.abs(error).mean()), 3),
            "largest_error_percent": round(100 * float(np.abs(error).max()), 3),
        }
    return made


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=5, help="of each kind of head")
    parser.add_argument("--per-head", type=int, default=2, help="subjects made from one head")
    parser.add_argument(
        "--heads", nargs="+", choices=("drawn", "labels"), default=["drawn", "labels"]
    )
    parser.add_argument("--no-write", action="store_true", help="print and write no file")
    asked = parser.parse_args()
    results = {kind: measured(kind, asked.subjects, asked.per_head) for kind in asked.heads}
    for kind, found in results.items():
        print(kind, {name: value for name, value in found.items() if name != "rows"})
    if not asked.no_write:
        record = {"grid": "64 x 64 x 64 of 3 mm", "packages": versions("numpy", "scipy", "numba")}
        write_results("brain_population", record | results)


if __name__ == "__main__":
    main()
