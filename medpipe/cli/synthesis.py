"""`medpipe synthesis-evaluate`: how good, how useful and how private synthetic volumes are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from medpipe.cli.output import console
from medpipe.cli.stages import StageBar
from medpipe.errors import InputError, UsageError

if TYPE_CHECKING:
    from medpipe.synthesis.evaluation_files import CaseTable
    from medpipe.synthesis.evaluation_sets import Measured
    from medpipe.synthesis.segmenter import SegmenterModel
    from medpipe.train import LoopSettings

__all__ = ["synthesis_evaluate"]

SEGMENTER = "segmenter.safetensors"
CHECKPOINTS = "checkpoints"
EXIT_GATES = 3
_UNITS = ("years", "ml", "mm3", "mm", "kg", "cm")
_GENERATOR = Group("The generator", sort_key=1)
_TRAINING = Group("Segmenter", sort_key=2)
_MACHINE = Group("Machine", sort_key=3)


def synthesis_evaluate(
    train: Path,
    test: Path,
    synthetic: Path,
    out: Path,
    /,
    *,
    region: list[str],
    condition: list[str] | None = None,
    alignment: Literal["rigid", "shift", "centre"] = "rigid",
    real_cases: int | None = None,
    seeds: int = 3,
    title: str = "Synthetic volumes",
    simulated: bool = False,
    seed: int = 0,
    generator: Annotated[str | None, Parameter(group=_GENERATOR)] = None,
    reconstructions: Annotated[Path | None, Parameter(group=_GENERATOR)] = None,
    seconds_per_sample: Annotated[float | None, Parameter(group=_GENERATOR)] = None,
    peak_mb: Annotated[float | None, Parameter(group=_GENERATOR)] = None,
    segmenter: Annotated[Path | None, Parameter(group=_TRAINING)] = None,
    iterations: Annotated[int, Parameter(group=_TRAINING)] = 1000,
    batch_size: Annotated[int, Parameter(group=_TRAINING)] = 4,
    learning_rate: Annotated[float, Parameter(group=_TRAINING)] = 3e-3,
    widths: Annotated[tuple[int, int, int], Parameter(group=_TRAINING)] = (16, 32, 64),
    device: Annotated[str, Parameter(group=_MACHINE)] = "auto",
    quiet: Annotated[bool, Parameter(group=_MACHINE)] = False,
) -> int:
    """Evaluate synthetic volumes beside real ones, with planted sets that must fail.

    A segmenter is trained with the real training cases; what it finds in the held-out and in
    the synthetic images is compared: distributions, volumes, requested against measured
    conditions, voxels that differ, distances to the training cases. OUT then holds the report
    (index.html), evaluation.json and the segmenter. The report shows training cases: keep it
    where the images may be. Run the same command again to resume.

    Tables (.csv, .parquet) have a row for each case: case_id, image (NIfTI, all on one grid),
    labels, patient_id where a patient has several cases, and further columns. For example,
    with the volume of a region requested of each synthetic case:

        case_id,image,labels,anterior
        s001,s001.nii.gz,s001_labels.nii.gz,1650

    Examples:

        medpipe synthesis-evaluate train.csv test.csv synthetic.csv out/
            --region anterior=1 --region posterior=2 --condition anterior --real-cases 20

        medpipe synthesis-evaluate train.csv test.csv synthetic.csv out/
            --region ventricles=4+43 --condition ventricles_ml=ventricles
            --condition age_years=age_measured --generator model.safetensors

    Exit code 0 if every gate passed, 2 if a table or a setting is wrong, 3 if a gate failed,
    did not decide, or let its planted set through.

    Parameters
    ----------
    train, test, synthetic : Path
        Tables of the cases that the generator was trained with, of other patients, and of
        its own cases (labels only for --real-cases).
    out : Path
        The folder for the results; it may hold an earlier run.
    region : list of str
        NAME=LABEL, or NAME=LABEL+LABEL for labels that are one region; may be repeated.
    condition : list of str, optional
        What was requested, a column of the synthetic table; may be repeated. REGION: its
        volume in mm³. NAME=REGION: its volume in ml if NAME ends with _ml, else in mm³.
        NAME=COLUMN: measured before, in a column of the synthetic table; where the held-out
        table has both columns they are the ceiling.
    alignment : {"rigid", "shift", "centre"}
        Before voxels and distances are compared: turned and moved onto the mean of the real
        cases (a second a volume), moved onto it alone, or moved by the centre of mass (of
        objects that do not reach the edges).
    real_cases : int, optional
        Trains segmenters with so many real cases, with and without the synthetic ones, with
        the synthetic ones alone and with all real ones, and tests all on the held-out cases.
    seeds : int
        Of each such training, three or more.
    title : str
        Of the report.
    simulated : bool
        The real cases are simulated: the report says so everywhere.
    seed : int
        Of trainings, resamples and planted sets.
    generator : str, optional
        The generator that drew the synthetic cases, a file or a packaged model: it gives
        reconstructions of the held-out cases, likelihoods (with those of its conditions that
        are columns of the real tables), and seconds and memory of a sample.
    reconstructions : Path, optional
        A table of the held-out cases, by case_id, after the generator's first network and
        back, where there is no such file: the second ceiling of conditions.
    seconds_per_sample, peak_mb : float, optional
        What a sample cost, where there is no such file.
    segmenter : Path, optional
        One that was trained before, in place of a new one.
    iterations, batch_size : int
        Steps of a training and cases in each.
    learning_rate : float
        Its largest value.
    widths : three int
        Channels of the levels of the segmenter.
    device : str
        auto, cpu, cuda or cuda:N.
    quiet : bool
        Say only the result.
    """
    from medpipe.io.atomic import write_bytes_atomic, write_json_atomic
    from medpipe.report.synthesis_page import synthesis_page
    from medpipe.synthesis.evaluation import evaluate_synthesis
    from medpipe.synthesis.evaluation_conditions import check_conditions
    from medpipe.synthesis.evaluation_parts import check_utility
    from medpipe.synthesis.evaluation_sets import EvaluationSettings, UtilityPlan
    from medpipe.synthesis.segmenter import SegmenterModel
    from medpipe.train import LoopSettings

    regions = _regions(region)
    known = SegmenterModel.read(segmenter) if segmenter else None
    tables = _Tables(train, test, synthetic, reconstructions, _conditions(condition), regions)
    tables.read(need_labels=real_cases is not None)
    real, held_out, made = tables.sets
    loop = LoopSettings(
        iterations=iterations, batch_size=batch_size, learning_rate=learning_rate,
        validate_every=max(1, iterations // 10), checkpoint_every=max(1, min(100, iterations)),
    )  # fmt: skip
    trainer = _Trainer(regions, widths, loop, device, out / CHECKPOINTS, StageBar(quiet))
    trainer.check(known, segmenter)
    settings = EvaluationSettings(regions, made.spacing_mm, alignment, seed=seed)  # type: ignore[arg-type]
    requested, measures = tables.requested()
    check_conditions(requested, measures, len(made.cases), len(held_out.cases), settings)
    plan = None
    if real_cases is not None:
        plan = UtilityPlan(lambda s, n: trainer(s, n).labels, real_cases, range(seeds))
        check_utility(plan, real.cases, held_out.cases, made.cases)
    facts = _Facts(generator, tables, seconds_per_sample, peak_mb, device)
    with trainer.bar as bar:
        facts.measure(bar)
        if known is None:
            bar.stage("training the segmenter")
            known = trainer(real.cases.pairs(), seed)
        out.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(out / SEGMENTER, known.to_bytes())
        evaluation = evaluate_synthesis(
            real.cases, held_out.cases, made.cases, requested, segmenter=known,
            settings=settings, measures=measures, reconstruction=facts.reconstruction,
            likelihoods=facts.likelihoods, utility=plan, cost=facts.cost, controls=True,
            simulated=simulated, progress=bar.stage, study={"title": title, **facts.study},
        )  # fmt: skip
    write_json_atomic(out / "evaluation.json", evaluation)
    write_bytes_atomic(out / "index.html", synthesis_page(evaluation).encode())
    return _said(evaluation, out)


def _regions(given: list[str]) -> dict[str, list[int]]:
    """Return the labels of each region."""
    out: dict[str, list[int]] = {}
    for text in given:
        name, _, labels = text.partition("=")
        numbers = labels.split("+")
        if not name or not all(n.isdecimal() and 0 < int(n) < 1000 for n in numbers):
            raise UsageError(
                "a region is wrong", where="--region", expected="NAME=LABEL or NAME=LABEL+LABEL",
                got=text[:40],
            )  # fmt: skip
        out[name] = [int(n) for n in numbers]
    return out


def _conditions(given: list[str] | None) -> dict[str, str]:
    """Return what measures each condition: a region or a column."""
    out: dict[str, str] = {}
    for text in given or []:
        name, equals, measured = text.partition("=")
        if not name or (equals and not measured) or name in out:
            raise UsageError(
                "a condition is wrong", where="--condition",
                expected="REGION, NAME=REGION or NAME=COLUMN, each name once", got=text[:40],
            )  # fmt: skip
        out[name] = measured or name
    return out


@dataclass
class _Tables:
    """The sets, and what was requested of them."""

    train: Path
    test: Path
    synthetic: Path
    rebuilt: Path | None
    conditions: dict[str, str]
    regions: dict[str, list[int]]

    def read(self, *, need_labels: bool) -> None:
        """Read and check all tables."""
        from medpipe.synthesis.evaluation_files import read_cases

        asked = list(self.conditions)
        apart = {k: v for k, v in self.conditions.items() if v not in self.regions}
        columns, lost = list(apart.values()), [k for k, v in apart.items() if k == v]
        if lost:
            raise UsageError(
                f"condition {lost[0]} cannot be measured", where="--condition",
                expected=f"a region ({', '.join(self.regions)}), NAME=REGION or NAME=COLUMN",
            )  # fmt: skip
        real = read_cases(self.train, need_labels=True)
        held_out = read_cases(self.test, known=[*apart, *columns], need_labels=True)
        made = read_cases(self.synthetic, values=[*asked, *columns], need_labels=need_labels)
        _check_tables(real, held_out, made)
        self.sets = real, held_out, made
        self.reconstruction = None
        if self.rebuilt is not None:
            found = read_cases(self.rebuilt)
            if sorted(found.case_ids) != sorted(held_out.case_ids):
                raise InputError(
                    "the reconstructions are not of the held-out cases",
                    expected="a row for each case_id of the held-out table, and no other",
                )
            rows = [found.case_ids.index(case) for case in held_out.case_ids]
            self.reconstruction = found.cases.images[rows]

    def requested(self) -> tuple[dict[str, Any], dict[str, Measured]]:
        """Return what was requested of the synthetic cases, and how it is measured."""
        from medpipe.synthesis.evaluation_sets import Measured

        _, held_out, made = self.sets
        how = {}
        for name, by in self.conditions.items():
            unit = name.rpartition("_")[2]
            if by in self.regions:
                how[name] = Measured(region=by, unit="ml" if unit == "ml" else "mm³")
                continue
            both = name in held_out.values and by in held_out.values
            values = {"synthetic": made.values[by]}
            how[name] = Measured(
                values={**values, "real": held_out.values[by]} if both else values,
                truth=held_out.values[name] if both else None,
                unit=unit if unit in _UNITS else "",
            )
        return {name: made.values[name] for name in self.conditions}, how


@dataclass
class _Trainer:
    """Trains segmenters; each continues from a checkpoint that its cases and seed name."""

    regions: dict[str, list[int]]
    widths: tuple[int, int, int]
    loop: LoopSettings
    device: str
    folder: Path
    bar: StageBar

    @property
    def classes(self) -> int:
        """How many labels it must tell apart, background included."""
        return 1 + max(label for labels in self.regions.values() for label in labels)

    def check(self, given: SegmenterModel | None, file: Path | None) -> None:
        """Raise UsageError unless a segmenter that was given tells the regions apart."""
        if given is None:
            return
        said = given.network.settings
        if said.classes < self.classes or said.image_channels != 1:
            raise UsageError(
                "the segmenter was not trained for these regions",
                where=None if file is None else file.name,
                expected=f"one image channel and {self.classes} classes or more, with background",
                got=f"{said.image_channels} and {said.classes}",
                hint="leave out --segmenter, and one is trained",
            )  # fmt: skip

    def __call__(self, samples: Sequence[Any], seed: int) -> SegmenterModel:
        from dataclasses import replace

        from medpipe.synthesis.segmenter import SegmenterSettings, train_segmenter

        n = self.classes
        known = [(image, labels * (labels < n)) for image, labels in samples]
        self.folder.mkdir(parents=True, exist_ok=True)
        return train_segmenter(
            known, SegmenterSettings(n, widths=self.widths), replace(self.loop, seed=seed),
            device=self.device, progress=self.bar.training,
            checkpoint=self.folder / f"{len(known)}-{_digest(known)}-seed{seed}.pt",
        )  # fmt: skip


def _digest(samples: Sequence[Any]) -> str:
    """Return what tells these cases from others, so that no checkpoint is of other ones."""
    found = hashlib.sha256()
    for image, labels in samples:
        found.update(image.contiguous().numpy().tobytes())
        found.update(labels.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


@dataclass
class _Facts:
    """What is known of the generator: from its file, or as told."""

    name: str | None
    tables: _Tables
    seconds: float | None
    peak_mb: float | None
    device: str

    def __post_init__(self) -> None:
        from medpipe.synthesis.generator import Generator

        self.study: dict[str, Any] = {}
        self.likelihoods: dict[str, Any] = {}
        self.cost: dict[str, Any] = {}
        self.reconstruction = self.tables.reconstruction
        told = {"seconds_per_sample": self.seconds, "peak_bytes": self.peak_mb}
        if self.name and (self.tables.rebuilt or any(v is not None for v in told.values())):
            raise UsageError(
                "a generator says what a table or a number says too",
                expected="--generator alone, or --reconstructions, --seconds-per-sample, --peak-mb",
            )
        if self.seconds is not None:
            self.cost["seconds_per_sample"] = self.seconds
        if self.peak_mb is not None:
            self.cost["peak_bytes"] = round(1e6 * self.peak_mb)
        self.model = Generator.read(self.name) if self.name else None
        if self.model is not None:
            self.study["generator"] = f"{self.model.route.name}, {self.model.digest[:12]}"

    def measure(self, bar: StageBar) -> None:
        """Ask the generator: held-out cases and back, likelihoods, the cost of a sample."""
        from medpipe.device import choose_device
        from medpipe.synthesis.cost import sampling_cost
        from medpipe.synthesis.generator_facts import likelihoods_of, reconstructions_of

        model = self.model
        if model is None:
            return
        where = choose_device(self.device)
        model.to(where)
        real, held_out, made = self.tables.sets
        bar.stage("reconstructing the held-out cases")
        self.reconstruction = reconstructions_of(model, held_out.cases)
        bar.stage("likelihoods of the real cases")
        for name, table in (("held_out", held_out), ("training", real)):
            pair = likelihoods_of(model, table.cases, _rows(model, table))
            if pair is not None:
                self.likelihoods[name] = pair
        bar.stage("cost of a sample")
        row = _rows(model, made)[0]
        self.cost = sampling_cost(lambda s: model.sample([row], [s]), device=where)


def _rows(model: Any, table: CaseTable) -> list[dict[str, Any]]:
    """Return the conditions of a generator that a table knows, for each of its cases."""
    out = []
    for case, row in zip(table.case_ids, table.rows, strict=True):
        known = {}
        for item in model.conditions.items:
            cell = str(row.get(item.name, "")).strip()
            if item.neutral is not None or not cell:
                continue
            named = {str(v): v for v in item.values}
            try:
                known[item.name] = named[cell] if cell in named else float(cell)
            except ValueError:
                raise InputError(
                    f"{item.name} is none of what the generator was trained with",
                    where=f"case {case}", expected=" or ".join(named) or "a number",
                ) from None  # fmt: skip
        out.append(known)
    return out


def _check_tables(train: CaseTable, test: CaseTable, made: CaseTable) -> None:
    """Raise InputError if a patient is in both real tables or the spacings differ."""
    both = set(train.patients) & set(test.patients)
    if both:
        raise InputError(
            f"{len(both)} patient{'s are' if len(both) > 1 else ' is'} in both real tables",
            expected="each patient in one of them",
        )
    for table in (test, made):
        if any(abs(a - b) > 1e-3 for a, b in zip(train.spacing_mm, table.spacing_mm, strict=True)):
            raise InputError(
                "the tables have different spacings",
                expected=" x ".join(f"{s:.3g}" for s in train.spacing_mm) + " mm",
                got=" x ".join(f"{s:.3g}" for s in table.spacing_mm) + " mm",
                hint="bring all to one with the step resample",
            )


def _said(evaluation: dict[str, Any], out: Path) -> int:
    """Print the gates; return the exit code."""
    to = console()
    words = {True: "passed", False: "failed", None: "undecided"}
    for gate in evaluation["gates"]:
        word = "void" if gate["void"] else words[gate["passed"]]
        to.print(f"{gate['name']}: {word} ({gate['found']})", markup=False, soft_wrap=True)
    to.print(f"report: {out / 'index.html'}", markup=False, soft_wrap=True)
    return 0 if all(gate["passed"] is True for gate in evaluation["gates"]) else EXIT_GATES
