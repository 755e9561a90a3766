"""The trainer of outcomes on real pictures: head CT, chest radiographs and hands, 64 x 64.

    python benchmarks/outcome_mednist.py [--threads 2] [--per-class 500] [--iterations 160]

Reads ``mednist_64/{HeadCT,CXR,Hand}_all.zip`` of the folder of real images. The training
code is that of volumes, with ``spatial_dims=2``. Who the pictures are of is not known, so
files are split, not patients: pictures of one patient may train and be tested. Writes
results/outcome_mednist.json.
"""

from __future__ import annotations

import argparse
import io
import time
import zipfile

import numpy as np
import torch
from common import real_folder, versions, write_results
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import norm

from medpipe.outcome.augment import Augmentation
from medpipe.outcome.ensemble import ensemble_probability, predict_volumes
from medpipe.outcome.network import OutcomeNetworkSettings
from medpipe.outcome.training import OutcomeTraining, train_fold
from medpipe.train import Progress

CLASSES = ("HeadCT", "CXR", "Hand")


def pictures(name: str, count: int, seed: int) -> list[NDArray[np.uint8]]:
    """Return `count` pictures of a class, drawn by the seed."""
    with zipfile.ZipFile(real_folder() / "mednist_64" / f"{name}_all.zip") as archive:
        members = sorted(m for m in archive.namelist() if m.endswith((".jpeg", ".jpg")))
        chosen = np.random.default_rng(seed).permutation(len(members))[:count]
        return [
            np.asarray(Image.open(io.BytesIO(archive.read(members[n]))).convert("L"))
            for n in chosen
        ]


def wilson(right: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of Wilson of a share."""
    z = float(norm.ppf(0.5 + level / 2))
    share = right / total
    middle = share + z * z / (2 * total)
    half = z * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return tuple(float((middle + s * half) / (1 + z * z / total)) for s in (-1, 1))


def main() -> None:
    """Train, ask about pictures that were held out, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--per-class", type=int, default=500)
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--iterations", type=int, default=160)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    began = time.perf_counter()
    train_with: list[NDArray[np.uint8]] = []
    held_out: list[NDArray[np.uint8]] = []
    for name in CLASSES:
        found = pictures(name, args.per_class + args.held_out, args.seed)
        train_with += found[: args.per_class]
        held_out += found[args.per_class :]
    settings = OutcomeTraining(
        preset="pictures",
        iterations=args.iterations,
        batch_size=32,
        learning_rate=5e-3,
        validate_every=40,
        patience=None,
        augmentation=Augmentation(
            mirror_axes=(1,), rotate_deg=15.0, scale=(0.85, 1.25), gamma=(0.7, 1.5)
        ),
        seed=args.seed,
    )

    def tell(at: Progress) -> None:
        if at.iteration % 20 == 0:
            print(
                f"{at.iteration}/{at.iterations} loss {at.loss:.4f} {at.seconds:.0f} s", flush=True
            )

    model = train_fold(
        train_with,
        np.repeat(np.arange(len(CLASSES)), args.per_class),
        settings,
        network_settings=OutcomeNetworkSettings(
            spatial_dims=2, channels=1, outputs=len(CLASSES), architecture="small"
        ),
        device=args.device,
        progress=tell,
    )
    trained = time.perf_counter()
    said = predict_volumes(
        [model], held_out, preset="pictures", spatial_dims=2, batch_size=100, device=args.device
    )
    choice = ensemble_probability(said).argmax(-1).cpu().numpy()
    truth = np.repeat(np.arange(len(CLASSES)), len(held_out) // len(CLASSES))
    confusion = np.zeros((len(CLASSES),) * 2, int)
    np.add.at(confusion, (truth, choice), 1)
    right, total = int(np.trace(confusion)), int(confusion.sum())
    low, high = wilson(right, total)
    results = {
        "what": "held-out accuracy of three kinds of real pictures, split by file",
        "data": "MedNIST (CC BY-SA 4.0), 64 x 64; patients unknown",
        "threads": args.threads,
        "device": args.device,
        "versions": versions("torch", "monai", "pytorch-ignite"),
        "network": "small DenseNet, spatial_dims=2",
        "weights": sum(p.numel() for p in model.network.parameters()),
        "training": {
            "n": model.counts["trained"],
            "validated": model.counts["validated"],
            "iterations": model.iterations,
            "best_iteration": model.best_iteration,
            "batch_size": settings.batch_size,
            "seed": args.seed,
        },
        "accuracy": {
            "value": round(right / total, 5),
            "low": round(low, 5),
            "high": round(high, 5),
            "method": "Wilson, 95 %",
            "n": total,
            "wrong": total - right,
        },
        "classes": list(CLASSES),
        "confusion_rows_true": confusion.tolist(),
        "seconds": {
            "training": round(trained - began, 1),
            "prediction": round(time.perf_counter() - trained, 1),
        },
    }
    print(results["accuracy"], write_results("outcome_mednist", results))


if __name__ == "__main__":
    main()
