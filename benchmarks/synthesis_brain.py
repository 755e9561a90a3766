"""The packaged generator of brains: made from nothing, judged, and put into the package.

    python benchmarks/synthesis_brain.py WORK [--stage population|train|draw|evaluate]
        [--alignment rigid|shift] [--pin]

Subjects are drawn (`medpipe data brain-population`, 64 x 64 x 64 voxels of 3 mm), each with a
head of its own. Four fifths of them train a generator that is told age, sex, and the volumes
of the lateral ventricles and of the brain; the others are held out. A volume is drawn for each
held-out subject, asked for its numbers (but for the few that are outside the trained range),
and evaluated against training and held-out cases: are the ventricles as large as asked, by a
segmenter that sees the images alone, and where do means differ. What is done is in WORK and
not done twice. ``--pin`` puts generator and card into the package.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import package_model, versions, write_results
from synthesis_common import Work, card_rows, packed, row_of, unpacked

from medpipe.io.atomic import write_bytes_atomic, write_json_atomic
from medpipe.phantoms.brain_population_folder import BrainCohort, write_brain_population
from medpipe.phantoms.brain_population_labels import BrainRegion
from medpipe.report.synthesis_page import synthesis_page
from medpipe.synthesis import (
    AutoencoderSettings,
    AutoencoderTraining,
    DenoiserTraining,
    EvaluationSettings,
    Generator,
    GeneratorTraining,
    Measured,
    SegmenterModel,
    SegmenterSettings,
    SynthesisSet,
    TrainingSet,
    measure_autoencoder,
    read_training_set,
    train_generator,
    train_segmenter,
)
from medpipe.synthesis.cost import sampling_cost
from medpipe.synthesis.evaluation import evaluate_synthesis
from medpipe.synthesis.generator_facts import reconstructions_of
from medpipe.synthesis.metrics import condition_agreement, label_volumes
from medpipe.synthesis.tokeniser_samples import TokeniserSamples
from medpipe.train import LoopSettings, Progress

R = BrainRegion
NAME = "synthesis-brain"
CONDITIONS = ("age_years", "sex", "ventricle_ml", "brain_ml")
PERCENTILES = (0.5, 90.0)
"""Of each image, that become 0 and 1: fat is cut off, or the brain would be all but black."""
TISSUES: dict[str, tuple[BrainRegion, ...]] = {
    "grey": (R.GREY, R.DEEP_GREY, R.HIPPOCAMPUS_AMYGDALA, R.CEREBELLUM_GREY),
    "white": (R.WHITE, R.CEREBELLUM_WHITE, R.BRAINSTEM),
    "ventricle": (R.LATERAL_VENTRICLE,),
    "fluid": (R.CSF,),
    "outside": (R.OUTSIDE,),
}
"""What the generator labels, from 1 up."""
REGIONS: dict[str, tuple[int, ...]] = {"ventricle": (3,), "brain": (1, 2)}
"""What is measured, by these labels."""


def recipe(seed: int) -> GeneratorTraining:
    """Return how the generator is trained."""
    return GeneratorTraining(
        route="latents",
        autoencoder=AutoencoderSettings(
            channels=(32, 64), attention=(False, False), latent_channels=8, groups=8,
            patch_voxels=2, transposed=True,
        ),
        autoencoder_training=AutoencoderTraining(
            iterations=1600, batch_size=2, learning_rate=2.5e-3, validate_every=200,
            label_weight=0.2, perceptual_weight=0.3, seed=seed,
        ),
        denoiser={
            "channels": (64, 128), "attention": (False, True), "groups": 8, "patch_cells": 2,
            "conditioning": "embedding", "condition_width": 32, "directions": 160, "begin": 0.3,
        },
        denoiser_training=DenoiserTraining(
            iterations=3000, batch_size=8, learning_rate=2e-3, warmup=50, validate_every=100,
            ema_decay=0.99, seed=seed,
        ),
        features={"widths": (8, 16, 32)},
        feature_iterations=400,
        labeller={"widths": (8, 16, 32), "residual_units": 1},
        labeller_iterations=600,
        labeller_sees="real",
        detail=0.4,
        mapping_draws=512,
        seed=seed,
    )  # fmt: skip


class Some(Sequence[Any]):
    """Some of the volumes of a training set, on its grid, with tissues as labels."""

    def __init__(self, volumes: Any, which: list[int]) -> None:
        self.volumes, self.which, self.affine = volumes, which, volumes.affine
        self.tissue = np.zeros(len(BrainRegion), np.uint8)
        for label, members in enumerate(TISSUES.values(), 1):
            self.tissue[list(members)] = label

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: Any) -> Any:
        image, labels = self.volumes[self.which[index]]
        return image, self.tissue[labels]


def part(whole: TrainingSet, which: list[int]) -> TrainingSet:
    """Return some of the cases."""
    table = {name: [column[n] for n in which] for name, column in whole.table.items()}
    return TrainingSet(Some(whole.volumes, which), which, table, whole.kinds, 1 + len(TISSUES))  # type: ignore[arg-type]


def rows_of(cases: TrainingSet, which: Sequence[int]) -> list[dict[str, Any]]:
    """Return the conditions of cases."""
    return [{name: column[n] for name, column in cases.table.items()} for n in which]


def as_set(cases: TrainingSet, which: Sequence[int]) -> SynthesisSet:
    """Return cases as an evaluation reads them."""
    pairs = [cases.volumes[n] for n in which]
    images = torch.stack([torch.as_tensor(image[0]) for image, _ in pairs]).float()
    return SynthesisSet(images, torch.stack([torch.as_tensor(known[0]) for _, known in pairs]))


def within(cases: TrainingSet, known: TrainingSet) -> list[int]:
    """Return the cases whose numbers are within the range of others."""
    ranges = {
        name: (min(column), max(column))
        for name, column in known.table.items()
        if known.kinds[name] == "continuous"
    }
    return [
        n
        for n in range(len(cases.subjects))
        if all(low <= cases.table[name][n] <= high for name, (low, high) in ranges.items())
    ]


class Run(Work):
    """What was made so far, in a folder."""

    def __init__(self, how: argparse.Namespace) -> None:
        super().__init__(how.work)
        self.how = how
        population = self.folder / "population"
        if not (population / "cases.csv").exists():
            cohort = BrainCohort(how.subjects, seed=how.seed)
            write_brain_population(population, cohort, workers=how.workers)
        if how.stage == "population":
            return
        whole = read_training_set(population, CONDITIONS, percentiles=PERCENTILES)
        numbers = list(range(how.subjects))
        last = how.subjects - max(2, how.subjects // 5)
        self.train, self.held_out = (part(whole, n) for n in (numbers[:last], numbers[last:]))
        self.asked = within(self.held_out, self.train)

    def generator(self) -> Path:
        """Return the file of the generator, weights in half precision."""
        return self.once(
            "generator.safetensors",
            lambda: train_generator(
                self.train, recipe(self.how.seed), device=self.how.device,
                checkpoints=self.folder / "checkpoints", progress=told(),
            ).to_bytes(half=True),
        )  # fmt: skip

    def segmenter(self) -> SegmenterModel:
        """Return what measures ventricles and brain in images, of training cases alone.

        It has other widths and another seed than the labeller that leads latents.
        """

        def make() -> bytes:
            cases = as_set(self.train, range(len(self.train.subjects)))
            loop = LoopSettings(
                iterations=400, batch_size=2, learning_rate=5e-3, validate_every=50,
                seed=self.how.seed + 1,
            )  # fmt: skip
            settings = SegmenterSettings(1 + len(TISSUES), widths=(12, 24, 48), residual_units=1)
            checkpoint = self.folder / "checkpoints" / "segmenter.pt"
            return train_segmenter(
                cases.pairs(), settings, loop, device=self.how.device, checkpoint=checkpoint
            ).to_bytes()

        return SegmenterModel.read(self.once("segmenter.safetensors", make))

    def draw(self) -> tuple[SynthesisSet, dict[str, Any]]:
        """Return a volume for each of the subjects that are asked for, and what one costs."""
        rows, file = rows_of(self.held_out, self.asked), self.generator()

        def make() -> bytes:
            generator = Generator.read(file).to(self.how.device)

            def draw(which: Sequence[int]) -> list[Any]:
                return generator.sample(
                    [rows[n] for n in which], list(which), corrections=self.how.corrections
                )

            cost = sampling_cost(lambda n: draw([n]), 5, device=self.how.device)
            write_json_atomic(self.folder / "cost.json", cost)
            made = [draw([n])[0] for n in range(len(rows))]
            arrays = {
                "images": np.stack([v.image.cpu().numpy()[0] for v in made]).astype(np.float16),
                "labels": np.stack([v.labels.cpu().numpy()[0] for v in made]).astype(np.uint8),
            }
            return packed(arrays)

        found = unpacked(self.once("drawn.npz", make))
        images, labels = (torch.from_numpy(found[name]) for name in ("images", "labels"))
        cost = json.loads((self.folder / "cost.json").read_text())
        return SynthesisSet(images.float().clamp(0, 1), labels), cost

    def evaluate(self) -> dict[str, Any]:
        """Return the evaluation of what was drawn; its page lies beside it."""
        made, cost = self.draw()
        segmenter = self.segmenter()

        def make() -> bytes:
            generator = Generator.read(self.generator())
            real, held = (
                as_set(cases, range(len(cases.subjects))) for cases in (self.train, self.held_out)
            )
            kept = reconstructions_of(generator, held)
            asked = rows_of(self.held_out, self.asked)
            found = evaluate_synthesis(
                real, held, made, {name: [row[f"{name}_ml"] for row in asked] for name in REGIONS},
                segmenter=segmenter, reconstruction=kept, cost=cost, controls=True, simulated=True,
                measures={name: Measured(region=name, unit="ml") for name in REGIONS},
                settings=EvaluationSettings(
                    REGIONS, (3.0, 3.0, 3.0), self.how.alignment, seed=self.how.seed
                ),
                study={"title": "Simulated brains", "what": "generator, drawn heads"},
                progress=lambda what: print(f"  {what}", flush=True),
            )  # fmt: skip
            write_bytes_atomic(self.folder / "evaluation.html", synthesis_page(found).encode())
            return json.dumps(found).encode()

        return json.loads(self.once("evaluation.json", make).read_bytes())


def told() -> Callable[[str, Progress], None]:
    """Return what prints every 50th step of a training."""

    def tell(stage: str, at: Progress) -> None:
        if at.iteration % 50 == 0:
            print(f"  {stage} {at.iteration} loss {at.loss:.4f} held out {at.metric}", flush=True)

    return tell


def read_arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument(
        "--stage", choices=["population", "train", "draw", "evaluate"], default="evaluate"
    )
    parser.add_argument(
        "--alignment", choices=["rigid", "shift"], default="rigid", help="before t maps"
    )
    parser.add_argument("--subjects", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes, of the population")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--corrections", type=int, default=6, help="see DrawSettings")
    parser.add_argument("--pin", action="store_true", help="package the generator")
    return parser.parse_args()


def figures(run: Run) -> dict[str, Any]:
    """Return what is said of the generator."""
    evaluation, (made, _) = run.evaluate(), run.draw()
    assert made.labels is not None
    asked = rows_of(run.held_out, run.asked)
    found = label_volumes(made.labels, (3.0, 3.0, 3.0), REGIONS)
    own = {
        name: condition_agreement([row[f"{name}_ml"] for row in asked], found[name] / 1000)
        for name in REGIONS
    }
    generator = Generator.read(run.generator())
    route: Any = generator.route
    samples = TokeniserSamples(run.held_out.volumes, 1, generator.route.label_classes)
    return {
        "what": "generator of simulated brains, on heads that it was not trained with",
        "versions": versions("medpipe", "torch", "monai", "numpy"),
        "grid": "64 x 64 x 64 of 3 mm",
        "cases": {
            name: len(part.subjects)
            for name, part in (("train", run.train), ("held_out", run.held_out))
        },
        "drawn": len(made),
        "corrections": run.how.corrections,
        "alignment": run.how.alignment,
        "weights": sum(v.numel() for n in route.networks for v in n.parameters()),
        "file_bytes": run.generator().stat().st_size,
        "autoencoder": measure_autoencoder(route.autoencoder, samples),
        "cpu_seconds": run.spent(),
        **row_of(evaluation, own),
    }


CARD = """# Demonstration: MR volumes of heads that do not exist

