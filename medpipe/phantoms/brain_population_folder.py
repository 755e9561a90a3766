"""A folder with a simulated population of brains: images, labels, manifest and truth."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from medpipe.errors import UsageError
from medpipe.io.atomic import write_json_atomic
from medpipe.io.case import Case
from medpipe.io.manifest import write_manifest
from medpipe.io.nifti import write_nifti
from medpipe.phantoms.brain_ageing import Ageing
from medpipe.phantoms.brain_population import (
    BrainScan,
    BrainSubject,
    PopulationModel,
    draw_person,
    simulate_brain,
)
from medpipe.phantoms.brain_population_labels import (
    BrainRegion,
    drawn_head,
    label_head_files,
    read_label_head,
)
from medpipe.seeds import derive_seed
from medpipe.types import Volume

__all__ = ["BrainCohort", "write_brain_population"]


@dataclass(frozen=True, slots=True)
class BrainCohort:
    """What a simulated population is.

    Attributes
    ----------
    subjects : int
        How many.
    seed : int
        The same seed gives the same bytes; a subject depends on the seed, its number and
        the number of heads alone.
    scan : BrainScan
        Grid, contrast, deformation, noise.
    label_maps : Path, optional
        A folder of whole-head label maps; without it heads are drawn.
    anatomies : int, optional
        How many heads are drawn; by default one for each subject.
    growth : bool
        Whether the growth relative to the label map is written.
    model : PopulationModel
        How age and sex go with the brain.
    """

    subjects: int
    seed: int = 0
    scan: BrainScan = field(default_factory=BrainScan)
    label_maps: Path | None = None
    anatomies: int | None = None
    growth: bool = False
    model: PopulationModel = field(default_factory=PopulationModel)

    def __post_init__(self) -> None:
        heads = self.subjects if self.anatomies is None else self.anatomies
        if self.subjects < 1 or heads < 1:
            raise UsageError(
                "no such population",
                expected="one subject or more, of one head or more",
                got=f"{self.subjects} subjects of {heads} heads",
            )


def write_brain_population(root: Path, cohort: BrainCohort, *, workers: int = 1) -> list[Case]:
    """Write images, label maps, ``cases.csv`` and ``truth.json``.

    Parameters
    ----------
    root : Path
        Made if it is missing.
    cohort : BrainCohort
        What to write.
    workers : int
        Processes; the files do not depend on their number.

    Returns
    -------
    list of Case
        The rows of the manifest. Subjects that were made from one head share a patient_id.
    """
    heads = _heads(cohort)
    root.mkdir(parents=True, exist_ok=True)
    # A process works through the subjects of one head: its velocities are made once.
    groups = [range(first, cohort.subjects, heads) for first in range(min(heads, cohort.subjects))]
    write = partial(_write_group, root, cohort)
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            made = list(pool.map(write, groups))
    else:
        made = [write(group) for group in groups]
    rows = dict(sorted(pair for group in made for pair in group))
    cases = [case for case, _ in rows.values()]
    write_manifest(root / "cases.csv", cases)
    truth = {
        "simulated": True,
        "seed": cohort.seed,
        "heads": {"count": heads, "drawn": cohort.label_maps is None},
        "scan": asdict(cohort.scan),
        "model": asdict(cohort.model),
        "regions": {region.name.lower(): int(region) for region in BrainRegion},
        "cases": {case.case_id: facts for case, facts in rows.values()},
    }
    write_json_atomic(root / "truth.json", truth)
    return cases


def _heads(cohort: BrainCohort) -> int:
    """Return how many heads there are."""
    if cohort.label_maps is None:
        return cohort.subjects if cohort.anatomies is None else cohort.anatomies
    return len(label_head_files(cohort.label_maps))


def _write_group(
    root: Path, cohort: BrainCohort, numbers: range
) -> list[tuple[int, tuple[Case, dict[str, Any]]]]:
    """Write the subjects of one head, that of the first number; its file is read once."""
    if cohort.label_maps is None:
        head = drawn_head(derive_seed(cohort.seed, "head", str(numbers[0])) % 1_000_000)
    else:
        head = read_label_head(cohort.label_maps, numbers[0])
    ageing = Ageing(head)
    rows = []
    for number in numbers:
        seed = derive_seed(cohort.seed, "brain", str(number))
        person = draw_person(np.random.default_rng([seed, 39]), cohort.model, ageing.reach_ml)
        made = simulate_brain(ageing, seed, person, cohort.scan)
        rows.append((number, _write_subject(root, cohort, made, number, numbers[0])))
    return rows


def _write_subject(
    root: Path, cohort: BrainCohort, made: BrainSubject, number: int, head: int
) -> tuple[Case, dict[str, Any]]:
    case_id, anatomy = f"brain{number + 1:04d}", f"head{head + 1:02d}"
    folder = root / "images" / case_id
    folder.mkdir(parents=True, exist_ok=True)
    affine = made.volume.affine
    write_nifti(folder / "mr.nii.gz", made.volume, dtype="float32")
    write_nifti(folder / "labels.nii.gz", Volume(made.labels, affine), dtype="uint8")
    if cohort.growth:
        write_nifti(folder / "growth.nii.gz", Volume(made.growth, affine), dtype="float32")
    known = made.facts["conditions"]
    covariates = {
        "age_years": known["age_years"],
        "sex": known["sex"],
        "ventricle_ml": round(known["ventricle_ml"], 3),
        "brain_ml": round(known["brain_ml"], 2),
    }
    inputs = {"image": str(folder / "mr.nii.gz"), "labels": str(folder / "labels.nii.gz")}
    # what shares an anatomy stays together wherever patients are split
    case = Case(case_id, inputs, f"P{cohort.seed}-{head + 1:04d}", covariates)
    return case, made.facts | {"anatomy": anatomy}
