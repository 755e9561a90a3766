"""Train generators of hippocampi, draw as many as there are, and judge them in one table.

    python benchmarks/synthesis_hippocampus.py WORK [--seeds 0 1 2 3 4] [--routes tokens latents]
        [--stage train|draw|evaluate|all] [--alignment shift|rigid] [--tiny] [--pin]

For each seed: a generator of each route, a Gaussian of principal components and a deformed
template are fitted to the training cases of data_manifests/hippocampus_split.json; each draws
a volume for each training case, asked for the volumes of its two regions. One segmenter,
trained with the same cases, measures all sets. What is done is in WORK and not done twice: a
run that was stopped goes on. The table is written to benchmarks/results (one with tokens to a
file of its own), of --tiny (a few cases and iterations, which say nothing) to WORK. ``--pin``
puts the generator of the first seed and its card into the package.

Who is what: generators, baselines and segmenter see the training cases alone (a share of
them stops the trainings). The settings of the generators were chosen in trials that were
judged on the same held-out cases, by other segmenters and, of the share of detail, by those of
this table: validation and test cases together, 42. The table says what the 21 test cases alone
give where that is a mean of cases.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, package_model, real_folder, versions, write_results
from synthesis_common import Work, card_rows, packed, row_of, unpacked
from synthesis_hippocampus_table import reached, summary, table_text

from medpipe.errors import MedpipeError
from medpipe.io.atomic import write_bytes_atomic, write_json_atomic
from medpipe.io.case import Case
from medpipe.report.synthesis_page import synthesis_page
from medpipe.synthesis import (
    AutoencoderSettings,
    AutoencoderTraining,
    DenoiserTraining,
    EvaluationSettings,
    Generator,
    GeneratorTraining,
    LossWeights,
    Measured,
    PairSettings,
    PcaGaussian,
    PriorTraining,
    RegistrationSettings,
    SegmenterModel,
    SegmenterSettings,
    SynthesisSet,
    TemplateDeformation,
    TokeniserSettings,
    TokeniserTraining,
    dice_of_regions,
    load_pairs,
    read_split,
    stacked,
    train_generator,
    train_segmenter,
)
from medpipe.synthesis.cost import sampling_cost
from medpipe.synthesis.evaluation import evaluate_synthesis
from medpipe.synthesis.evaluation_parts import half_real
from medpipe.synthesis.generator_facts import likelihoods_of, reconstructions_of
from medpipe.synthesis.metrics import Agreement, condition_agreement, label_volumes
from medpipe.synthesis.training_files import TrainingSet
from medpipe.train import LoopSettings

SIZE = (32, 56, 40)
"""The smallest multiples of 8 voxels that cut no label."""
REGIONS = {"anterior": 1, "posterior": 2}
NAMES = {"anterior_ml": "anterior", "posterior_ml": "posterior"}
FEW = 20
BASELINES = ("pca", "template")
SAID = ("tiny", "alignment", "temperature", "guidance", "corrections", "candidates")
"""Arguments that decide what is drawn."""
TINY = {"train": 12, "held_out": 8}


@dataclass(frozen=True)
class Cases:
    """Images and labels (n, 1, I, J, K) of a part, and the volumes of its regions in ml."""

    images: torch.Tensor
    labels: torch.Tensor
    ml: torch.Tensor

    def set(self) -> SynthesisSet:
        """Return what an evaluation reads."""
        return SynthesisSet(self.images[:, 0], self.labels[:, 0])

    def rows(self) -> list[dict[str, float]]:
        """Return the volumes of each case by the names of the conditions."""
        return [dict(zip(NAMES, map(float, ml), strict=True)) for ml in self.ml]


class Volumes(list[Any]):
    """Pairs that a generator is trained with, and their place."""

    affine = np.eye(4)


def read_cases(tiny: bool) -> tuple[Cases, Cases, int]:
    """Return training and held-out cases, and how many of the latter are test cases."""
    split = read_split(ROOT / "data_manifests" / "hippocampus_split.json")
    folder = real_folder() / "hippocampus"
    parts = []
    for ids in (split.parts["train"], split.parts["test"], split.parts["validation"]):
        few = (TINY["train"] if len(ids) > 100 else TINY["held_out"] // 2) if tiny else len(ids)
        cases = [
            Case(i, {k: str(folder / k / f"{i}.nii.gz") for k in ("images", "labels")})
            for i in ids[:few]
        ]
        pairs = load_pairs(cases, PairSettings(SIZE, 3), image="images")
        images, labels = stacked(pairs)
        assert labels is not None
        parts.append(Cases(images, labels, torch.tensor([p.volumes_ml for p in pairs])))
    both = [torch.cat([getattr(p, f) for p in parts[1:]]) for f in ("images", "labels", "ml")]
    return parts[0], Cases(*both), len(parts[1].images)


def training_set(cases: Cases) -> TrainingSet:
    """Return what a generator is trained with: each case is a patient of its own."""
    pairs = Volumes(zip(cases.images.numpy(), cases.labels.numpy(), strict=True))
    columns = {name: [row[name] for row in cases.rows()] for name in NAMES}
    return TrainingSet(
        pairs, list(range(len(pairs))), columns, dict.fromkeys(NAMES, "continuous"), 3
    )  # type: ignore[arg-type]


class Run(Work):
    """One seed: its folder, and what was made so far."""

    def __init__(self, arguments: argparse.Namespace, seed: int) -> None:
        super().__init__(arguments.work / f"seed{seed}", f"seed {seed}: ")
        self.how, self.seed = arguments, seed
        self.train, self.held_out, self.tests = read_cases(arguments.tiny)
        self.rows = (*arguments.routes, *BASELINES)

    def fit(self, row: str) -> Path:
        """Return the file of a generator or a baseline."""
        cases, seed = self.train, self.seed

        def make() -> bytes:
            if row in self.how.routes:
                training = recipe(row, seed, self.how.tiny)
                made = train_generator(
                    training_set(cases), training, device=self.how.device,
                    checkpoints=self.folder / "checkpoints" / row,
                )  # fmt: skip
                return made.to_bytes(half=True)
            known = {name: [r[name] for r in cases.rows()] for name in NAMES}
            told: dict[str, Any] = {"label_classes": 3, "conditions": known, "seed": seed}
            if row == "pca":
                return PcaGaussian.fit(cases.images, cases.labels, **told).to_bytes()
            quick = RegistrationSettings(rounds=1, iterations=2) if self.how.tiny else None
            return TemplateDeformation.fit(
                cases.images, cases.labels, settings=quick, **told
            ).to_bytes()

        return self.once(f"{row}.safetensors", make)

    def sampler(self, row: str, file: Path) -> Callable[[list[Any], list[int]], tuple[Any, Any]]:
        """Return what draws images and labels (n, 1, I, J, K) for rows of conditions."""
        if row not in self.how.routes:
            kind: Any = PcaGaussian if row == "pca" else TemplateDeformation
            model = kind.read(file.read_bytes())
            return lambda asked, seeds: model.sample(seeds, asked)
        generator = Generator.read(file).to(self.how.device)

        def drawn(asked: list[Any], seeds: list[int]) -> tuple[Any, Any]:
            found = generator.sample(
                asked, seeds, temperature=self.how.temperature, guidance=self.how.guidance,
                batch=16, **self.how.towards[row],
            )  # fmt: skip
            images, labels = zip(*((v.image, v.labels) for v in found), strict=True)
            return (torch.stack([x.as_tensor().cpu() for x in part]) for part in (images, labels))  # type: ignore[return-value]

        return drawn

    def draw(self, row: str) -> SynthesisSet:
        """Return a volume for each training case, asked for its volumes."""
        asked = self.train.rows()

        file = self.fit(row)

        def make() -> bytes:
            draw = self.sampler(row, file)
            cost = sampling_cost(
                lambda k: draw(asked[k : k + 1], [10**6 + k]), 3, device=self.how.device
            )
            start = time.perf_counter()
            images, labels = draw(asked, [10_000 * self.seed + k for k in range(len(asked))])
            cost["seconds_each_together"] = (time.perf_counter() - start) / len(asked)
            (self.folder / "cost").mkdir(exist_ok=True)
            write_json_atomic(self.folder / "cost" / f"{row}.json", cost)
            # real images are cut at 0 and 1 too
            arrays = {"images": images.clamp(0, 1).half(), "labels": labels.to(torch.uint8)}
            return packed({name: values.numpy() for name, values in arrays.items()})

        found = unpacked(self.once(f"drawn/{row}.npz", make))
        images = torch.from_numpy(found["images"]).float()
        return SynthesisSet(images[:, 0], torch.from_numpy(found["labels"])[:, 0])

    def loop(self) -> LoopSettings:
        """Return how every segmenter of this seed is trained."""
        steps = 12 if self.how.tiny else 500
        return LoopSettings(
            iterations=steps, batch_size=2, learning_rate=5e-3, validate_every=max(10, steps // 8),
            seed=self.seed,
        )  # fmt: skip

    def network(self, size: int) -> dict[str, Any]:
        """Return the widths of a segmenter: 2 measures, 1 is for the utility."""
        if self.how.tiny:
            return {"widths": (4, 4 * size), "residual_units": 1}
        return {"widths": (8 * size, 16 * size, 32 * size), "residual_units": 1}

    def segmenter(self) -> SegmenterModel:
        """Return what measures all sets of this seed."""

        def make() -> bytes:
            loop = self.loop()
            loop = replace(loop, iterations=(8 if self.how.tiny else 3) * loop.iterations)
            return train_segmenter(
                self.train.set().pairs(), SegmenterSettings(3, **self.network(2)), loop,
                device=self.how.device, checkpoint=self.folder / "checkpoints" / "segmenter.pt",
            ).to_bytes()  # fmt: skip

        (self.folder / "checkpoints").mkdir(exist_ok=True)
        return SegmenterModel.read(self.once("segmenter.safetensors", make))

    def evaluate(self, row: str) -> dict[str, Any]:
        """Return the evaluation of a set; its page lies beside it."""

        made, asked, segmenter = self.draw(row), self.train.rows(), self.segmenter()

        def make() -> bytes:
            facts: dict[str, Any] = {}
            if row in self.how.routes:
                generator = Generator.read(self.fit(row)).to(self.how.device)
                facts["reconstruction"] = reconstructions_of(generator, self.held_out.set())
                pairs = {
                    name: likelihoods_of(generator, cases.set(), cases.rows())
                    for name, cases in (("held_out", self.held_out), ("training", self.train))
                }
                facts["likelihoods"] = {k: v for k, v in pairs.items() if v is not None}
            try:
                found = self.evaluated(made, asked, segmenter, row, facts)
            except MedpipeError as error:  # of a generator that has learned nothing
                return json.dumps({"failed": str(error)}).encode()
            write_bytes_atomic(self.folder / f"{row}.html", synthesis_page(found).encode())
            return json.dumps(found).encode()

        return json.loads(self.once(f"{row}.json", make).read_bytes())

    def evaluated(
        self, made: SynthesisSet, asked: list[dict[str, float]], segmenter: SegmenterModel,
        row: str, facts: dict[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        """Return the evaluation of a set that was drawn."""
        cost = json.loads((self.folder / "cost" / f"{row}.json").read_text())
        return evaluate_synthesis(
            self.train.set(), self.held_out.set(), made,
            {name: [a[name] for a in asked] for name in NAMES}, segmenter=segmenter,
            settings=self.settings(), controls=True, progress=lambda what: print(f"  {what}"),
            measures={k: Measured(region=v, unit="ml") for k, v in NAMES.items()}, cost=cost,
            study={"title": f"Hippocampi: {row}, seed {self.seed}"}, **facts,
        )  # fmt: skip

    def settings(self) -> EvaluationSettings:
        """Return those of the evaluation, the same for all sets."""
        quick: dict[str, int] = {"resamples": 60, "splits": 4, "pairs": 12, "permutations": 19}
        return EvaluationSettings(
            REGIONS, (1.0, 1.0, 1.0), self.how.alignment, seed=self.seed,
            **(quick if self.how.tiny else {}),  # type: ignore[arg-type]
        )  # fmt: skip

    def own_labels(self, row: str) -> dict[str, Agreement]:
        """Return how the labels that were drawn with the images agree with what was asked."""
        made = self.draw(row)
        assert made.labels is not None
        found = label_volumes(made.labels, (1, 1, 1), REGIONS)
        asked = self.train.rows()
        return {
            name: condition_agreement([a[name] for a in asked], found[region] / 1000)
            for name, region in NAMES.items()
        }

    def utility(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the Dice of each held-out case after each way to train, by region."""
        real = self.train.set()
        order = np.random.default_rng(self.seed).permutation(len(real)).tolist()
        few = real.pairs(order[: min(FEW, len(real) // 2)])
        ways: dict[str, Callable[[], list[Any]]] = {
            "real few": lambda: few,
            "real all": real.pairs,
        }
        for row in self.rows:
            ways[row] = lambda row=row: self.draw(row).pairs()  # type: ignore[misc]
            ways[f"real few + {row}"] = lambda row=row: half_real(few, self.draw(row).pairs())  # type: ignore[misc]
        out = {}
        for name, samples in ways.items():

            def make(name: str = name, samples: Callable[[], list[Any]] = samples) -> bytes:
                model = train_segmenter(
                    samples(), SegmenterSettings(3, **self.network(1)),
                    self.loop(), device=self.how.device, validation_share=0.0,
                )  # fmt: skip
                held = self.held_out.set()
                assert held.labels is not None
                found = dice_of_regions(model.labels(held.images), held.labels, REGIONS)
                return packed(dict(found))

            out[name] = unpacked(self.once(f"dice/{name.replace(' ', '_')}.npz", make))
        return out


def recipe(route: str, seed: int, tiny: bool) -> GeneratorTraining:
    """Return how a generator is trained: its preset, or hardly at all."""
    if tiny:
        return GeneratorTraining(
            TokeniserSettings(widths=(8, 8, 8), residual_units=1, codes=32, code_width=8),
            TokeniserTraining(iterations=6, batch_size=2, seed=seed),
            {"width": 32, "layers": 1, "heads": 2},
            PriorTraining(iterations=6, warmup=2, seed=seed), route,  # type: ignore[arg-type]
            AutoencoderSettings(
                channels=(8, 8), groups=4, latent_channels=2, patch_voxels=4, label_classes=3
            ),
            AutoencoderTraining(iterations=5, batch_size=2, seed=seed),
            {"channels": (8, 16), "groups": 4, "head_channels": 4, "attention": (False, False)},
            DenoiserTraining(iterations=6, batch_size=4, warmup=2, seed=seed), copies=1,
        )  # fmt: skip
    if route == "latents":
        return GeneratorTraining.preset("hippocampus", seed=seed)
    return GeneratorTraining(
        TokeniserSettings(
            label_classes=3, widths=(16, 48, 96), residual_units=1, codes=256, code_width=8,
            decay_steps=300,
        ),
        TokeniserTraining(
            iterations=900, batch_size=2, learning_rate=2e-3, validate_every=150,
            unquantised_share=0.15, weights=LossWeights(spectral=0.0), seed=seed,
        ),
        {"width": 96, "layers": 3, "heads": 4, "dropout": 0.2, "positions": "learned"},
        PriorTraining(
            iterations=900, batch_size=16, learning_rate=2e-3, warmup=50, validate_every=50,
            patience=5, seed=seed,
        ),
        shift_voxels=2, copies=3, seed=seed,
    )  # fmt: skip


def read_arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--routes", nargs="+", choices=["tokens", "latents"], default=["tokens", "latents"]
    )
    parser.add_argument("--stage", choices=["train", "draw", "evaluate", "all"], default="all")
    parser.add_argument("--alignment", choices=["rigid", "shift"], default="shift")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--corrections", type=int, default=6, help="of latents")
    parser.add_argument("--candidates", type=int, default=4, help="of tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--pin", action="store_true", help="package the first seed's latents")
    asked = parser.parse_args()
    asked.towards = {
        "latents": {"corrections": asked.corrections},
        "tokens": {"candidates": asked.candidates},
    }
    return asked


def main() -> None:
    """Do the stages that are asked for."""
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    check_folder(arguments)
    seeds: dict[int, dict[str, Any]] = {}
    for seed in arguments.seeds:
        run = Run(arguments, seed)
        for row in run.rows:
            run.fit(row)
            if arguments.stage != "train":
                run.draw(row)
        if arguments.stage in ("evaluate", "all"):
            found = {row: row_of(run.evaluate(row), run.own_labels(row)) for row in run.rows}
            seeds[seed] = {"rows": found, "dice": run.utility(), "spent": run.spent()}
    if not seeds:
        return
    counts = {"train": len(run.train.ml), "held_out": len(run.held_out.ml), "tests": run.tests}
    table = summary(seeds, counts, arguments.routes)
    table["reached"] = reached(table, arguments.routes)
    record = {
        "versions": versions("torch", "monai", "numpy", "scipy"), "cases": counts,
        "size_voxels": SIZE,
        "threads": arguments.threads, **{name: getattr(arguments, name) for name in SAID}, **table,
    }  # fmt: skip
    print(table_text(record))
    if arguments.tiny:
        write_json_atomic(arguments.work / "result.json", record)
    else:
        name = "_".join(["synthesis_hippocampus", *(r for r in arguments.routes if r != "latents")])
        write_results(name, record)
    if arguments.pin:
        pin(Run(arguments, arguments.seeds[0]), record)


CARD = """# Demonstration: hippocampi that do not exist

**A demonstration, for developing and testing methods. Nothing in its volumes was observed in a
patient, and nothing it draws may be used to judge one.**

- **Asked for**: volume of the anterior and of the posterior hippocampus in ml.
- **Draws**: an MR volume around a hippocampus, {size} voxels of 1 mm, and its labels (1
  anterior, 2 posterior), by a segmenter on what was drawn.
- **Networks**: an autoencoder (cells of 8 voxels, 24 numbers each), a denoiser of its latents
  (rectified flow) and the segmenter; weights in half precision, {bytes:.1f} MB.
- **Training**: {train} MR volumes of the Medical Segmentation Decathlon, task 4 (Antonelli et
  al. 2022, doi 10.1038/s41467-022-30695-9), those named `train` in
  `data_manifests/hippocampus_split.json`; {minutes:.0f} minutes on one thread.
- **Licence of the weights**: that of the images, CC BY-SA 4.0; the code that made them has its
  own.
- **Made by** `python benchmarks/synthesis_hippocampus.py WORK --routes latents --pin`, seed
  {seed}.
- **Cost**: {seconds:.1f} s a volume on one thread, with {corrections} corrections.

## How well it does
{drawn} volumes, asked for the numbers of the training cases, with {corrections} corrections,
against {held} cases that it was not trained with (95 % intervals). The segmenter that measures
is not the one of the generator. Other seeds, baselines, and what training with drawn volumes
is worth: `benchmarks/results/synthesis_hippocampus.json`.

{rows}

Copies: {verdict} (ratio of distances to the nearest training case, drawn over held out:
{ratio}). Who was a training case can be told with an AUC of {membership}
from distances (0.5: not at all).

## Limits
One contrast, crops of one centre, intensities scaled by each image's percentiles. Fine grain is
noise of the right strength, not anatomy. Who has the file can ask it for any volume: a gate
that finds no copies is no proof that nobody was learned by heart.
"""


SPAN = "{value:.2f}, {low:.2f} to {high:.2f}"


def pin(run: Run, record: dict[str, Any]) -> None:
    """Put the generator of a run into the package."""
    content = run.fit("latents").read_bytes()
    found = record["rows"]["latents"][str(run.seed)]
    ratio = found["privacy"]["ratio"]
    card = CARD.format(
        size=" × ".join(map(str, SIZE)), bytes=len(content) / 1e6, train=len(run.train.ml),
        minutes=run.spent()["latents.safetensors"] / 60, seed=run.seed,
        seconds=found["cost"]["seconds_per_sample"], corrections=run.how.corrections,
        drawn=len(run.train.ml), held=len(run.held_out.ml),
        rows="\n".join(card_rows(found, NAMES.items())), verdict=found["privacy"]["verdict"],
        ratio=SPAN.format(**ratio), membership=SPAN.format(**found["privacy"]["membership_auc"]),
    )  # fmt: skip
    package_model("synthesis-hippocampus", content, card, "synthesis")


def check_folder(arguments: argparse.Namespace) -> None:
    """Stop if WORK holds a run with other settings: files of both would be mixed."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    file = arguments.work / "settings.json"
    said = {name: getattr(arguments, name) for name in SAID}
    if file.exists() and json.loads(file.read_text()) != said:
        raise SystemExit(f"{arguments.work} holds a run with other settings: {file.read_text()}")
    write_json_atomic(file, said)


if __name__ == "__main__":
    main()