**A demonstration trained on simulated heads. It shows how synthesis works; nothing in its
volumes was observed in a patient.** It is there so that `medpipe run synthesize-brain` draws
something before anybody has trained a generator of their own.

- **Asked for**: age in years, sex, volume of the lateral ventricles and of the brain in ml.
- **Draws**: a T1-weighted volume of {grid} mm, and its labels: grey and
  white matter, lateral ventricles, fluid, the rest of the head, by a segmenter on what was
  drawn. Its latent is moved, up to {corrections} times and as little as will do, until this
  segmenter sees what was asked for. At each place intensities are spread as in the heads of the
  training. They are those of brain; fat is as bright as white matter.
- **Networks**: an autoencoder (cells of 4 voxels, 8 numbers each) and a denoiser of its
  latents (rectified flow), {weights:,} weights in half precision; {bytes:.1f} MB.
- **Training**: {train} drawn heads (`medpipe data brain-population`, seed 0); no image of a
  patient. {minutes:.0f} minutes on one thread.
- **Made by** `python benchmarks/synthesis_brain.py WORK --pin`.
- **Cost**: {seconds:.1f} s a volume on one thread.

## How well it does
{drawn} volumes, asked for the numbers of subjects that it was not trained with, against the
{held} of them (95 % intervals). Measured by a segmenter that took no part: other widths, another
seed, the same training heads.

