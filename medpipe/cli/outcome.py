"""`medpipe outcome-train`: from a cohort of head CT to an evaluated model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from medpipe.cli.output import console, print_error
from medpipe.errors import InputError, UsageError

if TYPE_CHECKING:
    from medpipe.engine.run import RunSummary
    from medpipe.outcome.cohort import Cohort
    from medpipe.outcome.predictions import OperatingPoint
    from medpipe.types import Finding

__all__ = ["outcome_train"]

WORKFLOW = "outcome-prepare"
PREPARED = "prepared.nii.gz"
_NAMED = 5
"""So many cases are named where several have the same finding."""
_COLUMNS = Group("Columns of the table", sort_key=1)
_TRAINING = Group("Training", sort_key=2)
_MACHINE = Group("Machine", sort_key=3)


def outcome_train(
    cohort: Path,
    out: Path,
    /,
    *,
    outcome_name: str = "the event",
    name: str = "outcome",
    simulated: bool = False,
    demonstration: bool = False,
    outcome: Annotated[str, Parameter(group=_COLUMNS)] = "outcome",
    patient: Annotated[str, Parameter(group=_COLUMNS)] = "patient_id",
    image: Annotated[str, Parameter(group=_COLUMNS)] = "image",
    site: Annotated[str, Parameter(group=_COLUMNS)] = "site",
    covariates: Annotated[list[str] | None, Parameter(group=_COLUMNS)] = None,
    time: Annotated[str | None, Parameter(group=_COLUMNS)] = None,
    event: Annotated[str | None, Parameter(group=_COLUMNS)] = None,
    grid: Annotated[Literal["paper", "compact"], Parameter(group=_TRAINING)] = "paper",
    spacing_mm: Annotated[float | None, Parameter(group=_TRAINING)] = None,
    size_voxels: Annotated[tuple[int, int, int] | None, Parameter(group=_TRAINING)] = None,
    architecture: Annotated[
        Literal["densenet121", "small", "local"], Parameter(group=_TRAINING)
    ] = "densenet121",
    preset: Annotated[Literal["windows", "paper"], Parameter(group=_TRAINING)] = "windows",
    loss: Annotated[
        Literal["cross-entropy", "weighted", "focal", "survival"], Parameter(group=_TRAINING)
    ] = "cross-entropy",
    interval_days: Annotated[list[float] | None, Parameter(group=_TRAINING)] = None,
    encoder: Annotated[Path | None, Parameter(group=_TRAINING)] = None,
    iterations: Annotated[int, Parameter(group=_TRAINING)] = 1500,
    batch_size: Annotated[int, Parameter(group=_TRAINING)] = 4,
    learning_rate: Annotated[float, Parameter(group=_TRAINING)] = 3e-4,
    weight_decay: Annotated[float, Parameter(group=_TRAINING)] = 1e-2,
    mirrored: Annotated[bool, Parameter(group=_TRAINING)] = False,
    validation_share: Annotated[float, Parameter(group=_TRAINING)] = 0.15,
    folds: Annotated[int, Parameter(group=_TRAINING)] = 5,
    by_site: Annotated[bool, Parameter(group=_TRAINING)] = False,
    recalibration: Annotated[
        Literal["platt", "temperature", "isotonic", "none"], Parameter(group=_TRAINING)
    ] = "platt",
    nested: Annotated[bool, Parameter(group=_TRAINING)] = False,
    sensitivity: Annotated[float | None, Parameter(group=_TRAINING)] = None,
    specificity: Annotated[float | None, Parameter(group=_TRAINING)] = None,
    align: Annotated[Literal["symmetry", "none"], Parameter(group=_TRAINING)] = "symmetry",
    seed: Annotated[int, Parameter(group=_TRAINING)] = 0,
    workers: Annotated[int | None, Parameter(group=_MACHINE)] = None,
    device: Annotated[str, Parameter(group=_MACHINE)] = "auto",
    at_once: Annotated[int, Parameter(group=_MACHINE)] = 1,
    quiet: Annotated[bool, Parameter(group=_MACHINE)] = False,
) -> int:
    """Train a network that predicts an outcome from head CT, and evaluate it honestly.

    Every CT is prepared (`medpipe show outcome-prepare`), patients are split into folds, a
    network is trained for each and judged on patients that it has not seen, beside the
    prevalence, the clinical covariates alone and both together. OUT then holds the report
    (index.html), evaluation.json, predictions.csv, folds.json and the model (model/), which
    `medpipe run outcome-predict` uses. Run the same command again to resume.

    A case that cannot be prepared is named and left out; the others go on. What is wrong with
    the table, the folds or the settings is told before anything is prepared or trained.

    Examples:

        medpipe data simulate-sah cohort/ --patients 40
        medpipe outcome-train cohort/cases.csv out/ --simulated --grid compact
            --architecture small --iterations 200

    Exit code 0 if all cases took part, 2 if the table or a setting is wrong or a test set is
    known from training, 3 if some cases could not be prepared, 4 if none could.

    Parameters
    ----------
    cohort : Path
        A table (.csv, .parquet): case_id, image, outcome (0 or 1), and if known patient_id,
        site and covariates; see docs/reference/outcome-cohort.md.
    out : Path
        The folder for all results; it may hold an earlier run of the same study.
    outcome_name : str
        What the probability is of, for the report: "death within 3 months".
    name : str
        Of the model.
    simulated : bool
        The patients are simulated: the report and the model say so everywhere.
    demonstration : bool
        The model is a demonstration, not for clinical use: every output says so.
    outcome, patient, image, site : str
        Names of the columns.
    covariates : list of str, optional
        Columns of the clinical model (default: all known ones); may be repeated.
    time, event : str, optional
        Columns of days to the event or to the end of observation, and whether it is the event.
    grid : {"paper", "compact"}
        Voxels that the network sees; "paper" is that of the published model.
    spacing_mm : float, optional
        Of cubic voxels, in place of the grid's own.
    size_voxels : three int, optional
        In place of the grid's own.
    architecture : {"densenet121", "small", "local"}
        "small" has a hundredth of the weights, for CPUs; "local" still fewer, keeps the
        resolution and counts what it sees anywhere: for cohorts of a few hundred.
    preset : {"windows", "paper"}
        Channels: brain, blood and bone, or 0 to 100 HU three times.
    loss : {"cross-entropy", "weighted", "focal", "survival"}
        Weighted ones balance rare outcomes; "survival" needs time and event.
    interval_days : list of float, optional
        Ends of the intervals of time of the survival loss (default 3, 7, 14, 30, 60 and 90);
        repeat it for each.
    encoder : Path, optional
        Weights to begin with, from a local file (.safetensors, .pt).
    iterations, batch_size : int
        Steps of a fold's training and CTs in each.
    learning_rate : float
        Its largest value.
    weight_decay : float
        More of it (0.05 to 0.2) keeps networks of small cohorts from learning by heart.
    mirrored : bool
        Every CT is judged twice, left and right exchanged the second time, and the mean
        counts: steadier, for twice the time of the networks.
    validation_share : float
        Of the patients that a network may learn from, set aside to stop it in time; 0 (with
        --nested) trains with all of them, for all iterations.
    folds : int
        Parts of the cohort.
    by_site : bool
        Each fold is one site: how well the model does at a hospital it has not seen.
    recalibration : {"platt", "temperature", "isotonic", "none"}
        Of the probabilities, fitted inside the folds.
    nested : bool
        Fit it, and the fusion with covariates, on all training cases by further networks: three
        times as long for five folds.
    sensitivity, specificity : float, optional
        The operating point reaches at least this in training (default: the largest sum of
        both, after Youden).
    align : {"symmetry", "none"}
        Heads are turned so that their plane of symmetry is upright, or left as they lie.
    seed : int
        Of folds, weights and samples.
    workers : int, optional
        CTs prepared at the same time.
    device : str
        auto, cpu, cuda or cuda:N.
    at_once : int
        Networks trained at the same time; with auto or cuda on all GPUs in turn. On CPUs they
        share the cores, which small networks use better than one alone.
    quiet : bool
        No progress bar.
    """
    from medpipe.outcome.cohort import read_cohort
    from medpipe.outcome.crossval import CrossSettings
    from medpipe.outcome.leaks import study_digest
    from medpipe.outcome.network import OutcomeNetworkSettings
    from medpipe.outcome.plan import plan_study
    from medpipe.outcome.prepare import grid_settings
    from medpipe.outcome.study import FOLDS, StudyFacts, train_study
    from medpipe.outcome.training import OutcomeTraining

    if encoder is not None and not encoder.is_file():
        raise UsageError("there is no such file of weights", where="--encoder")
    chosen = grid_settings(
        grid, spacing_mm, list(size_voxels) if size_voxels else None, method=align
    )
    times: dict[str, Any] = {"interval_days": tuple(interval_days)} if interval_days else {}
    training = OutcomeTraining(
        preset=preset, loss=loss, iterations=iterations, batch_size=batch_size,
        learning_rate=learning_rate, weight_decay=weight_decay, folds=folds, seed=seed,
        validation_share=validation_share, size_voxels=chosen.size_voxels,
        spacing_mm=chosen.spacing_mm, tta_flips=((0,),) if mirrored else (), **times,
    )  # fmt: skip
    outputs = len(training.interval_days) if loss == "survival" else 2
    settings = CrossSettings(
        training=training,
        network=OutcomeNetworkSettings(architecture=architecture, outputs=outputs),
        by_site=by_site,
        recalibration=recalibration,
        nested=nested,
        rule=_rule(sensitivity, specificity),
    )
    table = read_cohort(
        cohort, outcome=outcome, patient=patient, covariates=covariates, site=site, time=time,
        event=event, image=image, folds=None if by_site else folds,
    )  # fmt: skip
    _tell(table.findings)
    studies = {case: study_digest(path) for case, path in table.images.items()}
    if not (out / FOLDS).is_file():
        plan_study(table, settings, study_digests=studies)
    summary, volumes = _prepared(
        cohort, table, out / "prepared", chosen, workers=workers, device=device, seed=seed,
        quiet=quiet,
    )  # fmt: skip
    if summary.interrupted:
        _note(f"interrupted by {summary.interrupted}; run the same command again to resume")
        return summary.exit_code
    if not volumes:
        print_error(
            InputError("no case could be prepared", hint=f"see {out / 'prepared/index.html'}")
        )
        return summary.exit_code
    kept = table.select([i for i, case in enumerate(table.case_ids) if case in volumes])
    noticed = _noticed(out / "prepared", kept.case_ids)
    with _Bar(quiet, at_once) as bar:
        result = train_study(
            kept,
            volumes,
            out,
            settings,
            grid=chosen,
            facts=StudyFacts(name, outcome_name, simulated, demonstration),
            refused=_reasons(summary),
            noticed=noticed,
            study_digests=studies,
            encoder=encoder,
            device=device,
            at_once=at_once,
            progress=bar.network,
            stage=bar.stage,
        )
    _tell(f for f in result.crossed.findings if f not in table.findings)
    page = _page(result.evaluation, out)
    _say(result.evaluation, page, out)
    return summary.exit_code


def _note(text: str) -> None:
    console(stderr=True).print(text, markup=False, soft_wrap=True)


def _tell(findings: Iterable[Finding]) -> None:
    for finding in findings:
        _note(f"{finding.severity.name.lower()}: {finding.message}")


def _prepared(
    source: Path, table: Cohort, folder: Path, grid: Any, *, workers: int | None, device: str,
    seed: int, quiet: bool,
) -> tuple[RunSummary, dict[str, Path]]:  # fmt: skip
    """Prepare all CT; return what became of the run, and a path for each case that is there."""
    from medpipe.cli.cases import require_apart
    from medpipe.engine.pool.local import LocalExecutor
    from medpipe.engine.progress import choose_progress
    from medpipe.engine.provenance import case_folder
    from medpipe.engine.run import run_workflow
    from medpipe.io.case import Case
    from medpipe.report.build import build_report
    from medpipe.workflow.plan import compile_workflow

    given = {
        "spacing_mm": list(grid.spacing_mm),
        "size_voxels": list(grid.size_voxels),
        "top_margin_mm": grid.top_margin_mm,
    }
    changed = [f"grid.{k}={v}" for k, v in given.items()]
    compiled = compile_workflow(WORKFLOW, overrides=[*changed, f"frame.method={grid.method}"])
    cases = [Case(i, {"image": str(table.images[i])}) for i in table.case_ids]
    require_apart(folder, source, cases)
    summary = run_workflow(
        compiled, cases, folder, executor=LocalExecutor(workers), device=device, seed=seed,
        timeout_s=7200, progress=choose_progress(quiet=quiet),
    )  # fmt: skip
    build_report(folder)
    for failure in summary.failed:
        _note(f"left out: case {failure.case_id} · {failure.message}")
    failed = {failure.case_id for failure in summary.failed}
    paths = {case: case_folder(folder, case) / PREPARED for case in table.case_ids}
    found = {c: p for c, p in paths.items() if c not in failed and p.is_file()}
    if not quiet:
        _note(f"{len(found)} of {len(cases)} cases prepared; pictures: {folder / 'index.html'}")
    return summary, found


def _noticed(folder: Path, case_ids: Iterable[str]) -> list[str]:
    """Say what was doubtful about prepared CT, with its cases; return it without them."""
    from medpipe.engine.provenance import case_folder, read_case_record

    by_check: dict[str, list[tuple[str, str]]] = {}
    for case in case_ids:
        record = read_case_record(case_folder(folder, case)) or {}
        found = [f for f in record.get("findings", []) if f["severity"] != "info"]
        for check, message in {f["check"]: f["message"] for f in found}.items():
            by_check.setdefault(check, []).append((case, message))
    sentences = []
    for (first, message), *others in by_check.values():
        named = ", ".join(case for case, _ in others[: _NAMED - 1])
        more = f" and {len(others) - _NAMED + 1} more" if len(others) >= _NAMED else ""
        _note(f"noticed: case {first} · {message}{f'; so in {named}{more}' if others else ''}")
        sentences.append(f"{message}{f'; so in {len(others)} cases more' if others else ''}")
    return sentences


def _rule(sensitivity: float | None, specificity: float | None) -> OperatingPoint:
    """Return the rule of the operating point."""
    from medpipe.outcome.predictions import OperatingPoint

    given = [v for v in (sensitivity, specificity) if v is not None]
    if len(given) > 1 or not all(0 < v < 1 for v in given):
        raise UsageError(
            "the operating point is wrong",
            expected="--sensitivity or --specificity, above 0 and below 1",
        )
    return OperatingPoint(sensitivity, specificity, youden=not given)


def _reasons(summary: RunSummary) -> dict[str, int]:
    """Return how many cases were left out, by reason; a reason names no case."""
    counts: dict[str, int] = {}
    for failure in summary.failed:
        what = re.sub(r"\d+(?:[.,]\d+)*", "…", failure.what) or "could not be prepared"
        reason = f"{failure.step}: {what}" if failure.step else what
        counts[reason] = counts.get(reason, 0) + 1
    return counts


def _page(evaluation: dict[str, Any], out: Path) -> Path:
    from medpipe.io.atomic import write_bytes_atomic
    from medpipe.report.outcome_page import evaluation_page

    page = out / "index.html"
    write_bytes_atomic(page, evaluation_page(evaluation).encode())
    return page


def _say(evaluation: dict[str, Any], page: Path, out: Path) -> None:
    """Print the area under the curve of each model, with its interval, and where all is."""
    to = console()
    said = " (simulated)" if evaluation["simulated"] else ""
    to.print(f"{evaluation['n']} cases, {evaluation['events']} events{said}, out of fold:")
    figures = {m["label"] + ": AUROC": m["metrics"].get("auroc") for m in evaluation["models"]}
    times = (evaluation["survival"] or {}).get("figures", {})
    concordance = {k: v for k, v in times.items() if k.startswith("Concordance")}
    figures |= {f"CT alone: {name}": figure for name, figure in concordance.items()}
    for name, figure in figures.items():
        if not figure or figure["value"] is None:
            continue
        ends = "by definition" if figure["method"] == "by definition" else "no interval"
        if figure["low"] is not None:
            ends = f"{figure['low']:.3f} to {figure['high']:.3f}"
        to.print(f"  {name} {figure['value']:.3f} ({ends})", markup=False)
    to.print(f"model: {out / 'model'} (medpipe show outcome-predict says how to use it)",
             markup=False, soft_wrap=True)  # fmt: skip
    to.print(f"report: {page}", markup=False, soft_wrap=True)


class _Bar:
    """A bar for each network and each other stage; lines where no person watches."""

    def __init__(self, quiet: bool, at_once: int = 1) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        screen = console(stderr=True)
        self.lines = not quiet and not screen.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"), TimeElapsedColumn(),
            TimeRemainingColumn(compact=True), console=screen,
            disable=quiet or not screen.is_terminal,
        )  # fmt: skip
        self.at_once = at_once
        self.open: dict[str, tuple[Any, Any]] = {}
        """Tasks and their last progress by name, the one that was told of last at the end."""

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end(0)
        self.bar.stop()

    def network(self, name: str, at: Any) -> None:
        """Show how far the training of a network is."""
        if name not in self.open:
            self._end(self.at_once - 1)  # one that no longer got better ended without a word
            self.open[name] = (self.bar.add_task(name, total=at.iterations, loss=""), at)
        task, _ = self.open.pop(name)
        self.open[name] = (task, at)
        self.bar.update(task, completed=at.iteration, loss=f"loss {at.loss:.3f}")

    def stage(self, name: str) -> None:
        """Show that something else is done."""
        self._end(0)
        self.open[name] = (self.bar.add_task(name, total=None, loss=""), None)

    def _end(self, left: int) -> None:
        """Close bars where they are until so many are left."""
        while len(self.open) > left:
            name = next(iter(self.open))
            task, at = self.open.pop(name)
            done = 1 if at is None else at.iteration
            self.bar.update(task, total=done, completed=done)
            if at is not None and self.lines:
                _note(f"{name}: {done} of {at.iterations} iterations, "
                      f"loss {at.loss:.3f}, {at.seconds:.0f} s")  # fmt: skip
