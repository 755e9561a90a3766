"""`medpipe synthesis-evaluate`: how good, how useful and how private synthetic volumes are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from medpipe.cli.output import console
from medpipe.errors import InputError, UsageError

if TYPE_CHECKING:
    from medpipe.synthesis.evaluation_files import CaseTable
    from medpipe.synthesis.segmenter import SegmenterModel

__all__ = ["synthesis_evaluate"]

SEGMENTER = "segmenter.safetensors"
EXIT_GATES = 3
_TRAINING = Group("Segmenter", sort_key=1)


def synthesis_evaluate(
    train: Path,
    test: Path,
    synthetic: Path,
    out: Path,
    /,
    *,
    region: list[str],
    condition: list[str] | None = None,
    alignment: Literal["rigid", "centre"] = "rigid",
    real_cases: int | None = None,
    seeds: int = 3,
    title: str = "Synthetic volumes",
    simulated: bool = False,
    segmenter: Annotated[Path | None, Parameter(group=_TRAINING)] = None,
    iterations: Annotated[int, Parameter(group=_TRAINING)] = 1000,
    batch_size: Annotated[int, Parameter(group=_TRAINING)] = 4,
    learning_rate: Annotated[float, Parameter(group=_TRAINING)] = 3e-3,
    widths: Annotated[tuple[int, int, int], Parameter(group=_TRAINING)] = (16, 32, 64),
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> int:
    """Evaluate synthetic volumes beside real ones, with planted sets that must fail.

    A segmenter is trained with the real training cases; what it finds in the held-out and in
    the synthetic images is compared. OUT then holds the report (index.html), evaluation.json
    and the segmenter. The report shows training cases: keep it where the images may be.

    Example:

        medpipe synthesis-evaluate train.csv test.csv synthetic.csv out/
            --region anterior=1 --region posterior=2 --condition anterior --real-cases 20

    Exit code 0 if every gate passed, 2 if a table or a setting is wrong, 3 if a gate failed,
    did not decide, or let its planted set through.

    Parameters
    ----------
    train, test, synthetic : Path
        Tables with case_id, image and labels, and patient_id for real cases: those that the
        generator was trained with, others, and its own (labels only for the utility).
    out : Path
        The folder for the results.
    region : list of str
        NAME=LABEL, or NAME=LABEL+LABEL for labels that are one region; may be repeated.
    condition : list of str, optional
        Regions whose volume in mm³ was requested: columns of the synthetic table.
    alignment : {"rigid", "centre"}
        Before voxels and distances are compared.
    real_cases : int, optional
        Trains segmenters with so many real cases, with and without the synthetic ones.
    seeds : int
        Of each such training, three or more.
    title : str
        Of the report.
    simulated : bool
        The real cases are simulated: the report says so everywhere.
    segmenter : Path, optional
        One that was trained before, in place of a new one.
    iterations, batch_size : int
        Steps of a training and cases in each.
    learning_rate : float
        Its largest value.
    widths : three int
        Channels of the levels of the segmenter.
    seed : int
        Of trainings, resamples and planted sets.
    device : str
        auto, cpu, cuda or cuda:N.
    quiet : bool
        Say only the result.
    """
    from medpipe.io.atomic import write_bytes_atomic, write_json_atomic
    from medpipe.report.synthesis_page import synthesis_page
    from medpipe.synthesis.evaluation import evaluate_synthesis
    from medpipe.synthesis.evaluation_files import read_cases
    from medpipe.synthesis.evaluation_sets import EvaluationSettings, UtilityPlan
    from medpipe.synthesis.segmenter import SegmenterModel, SegmenterSettings, train_segmenter
    from medpipe.train import LoopSettings

    regions = _regions(region)
    asked = list(condition or [])
    real, held_out = (read_cases(t, need_labels=True) for t in (train, test))
    made = read_cases(synthetic, values=asked, need_labels=real_cases is not None)
    _check_tables(real, held_out, made)
    classes = 1 + max(label for labels in regions.values() for label in labels)
    chosen = SegmenterSettings(classes, widths=widths)

    def trained(samples: Any, with_seed: int, checkpoint: Path | None = None) -> SegmenterModel:
        loop = LoopSettings(
            iterations=iterations, batch_size=batch_size, learning_rate=learning_rate,
            validate_every=max(1, iterations // 10), seed=with_seed,
        )  # fmt: skip
        known = [(image, labels * (labels < classes)) for image, labels in samples]
        return train_segmenter(known, chosen, loop, device=device, checkpoint=checkpoint)

    def tell(what: str) -> None:
        if not quiet:
            console(stderr=True).print(what, markup=False, soft_wrap=True)

    out.mkdir(parents=True, exist_ok=True)
    if segmenter is None:
        tell("training the segmenter")
        model = trained(real.cases.pairs(), seed, out / "segmenter.checkpoint.pt")
    else:
        model = SegmenterModel.read(segmenter)
    write_bytes_atomic(out / SEGMENTER, model.to_bytes())
    plan = None
    if real_cases is not None:
        plan = UtilityPlan(lambda s, n: trained(s, n).labels, real_cases, range(seeds))
    evaluation = evaluate_synthesis(
        real.cases, held_out.cases, made.cases, {name: made.values[name] for name in asked},
        segmenter=model, utility=plan, controls=True, simulated=simulated, progress=tell,
        settings=EvaluationSettings(regions, made.spacing_mm, alignment, seed=seed),  # type: ignore[arg-type]
        study={"title": title, "segmenter": f"{iterations} iterations, seed {seed}"},
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