{rows}

## Limits
Drawn heads have no disease, no vessels, no contrast agent and few sulci. How age and sex go
with the brain was written down, not observed. Voxels of 3 mm.
"""


def pin(run: Run, found: dict[str, Any], rows: list[str]) -> None:
    """Put the generator into the package."""
    content = run.generator().read_bytes()
    card = CARD.format(
        grid="64 × 64 × 64 voxels of 3",
        weights=found["weights"],
        corrections=found["corrections"],
        bytes=len(content) / 1e6,
        train=found["cases"]["train"],
        held=found["cases"]["held_out"],
        minutes=found["cpu_seconds"]["generator.safetensors"] / 60,
        seconds=found["cost"]["seconds_per_sample"],
        drawn=found["drawn"],
        rows="\n".join(rows),
    )
    package_model(NAME, content, card, "synthesis")


def main() -> None:
    """Do the stages that are asked for."""
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    run = Run(arguments)
    if arguments.stage == "train":
        run.generator()
    elif arguments.stage == "draw":
        run.draw()
    elif arguments.stage == "evaluate":
        found = figures(run)
        rows = card_rows(found, [(name, name) for name in REGIONS])
        print("\n".join(rows))
        print(write_results("synthesis_brain", found))
        if arguments.pin:
            pin(run, found, rows)


if __name__ == "__main__":
    main()
