"""A small study of head CT, trained once by the command, for the tests of `outcome-train`."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from subprocess import CompletedProcess

import numpy as np
import pytest
from dicom_inputs import write_series

from medpipe.cli import outcome as command
from medpipe.phantoms.head_ct import head_ct
from medpipe.types import Volume
from medpipe.workflow.find import find_workflow

Row = dict[str, str]
Medpipe = Callable[..., "CompletedProcess[str]"]

SETTINGS: dict[str, tuple[object, ...]] = {
    "--simulated": (),
    "--mirrored": (),
    "--covariates": ("age_years",),
    "--spacing-mm": (8,),
    "--size-voxels": (24, 32, 24),
    "--architecture": ("small",),
    "--iterations": (2,),
    "--folds": (2,),
    "--device": ("cpu",),
}
"""Of the command, where a test gives no other."""


@dataclass(frozen=True)
class HeadStudy:
    """Head CT as DICOM series, their table, and what the command made of them.

    Eight patients, the first two with two CT; a ninth, `spare`, is not in the table. Those
    with odd numbers died.
    """

    rows: Sequence[Row]
    spare: Row
    out: Path
    workflow: Path
    done: CompletedProcess[str]
    medpipe: Medpipe

    def train(
        self, folder: Path, rows: Sequence[Mapping[str, str]], *words: object
    ) -> CompletedProcess[str]:
        """Run the command in a folder on a table of these CT; results are in OUT."""
        write_table(folder / "cases.csv", rows)
        used = [word for flag in SETTINGS if flag not in words for word in (flag, *SETTINGS[flag])]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command, "WORKFLOW", str(self.workflow))
            return self.medpipe("outcome-train", "cases.csv", "OUT", *used, *words, folder=folder)

    def prepared_in(self, folder: Path) -> None:
        """Put the CT that are prepared already where the command looks for them."""
        copytree(self.out / "prepared", folder / "OUT" / "prepared")


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_head(folder: Path, head: Volume, seed: int) -> None:
    """Write a head with noise of its own as a series of one study."""
    affine, shape = head.affine, np.array(head.data.shape)
    noise = np.random.default_rng(seed).normal(0, 5, head.data.shape)
    hu = np.maximum(np.asarray(head.data, float) + noise, -1024)

    def value(points: np.ndarray) -> np.ndarray:
        index = np.rint((points - affine[:3, 3]) / np.diag(affine)[:3]).astype(int)
        return hu[tuple(np.moveaxis(index, -1, 0))]

    left, back = (affine[:3, :3] @ (shape - 1) + affine[:3, 3])[:2]
    levels = affine[2, 3] + affine[2, 2] * np.arange(shape[2])
    write_series(
        folder, [(-left, -back, z) for z in levels], value=value,
        spacing=(affine[1, 1], affine[0, 0]), size=(int(shape[1]), int(shape[0])),
    )  # fmt: skip


def row_of(folder: Path, case: str, patient: int) -> Row:
    died = patient % 2
    days = 7 * patient if died else 100 + patient
    return {
        "case_id": case, "patient_id": f"P{patient}", "image": str(folder / case),
        "outcome": str(died), "event": str(died), "time_days": str(days),
        "site": "north" if patient in (1, 2, 5, 6) else "south",
        "age_years": str(50 + 3 * patient + 9 * died),
    }  # fmt: skip


@pytest.fixture(scope="session")
def head_study(tmp_path_factory: pytest.TempPathFactory, medpipe_here: Medpipe) -> HeadStudy:
    """Write the CT and train two folds.

    Heads lie straight: the workflow does not look for their plane, and draws no pictures.
    """
    folder = tmp_path_factory.mktemp("head-study")
    head = head_ct(7, shape=(24, 29, 22), spacing_mm=(8.0, 8.0, 8.0)).volume
    cases = [(f"scan{k}", k) for k in range(1, 10)]
    cases[1:2] = [("scan1b", 1), ("scan2", 2), ("scan2b", 2)]
    rows = []
    for seed, (case, patient) in enumerate(cases):
        write_head(folder / "ct" / case, head, seed)
        rows.append(row_of(folder / "ct", case, patient))
    text = find_workflow(command.WORKFLOW).read_text(encoding="utf-8")
    quick = text.replace('{ small = "small"', '{ method = "none", small = "small"')
    workflow = folder / "outcome-prepare.toml"
    workflow.write_text(quick[: quick.index("qc = ")], encoding="utf-8")
    given = (rows[:-1], rows[-1], folder / "OUT", workflow)
    untrained = HeadStudy(*given, CompletedProcess((), 0), medpipe_here)
    return HeadStudy(*given, untrained.train(folder, rows[:-1]), medpipe_here)
