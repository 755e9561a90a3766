"""The table of synthesis_hippocampus.py: what each set reaches, and which bars are reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from synthesis_common import short

from medpipe.synthesis.metrics import utility_table

__all__ = ["reached", "summary", "table_text"]

BARS = {"anterior_ml": 0.84, "posterior_ml": 0.60}
"""Correlation of requested and measured volumes."""
PERCENT = 5.0
"""By which a regional mean may differ from that of real cases."""
FEWEST_SEEDS = 3
Seeds = Mapping[int, Mapping[str, Any]]


def summary(seeds: Seeds, counts: Mapping[str, int], routes: Sequence[str]) -> dict[str, Any]:
    """Return the table of all seeds.

    Utility has intervals from three seeds on: over seeds and cases, of differences to the few
    real cases, and to what a set of the baseline gives; of all held-out and of test cases.
    """
    names = list(next(iter(seeds.values()))["rows"])
    out: dict[str, Any] = {
        "rows": {n: {str(s): seeds[s]["rows"][n] for s in seeds} for n in names},
        "cpu_seconds": {str(s): seeds[s]["spent"] for s in seeds},
    }
    out["utility"] = {
        "held_out": _utility(seeds, slice(None)),
        "tests": _utility(seeds, slice(counts["tests"])),
    }
    return out


def _utility(seeds: Seeds, which: slice) -> dict[str, Any]:
    """Return the mean Dice of each way to train, and differences, by region."""
    ways = list(next(iter(seeds.values()))["dice"])
    out = {}
    for region in next(iter(seeds.values()))["dice"][ways[0]]:
        scores = {w: np.stack([s["dice"][w][region][which] for s in seeds.values()]) for w in ways}
        there = np.isfinite(next(iter(scores.values()))[0])
        scores = {w: v[:, there] for w, v in scores.items()}
        found: dict[str, Any] = {"n": int(there.sum()), "seeds": len(seeds)}
        found["mean"] = {w: round(float(v.mean()), 4) for w, v in scores.items()}
        found["by_seed"] = {w: v.mean(1).round(4).tolist() for w, v in scores.items()}
        if len(seeds) >= FEWEST_SEEDS:
            for against in ("real few", "pca"):
                rows = utility_table(scores, against)
                found[f"minus {against}"] = {
                    r.name: short(r.difference.to_dict()) for r in rows if r.difference
                }
        out[region] = found
    return out


def reached(table: Mapping[str, Any], routes: Sequence[str]) -> dict[str, Any]:
    """Return which bars each route reaches, and how that is decided.

    A comparison counts as won in a mean over seeds; whether its interval excludes 0, or
    every seed wins, is said beside it.
    """
    return {route: _reached(table, route) for route in routes}


def _reached(table: Mapping[str, Any], route: str) -> dict[str, Any]:
    mine, pca = table["rows"][route], table["rows"]["pca"]
    failed = {s: r["failed"] for s, r in {**pca, **mine}.items() if "failed" in r}
    if failed:
        return {"evaluated": {"reached": False, "failed": failed}}
    kid = {
        s: [r["distribution"]["kid"]["synthetic"]["value"] for r in (mine[s], pca[s])] for s in mine
    }
    utility = table["utility"]["held_out"]
    alone = {k: v.get("minus pca", {}).get(route) for k, v in utility.items()}
    added = {k: v.get("minus real few", {}).get(f"real few + {route}") for k, v in utility.items()}
    runs = {s: _conditioned(r) for s, r in mine.items()}
    means = [float(np.mean([v[i] for v in kid.values()])) for i in (0, 1)]
    return {
        "kid_below_pca": {
            "reached": means[0] < means[1], "in_every_seed": all(a < b for a, b in kid.values()),
            "route_and_pca_by_seed": kid,
        },
        "synthetic_only_dice_above_pca": {
            "reached": all(v["mean"][route] > v["mean"]["pca"] for v in utility.values()),
            "difference": alone,
        },
        "r_and_means_in_one_run": {
            "bars": BARS, "percent": PERCENT, "runs": runs,
            "reached": all(run["reached"] for run in runs.values()),
            "runs_that_reach": sum(run["reached"] for run in runs.values()),
        },
        "few_real_and_synthetic_above_few_real": {
            "reached": all(d is not None and d["low"] > 0 for d in added.values()),
            "difference": added,
        },
        "copier_caught": {
            "reached": all(r["controls"]["copier"]["caught"] for r in mine.values()),
            "found": {s: r["controls"]["copier"]["found"] for s, r in mine.items()},
        },
        "no_copies": {
            "reached": all(r["privacy"]["verdict"] == "no copies found" for r in mine.values()),
        },
    }  # fmt: skip


def _conditioned(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return whether one run follows its conditions and keeps the regional means."""
    r = {name: row["conditions"][name]["r_image"]["value"] for name in BARS}
    percent = {name: v["percent"]["value"] for name, v in row["volumes"].items()}
    followed = all(r[name] is not None and r[name] > bar for name, bar in BARS.items())
    kept = all(abs(value) <= PERCENT for value in percent.values())
    return {"r": r, "percent": percent, "reached": followed and kept}


def table_text(record: Mapping[str, Any]) -> str:
    """Return the table as text: means over seeds."""
    lines = [
        f"{'':12}{'KID':>9}{'floor':>9}{'MS-SSIM':>9}{'cover':>7}{'r ant':>7}{'r post':>7}"
        f"{'% ant':>7}{'% post':>7}{'ratio':>7}{'AUC':>6}{'s':>7}"
    ]
    for name, by_seed in record["rows"].items():
        rows = [row for row in by_seed.values() if "failed" not in row]
        if not rows:
            lines.append(f"{name:12} failed")
            continue

        def mean(*path: str, rows: list[Any] = rows) -> float:
            values: list[float] = []
            for found in rows:
                for key in path:
                    found = found[key]
                values.append(float("nan") if found is None else float(found))
            return float(np.mean(values))

        kid = ("distribution", "kid")
        percent = [mean("volumes", r, "percent", "value") for r in ("anterior", "posterior")]
        r = [mean("conditions", c, "r_image", "value") for c in BARS]
        lines.append(
            f"{name:12}{mean(*kid, 'synthetic', 'value'):9.4f}{mean(*kid, 'real', 'value'):9.4f}"
            f"{mean('distribution', 'ms_ssim', 'synthetic', 'value'):9.3f}"
            f"{_mean_coverage(rows):7.2f}{r[0]:7.2f}{r[1]:7.2f}{percent[0]:7.1f}{percent[1]:7.1f}"
            f"{mean('privacy', 'ratio', 'value'):7.2f}"
            f"{mean('privacy', 'membership_auc', 'value'):6.2f}"
            f"{mean('cost', 'seconds_per_sample'):7.2f}"
        )
    for region, found in record["utility"]["held_out"].items():
        said = ", ".join(f"{way} {value:.3f}" for way, value in found["mean"].items())
        lines.append(f"Dice {region} (n {found['n']}, seeds {found['seeds']}): {said}")
    for route, bars in record["reached"].items():
        said = ", ".join(f"{bar} {'yes' if v['reached'] else 'no'}" for bar, v in bars.items())
        lines.append(f"{route}: {said}")
    return "\n".join(lines)


def _mean_coverage(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean coverage, NaN where the sets are too small for it."""
    known = [r["distribution"].get("coverage") for r in rows]
    return float(np.mean([v["synthetic"]["value"] if v else np.nan for v in known]))
