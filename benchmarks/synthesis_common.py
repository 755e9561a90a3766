"""What the benchmarks of generators share: files made once, rows of tables, cards."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medpipe.io.atomic import write_bytes_atomic, write_json_atomic
from medpipe.synthesis.metrics import Agreement

__all__ = ["Work", "card_rows", "packed", "row_of", "short", "unpacked"]


class Work:
    """A folder of files that are made once: a run that was stopped goes on."""

    def __init__(self, folder: Path, name: str = "") -> None:
        self.folder, self.name = folder, name
        folder.mkdir(parents=True, exist_ok=True)

    def once(self, name: str, make: Callable[[], bytes]) -> Path:
        """Make a file if it is not there; its CPU seconds are kept in a folder beside it."""
        path = self.folder / name
        if not path.exists():
            print(f"{self.name}{name}", flush=True)
            start = time.process_time()
            content = make()
            spent = {"cpu_seconds": round(time.process_time() - start, 1)}
            path.parent.mkdir(exist_ok=True)
            (self.folder / "seconds").mkdir(exist_ok=True)
            write_json_atomic(self.folder / "seconds" / f"{name.replace('/', '-')}.json", spent)
            write_bytes_atomic(path, content)
        return path

    def spent(self) -> dict[str, float]:
        """Return the CPU seconds of what was made, by file."""
        files = sorted((self.folder / "seconds").glob("*.json"))
        return {f.stem: json.loads(f.read_text())["cpu_seconds"] for f in files}


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """Return arrays as the content of a compressed file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def unpacked(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file."""
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def short(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return value, ends and n of a figure."""
    if found is None:
        return None
    return {k: found.get(k) for k in ("value", "low", "high", "n") if k in found}


def _both(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a figure beside that of real cases."""
    return {"synthetic": short(found["figure"]), "real": short(found["floor"])}


def row_of(evaluation: Mapping[str, Any], own: Mapping[str, Agreement]) -> dict[str, Any]:
    """Return what the table says of one set of one seed.

    Parameters
    ----------
    evaluation : mapping
        From `evaluate_synthesis`.
    own : mapping of name to Agreement
        Of what was requested with the labels that were drawn.
    """
    if "failed" in evaluation:
        return dict(evaluation)
    privacy, found = evaluation["privacy"], evaluation["distribution"]
    conditions = {}
    for condition in evaluation["conditions"]:
        name = condition["name"]
        rows = {k: short(v["pearson"]) for k, v in condition["rows"].items()}
        conditions[name] = {
            "r_image": rows["synthetic"], "r_own_labels": short(own[name].pearson.to_dict()),
            "ceiling_segmenter": rows.get("measurement"),
            "ceiling_reconstruction": rows.get("reconstruction"),
            "error_ml": short(condition["rows"]["synthetic"]["error"]),
        }  # fmt: skip
    kept = ("real_mean", "synthetic_mean", "percent", "real_sd", "synthetic_sd", "effect")
    volumes = {
        row["region"]: {k: short(row[k]) for k in kept}
        | {"wasserstein": _both(row["wasserstein"]), "p_bonferroni": row["p_bonferroni"]}
        for row in evaluation["volumes"]["rows"]
    }
    names = ("kid", "frechet", "ms_ssim", "nearest_other", "recall", "coverage")
    return {
        "n": evaluation["n"],
        "distribution": {name: _both(found[name]) for name in names if name in found},
        "volumes": volumes,
        "conditions": conditions,
        "t_map": {
            key: _both(evaluation["t_map"][key]["share"]) | {"p": evaluation["t_map"][key]["p"]}
            for key in ("as_generated", "realigned")
        },
        "privacy": {
            "verdict": privacy["verdict"],
            "to_train": _both(privacy["to_train"]),
            "to_held_out": short(privacy["to_held_out"]),
            "ratio": short(privacy["ratio"]),
            "smallest": privacy["smallest"],
            "smallest_real": privacy["smallest_real"],
            "closer_to_train": _both(privacy["closer"]),
            "membership_auc": short(privacy["membership"]),
            "nll_conditional_minus_unconditional": {
                name: {k: gap[k] for k in ("difference", "low", "high", "p")}
                for name, gap in privacy["likelihoods"].items()
            },
        },
        "cost": evaluation["cost"],
        "gates": {g["name"]: "void" if g["void"] else g["passed"] for g in evaluation["gates"]},
        "controls": {
            c["name"]: {"caught": c["caught"], "found": c["found"]} for c in evaluation["controls"]
        },
        "segmenter_dice": {k: short(v) for k, v in evaluation["segmenter"]["dice"].items()},
    }


def said(figure: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Return a figure with its interval."""
    if figure is None:
        return "-"
    value, low, high = (f"{figure[k]:.{digits}f}" for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def card_rows(found: Mapping[str, Any], names: Iterable[tuple[str, str]]) -> list[str]:
    """Return the table of a card.

    Parameters
    ----------
    found : mapping
        From `row_of`.
    names : iterable of (str, str)
        Conditions and the regions that they are the volumes of.
    """
    rows = ["| figure | drawn | real, or ceiling |", "| --- | --- | --- |"]
    for condition, region in names:
        r, v = found["conditions"][condition], found["volumes"][region]
        rows += [
            f"| {region}: r of asked and measured (segmenter on the image) | {said(r['r_image'])} "
            f"| {said(r['ceiling_segmenter'])} |",
            f"| {region}: r of asked and own labels | {said(r['r_own_labels'])} | |",
            f"| {region}: mean, percent off held-out cases | {said(v['percent'], 1)} | |",
        ]
    for name, text in (("kid", "KID"), ("ms_ssim", "MS-SSIM of pairs")):
        both = found["distribution"][name]
        rows.append(f"| {text} | {said(both['synthetic'], 4)} | {said(both['real'], 4)} |")
    both = found["t_map"]["realigned"]
    rows.append(
        f"| share of voxels with \\|t\\| above 3.3 | {said(both['synthetic'], 4)} "
        f"| {said(both['real'], 4)} |"
    )
    near = found["privacy"]["to_train"]
    rows.append(
        f"| distance to the nearest training case | {said(near['synthetic'])} "
        f"| {said(near['real'])} |"
    )
    return rows
