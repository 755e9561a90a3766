"""The packaged model of learned centerline maps: how it was trained, how well it does, its digest.

    python benchmarks/centerline_model.py train OUT [--threads 2] [--iterations N]
    python benchmarks/centerline_model.py score FILE [--seeds 5] [--kind kissing] [--maps FOLDER]
    python benchmarks/centerline_model.py pin FILE

``train`` writes OUT.safetensors and keeps OUT.checkpoint.pt to continue from. ``score``
extracts trees of seeds below 1000, which no training has seen, with geodesic and with
learned ends, and writes results/centerline_model.json. ``pin`` copies the file into the
package, writes its card with those figures, and its digest into the registry.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, package_model, versions, write_results

from medpipe.centerline.extract import extract_centerline
from medpipe.centerline.maps import CenterlineMaps, learned_maps
from medpipe.centerline.metrics import compare_trees
from medpipe.centerline.network import CenterlineNetwork, network_from
from medpipe.centerline.settings import ExtractionSettings
from medpipe.centerline.training import TrainingSettings, train_centerline_maps
from medpipe.models import load_weights
from medpipe.phantoms.vessel_tree import NOISE_VOXELS, vessel_tree
from medpipe.train import Progress

COUNTS = ("leaves", "missed", "spurious")

CARD = """# Learned centerline maps

A 3-D encoder–decoder that reads a mask of a tree-shaped structure and says, for every
voxel, how far it lies between centerline and wall, and how sure it is that a branch ends
or a tree starts there. It is used where it is asked for (`endpoints = "learned"`) and never
by default; US 11,069,078 B2 and US 11,748,902 B2 claim paths from such maps.

- **Input**: a mask on cubic voxels and its distance to the background, in voxels. Other
  spacings are brought to cubes of the smallest one.
- **Output**: q = d_C / (d_C + d_B), heat map of ends, heat map of roots.
- **Network**: MONAI `UNet`, channels {channels}, {weights} weights in half precision.
- **Training**: {iterations} steps of {batch} patches of {patch}³ voxels of {trees} simulated trees
  (`medpipe.phantoms.vessel_tree`: smooth, rough and touching vessels, gaps, ostia), seeds
  1000 and above. No image of a patient was used. The best of the validations, after {best}
  steps, with a loss of {loss:.4f}, is packaged.
- **Made by** `python benchmarks/centerline_model.py`, which also measures and packs it.

## How well it does
Trees of 256³ voxels, seeds 0 to {last}, which no training has seen: leaves that were missed
and leaves that are none, summed.

| kind | leaves | geodesic ends | learned ends |
| --- | --: | --: | --: |
{rows}

## Limits
Trained on branches of 1 to 10 voxels in radius with round cross-sections; nothing was
learned about other shapes, about rings, or about ends that lie at the border of the image.
An end inside another vessel cannot be seen in a mask.
"""


def train(args: argparse.Namespace) -> None:
    """Train and write the model."""
    torch.set_num_threads(args.threads)
    settings = TrainingSettings(iterations=args.iterations)
    shown = None

    def tell(at: Progress) -> None:
        nonlocal shown
        if at.iteration % 25 == 0 or at.metric != shown:
            shown = at.metric
            print(f"{at.seconds:7.0f} s {at.iteration:6} {at.loss:.4f} {at.metric}", flush=True)

    content, history = train_centerline_maps(
        settings, checkpoint=f"{args.out}.checkpoint.pt", progress=tell, workers=1
    )
    Path(f"{args.out}.safetensors").write_bytes(content)
    Path(f"{args.out}.history.json").write_text(json.dumps(history, indent=1))


def score(args: argparse.Namespace) -> None:
    """Count missed and spurious leaves on trees that were held out."""
    torch.set_num_threads(1)
    network = network_from(*load_weights(args.file))
    rows: list[dict[str, Any]] = []
    for kind in [args.kind] if args.kind else list(NOISE_VOXELS):
        row: dict[str, Any] = {"kind": kind}
        each = [_compared(network, kind, seed, args.maps) for seed in range(args.seeds)]
        for name in each[0]:
            row[name] = {c: int(sum(one[name][c] for one in each)) for c in COUNTS}
            row[name]["error_voxel"] = float(np.mean([one[name]["error_mm"] / 0.5 for one in each]))
        row["maps_cpu_s"] = float(np.median([one["learned"]["maps_cpu_s"] for one in each]))
        print(json.dumps(row), flush=True)
        rows.append(row)
    if not args.kind:
        print(write_results(
            "centerline_model", {"rows": rows, "seeds": args.seeds, **versions("monai", "torch")}
        ))  # fmt: skip


def _compared(
    network: CenterlineNetwork, kind: Any, seed: int, folder: Path | None
) -> dict[str, dict[str, Any]]:
    """Return what is missed and spurious in one tree, by rule of ends."""
    tree = vessel_tree(seed, kind=kind)
    labels = torch.from_numpy(tree.mask.astype(np.uint8))
    kept = None if folder is None else folder / f"{kind}-{seed}.pt"
    if kept is not None and kept.is_file():
        said = torch.load(kept, weights_only=True)
        maps, seconds = CenterlineMaps(*(m.float() for m in said["maps"])), said["seconds"]
    else:
        started = time.process_time()
        maps = learned_maps(labels, tree.affine, model=network)
        seconds = time.process_time() - started
        if kept is not None:
            said = [m.half() for m in (maps.q, maps.endpoint, maps.root)]
            torch.save({"maps": said, "seconds": seconds}, kept)
    out = {}
    for name in ("geodesic", "learned"):
        settings = ExtractionSettings(endpoints=name)  # type: ignore[arg-type]
        found = extract_centerline(
            labels, tree.affine, settings, maps=maps if name == "learned" else None
        )
        out[name] = compare_trees(tree, found, voxel_mm=0.5) | {"maps_cpu_s": seconds}
    return out


def pin(args: argparse.Namespace) -> None:
    """Put a model into the package."""
    content = Path(args.file).read_bytes()
    tensors, facts = load_weights(args.file)
    settings: Any = facts["settings"]
    measured = json.loads((RESULTS / "centerline_model.json").read_text())
    rows = "\n".join(
        f"| {r['kind']} | {r['learned']['leaves']} "
        f"| {r['geodesic']['missed']} missed, {r['geodesic']['spurious']} spurious "
        f"| {r['learned']['missed']} missed, {r['learned']['spurious']} spurious |"
        for r in measured["rows"]
    )
    card = CARD.format(
        channels="-".join(map(str, settings["channels"])),
        weights=sum(t.numel() for t in tensors.values()),
        iterations=settings["iterations"],
        batch=settings["batch_size"],
        patch=settings["patch_voxels"],
        trees=settings["trees"],
        best=facts["iteration"],
        loss=facts["loss"],
        last=measured["seeds"] - 1,
        rows=rows,
    )
    package_model("centerline", content, card, "centerline")


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("train")
    one.add_argument("out")
    one.add_argument("--threads", type=int, default=2)
    one.add_argument("--iterations", type=int, default=TrainingSettings().iterations)
    one.set_defaults(run=train)
    one = commands.add_parser("score")
    one.add_argument("file")
    one.add_argument("--seeds", type=int, default=5)
    one.add_argument("--kind", choices=list(NOISE_VOXELS))
    one.add_argument("--maps", type=Path, help="a folder that keeps maps between runs")
    one.set_defaults(run=score)
    one = commands.add_parser("pin")
    one.add_argument("file")
    one.set_defaults(run=pin)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
