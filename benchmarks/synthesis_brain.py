"""The packaged generator of brains: made from nothing, judged, and put into the package.

    python benchmarks/synthesis_brain.py WORK [--stage population|train|draw|all] [--pin]

Heads are drawn (`medpipe data brain-population`, 64 x 64 x 64 voxels of 3 mm), four subjects
of each. Four fifths of the heads train a generator that is told age, sex, and the volumes of
the lateral ventricles and of the brain; the others are held out. A volume is drawn for each
subject of a quarter of the training heads, asked for its numbers, and evaluated against
training and held-out cases: are the ventricles as large as asked, by a segmenter that sees
the images alone, and where do means differ. What is done is in WORK and not done twice.
``--pin`` puts generator and card into the package.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, ROOT, versions, write_results

from medpipe.io.atomic import write_bytes_atomic, write_json_atomic
from medpipe.io.manifest import read_manifest
from medpipe.phantoms.brain_population_folder import BrainCohort, write_brain_population
from medpipe.phantoms.brain_population_labels import BRAIN, BrainRegion
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
from medpipe.train import LoopSettings, Progress

NAME = "synthesis-brain"
MODELS = ROOT / "medpipe" / "models"
CONDITIONS = ("age_years", "sex", "ventricle_ml", "brain_ml")
REGIONS = {"ventricle": 1, "brain": 2}
"""Of the segmenter that measures; all else is background."""


def recipe(seed: int) -> GeneratorTraining:
    """Return how the generator is trained."""
    return GeneratorTraining(
        route="latents",
        autoencoder=AutoencoderSettings(
            channels=(16, 48, 96), latent_channels=8, groups=8, patch_voxels=2, transposed=True
        ),
        autoencoder_training=AutoencoderTraining(
            iterations=1000, batch_size=2, learning_rate=2.5e-3, validate_every=200, seed=seed
        ),
        denoiser={
            "channels": (48, 96), "attention": (False, True), "groups": 8,
            "conditioning": "embedding", "condition_width": 32,
        },
        denoiser_training=DenoiserTraining(
            iterations=2000, batch_size=8, learning_rate=2e-3, warmup=50, validate_every=100,
            ema_decay=0.99, seed=seed,
        ),
        seed=seed,
    )  # fmt: skip


class Some(Sequence[Any]):
    """Some of the volumes of a training set, on its grid."""

    def __init__(self, volumes: Any, which: list[int]) -> None:
        self.volumes, self.which, self.affine = volumes, which, volumes.affine

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: Any) -> Any:
        return self.volumes[self.which[index]]


def part(whole: TrainingSet, heads: list[int], which: list[int]) -> TrainingSet:
    """Return some of the cases; those of one head are of one subject: they share anatomy."""
    table = {name: [column[n] for n in which] for name, column in whole.table.items()}
    subjects = [heads[n] for n in which]
    return TrainingSet(
        Some(whole.volumes, which), subjects, table, whole.kinds, whole.label_classes
    )  # type: ignore[arg-type]


def rows_of(cases: TrainingSet, which: Sequence[int]) -> list[dict[str, Any]]:
    """Return the conditions of cases."""
    return [{name: column[n] for name, column in cases.table.items()} for n in which]


def regions(labels: torch.Tensor) -> torch.Tensor:
    """Return ventricle and brain alone, as REGIONS numbers them."""
    table = torch.zeros(len(BrainRegion), dtype=torch.uint8)
    table[BrainRegion.LATERAL_VENTRICLE] = REGIONS["ventricle"]
    table[[int(label) for label in BRAIN]] = REGIONS["brain"]
    return table[labels.long()]


def as_set(cases: TrainingSet, which: Sequence[int]) -> SynthesisSet:
    """Return cases as an evaluation reads them."""
    pairs = [cases.volumes[n] for n in which]
    images = torch.stack([torch.as_tensor(image[0]) for image, _ in pairs]).float()
    return SynthesisSet(images, torch.stack([torch.as_tensor(known[0]) for _, known in pairs]))


class Run:
    """What was made so far, in a folder."""

    def __init__(self, how: argparse.Namespace) -> None:
        self.how, self.folder = how, how.work
        self.folder.mkdir(parents=True, exist_ok=True)
        population = self.folder / "population"
        if not (population / "cases.csv").exists():
            cohort = BrainCohort(how.subjects, seed=how.seed, anatomies=how.heads)
            write_brain_population(population, cohort, workers=how.workers)
        if how.stage == "population":
            return
        whole = read_training_set(population, CONDITIONS)
        cases = read_manifest(population / "cases.csv", inputs=["image", "labels"])
        names = [case.covariates["anatomy"] for case in cases]
        order = {name: n for n, name in enumerate(dict.fromkeys(names))}
        heads = [order[name] for name in names]
        last = len(order) - max(2, len(order) // 5)
        sides = [[n for n, h in enumerate(heads) if (h >= last) == held] for held in (False, True)]
        self.train, self.held_out = (part(whole, heads, which) for which in sides)
        # of each fourth head, all subjects
        self.asked = [n for n, h in enumerate(self.train.subjects) if h % 4 == 0]

    def once(self, name: str, make: Callable[[], bytes]) -> Path:
        """Make a file if it is not there; its seconds are kept beside it."""
        path = self.folder / name
        if not path.exists():
            print(name, flush=True)
            start = time.process_time()
            write_bytes_atomic(path, make())
            spent = {"cpu_seconds": round(time.process_time() - start, 1)}
            write_json_atomic(self.folder / f"{name}.seconds.json", spent)
        return path

    def generator(self) -> Path:
        """Return the file of the generator, weights in half precision."""
        return self.once(
            "generator.safetensors",
            lambda: train_generator(
                self.train, recipe(self.how.seed), device=self.how.device,
                checkpoints=self.folder / "checkpoints", progress=told(),
            ).to_bytes(half=True),
        )  # fmt: skip


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
    parser.add_argument("--subjects", type=int, default=320)
    parser.add_argument("--heads", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes, of the population")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--pin", action="store_true", help="package the generator")
    return parser.parse_args()
