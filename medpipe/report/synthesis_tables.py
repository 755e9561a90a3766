"""Rows of the tables of an evaluation of synthesis, from its JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from medpipe.report.outcome_tables import NONE, interval_text, p_text, short_interval
from medpipe.report.records import as_dict, as_dicts, number
from medpipe.report.text import bytes_text, duration

__all__ = [
    "agreement_rows",
    "ceiling_rows",
    "control_rows",
    "cost_rows",
    "distribution_rows",
    "gate_rows",
    "privacy_rows",
    "t_map_rows",
    "tiles",
    "utility_tables",
    "volume_rows",
]

DISTRIBUTION = (
    ("kid", "KID", "0 if both sets are alike; may be negative", 4),
    ("frechet", "Fréchet distance (FID)", "read against its floor alone", 3),
    ("ms_ssim", "MS-SSIM of pairs", "above the real pairs: lost diversity", 3),
    ("nearest_other", "distance to the nearest other", "far below real cases: repeats itself", 3),
    ("precision", "precision", "share of synthetic cases among real ones", 2),
    ("recall", "recall", "share of real cases among synthetic ones", 2),
    ("density", "density", "how crowded with real cases their places are", 2),
    ("coverage", "coverage", "share of real cases with a synthetic neighbour", 2),
)
_GAPS = {
    "held_out": "above 0: the prior knows by heart which training case a condition is of",
    "training": "far below that of held-out cases: learned by heart",
}
_ROWS = {
    "synthetic": "synthetic",
    "measurement": "ceiling: real cases, measured",
    "reconstruction": "ceiling: real cases, compressed and back, measured",
}


def _word(passed: Any, void: Any) -> tuple[str, str]:
    """Return how a gate ended, and the class of its mark."""
    if void is True:
        return "void", "warning"
    if not isinstance(passed, bool):
        return "undecided", "warning"
    return ("passed", "info") if passed else ("failed", "error")


def gate_rows(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the gates with what was found."""
    out = []
    for gate in as_dicts(evaluation.get("gates")):
        word, mark = _word(gate.get("passed"), gate.get("void"))
        names = {k: str(gate.get(k) or "") for k in ("name", "rule", "found")}
        out.append({**names, "word": word, "mark": mark})
    return out


def control_rows(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the planted sets and whether they were caught."""
    out = []
    for row in as_dicts(evaluation.get("controls")):
        caught = row.get("caught") is True
        names = {k: str(row.get(k) or "") for k in ("name", "gate", "what", "found")}
        out.append(
            {
                **names,
                "word": "caught" if caught else "not caught",
                "mark": "info" if caught else "error",
            }
        )
    return out


def tiles(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the figures at the top."""
    gates, controls = (as_dicts(evaluation.get(k)) for k in ("gates", "controls"))
    passed = sum(_word(g.get("passed"), g.get("void"))[0] == "passed" for g in gates)
    caught = sum(c.get("caught") is True for c in controls)
    planted = f"{caught} of {len(controls)} planted sets caught" if controls else "none was tested"
    privacy = as_dict(evaluation.get("privacy"))
    kid = as_dict(as_dict(evaluation.get("distribution")).get("kid"))
    digits = _floor_digits(kid)
    out = [
        _tile("Gates passed", f"{passed} of {len(gates)}", planted),
        _tile("Copies", str(privacy.get("verdict") or NONE),
              f"distance ratio {short_interval(as_dict(privacy.get('ratio')))}"),
        _tile("KID", interval_text(as_dict(kid.get("figure")), digits)["value"],
              f"real halves {interval_text(as_dict(kid.get('floor')), digits)['between']}"),
    ]  # fmt: skip
    for condition in as_dicts(evaluation.get("conditions"))[:3]:
        rows = as_dict(condition.get("rows"))
        found = as_dict(as_dict(rows.get("synthetic")).get("pearson"))
        ceiling = as_dict(as_dict(rows.get("measurement")).get("pearson"))
        below = f"ceiling {interval_text(ceiling)['value']}" if ceiling else ""
        out.append(_tile(f"{condition.get('name')}: r", interval_text(found)["value"], below))
    seconds = number(as_dict(evaluation.get("cost")).get("seconds_per_sample"))
    if seconds is not None:
        out.append(_tile("Time of a sample", duration(seconds), ""))
    return out


def _digits(values: Iterable[Any], least: int) -> int:
    """Return how many decimals show two digits of the largest value, and `least` of them."""
    largest = max((abs(number(value) or 0.0) for value in values), default=0.0)
    return max(least, min(9, 1 - math.floor(math.log10(largest)))) if largest > 0 else least


def _floor_digits(row: Mapping[str, Any]) -> int:
    """Return how many decimals show the floor of a figure."""
    floor = as_dict(row.get("floor"))
    return _digits([floor.get("low"), floor.get("high")], 4)


def _tile(name: str, value: str, below: str) -> dict[str, str]:
    return {"name": name, "value": value, "below": below}


def distribution_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each distance of distributions beside its floor."""
    found = as_dict(evaluation.get("distribution"))
    out = []
    for key, name, means, digits in DISTRIBUTION:
        row = as_dict(found.get(key))
        if not row:
            continue
        shown = _floor_digits(row) if key == "kid" else digits
        made, real = (interval_text(as_dict(row.get(k)), shown) for k in ("figure", "floor"))
        method = str(as_dict(row.get("figure")).get("method") or "")
        out.append({"name": name, "means": means, "made": made, "real": real, "method": method})
    return out


def volume_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the regional volumes of both sets."""
    out = []
    for row in as_dicts(as_dict(evaluation.get("volumes")).get("rows")):
        distance = as_dict(row.get("wasserstein"))
        text = {
            key: interval_text(as_dict(row.get(key)), digits)
            for key, digits in (
                ("real_mean", 0), ("real_sd", 0), ("synthetic_mean", 0), ("synthetic_sd", 0),
                ("percent", 1), ("sd_ratio", 2), ("effect", 2),
            )
        }  # fmt: skip
        text["wasserstein"] = interval_text(as_dict(distance.get("figure")), 0)
        floor = interval_text(as_dict(distance.get("floor")), 0)["between"]
        text["wasserstein"]["note"] = f"real halves {floor}" if floor else ""
        out.append(
            {
                "region": str(row.get("region")),
                **text,
                "p": p_text(row.get("p_bonferroni")),
            }
        )
    return out


def agreement_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return requested against measured conditions with their ceilings."""
    out = []
    for condition in as_dicts(evaluation.get("conditions")):
        rows = as_dict(condition.get("rows"))
        errors = [as_dict(as_dict(row).get("error")).get("value") for row in rows.values()]
        decimals = _digits(errors, 1)
        for key, row in rows.items():
            figures = {
                k: interval_text(as_dict(as_dict(row).get(k)), digits)
                for k, digits in (
                    ("pearson", 2), ("spearman", 2), ("slope", 2), ("error", decimals),
                    ("bias", decimals),
                )
            }  # fmt: skip
            out.append(
                {
                    "condition": str(condition.get("name")),
                    "unit": str(condition.get("unit") or ""),
                    "row": _ROWS.get(str(key), str(key)),
                    "first": key == "synthetic",
                    **figures,
                }
            )
    return out


def ceiling_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the segmenter reaches on held-out real cases, by region."""
    segmenter = as_dict(evaluation.get("segmenter"))
    volumes = as_dict(segmenter.get("volumes"))
    out = []
    for region, dice in as_dict(segmenter.get("dice")).items():
        agreement = as_dict(volumes.get(region))
        out.append(
            {
                "region": str(region),
                "dice": short_interval(as_dict(dice), 3),
                "pearson": short_interval(as_dict(agreement.get("pearson"))),
                "bias": short_interval(as_dict(agreement.get("bias")), 1),
            }
        )
    return out


def t_map_rows(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the shares of voxels that differ, before and after the re-alignment."""
    found = as_dict(evaluation.get("t_map"))
    out = []
    for key, name in (("as_generated", "as generated"), ("realigned", "re-aligned")):
        row = as_dict(found.get(key))
        share = as_dict(row.get("share"))
        figures = (_percent(as_dict(share.get(k))) for k in ("figure", "floor"))
        made, real = (short_interval(f) for f in figures)
        voxels = f"{int(number(row.get('voxels')) or 0):,}".replace(",", "\u202f")
        out.append(
            {"name": name, "made": made, "real": real, "p": p_text(row.get("p")), "voxels": voxels}
        )
    return out


def _percent(figure: Mapping[str, Any]) -> dict[str, Any]:
    """Return a share in percent."""
    out = dict(figure)
    for key in ("value", "low", "high"):
        value = number(figure.get(key))
        out[key] = None if value is None else 100 * value
    return out


def privacy_rows(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the figures of privacy; distance first."""
    found = as_dict(evaluation.get("privacy"))
    out = []

    def row(name: str, figure: Any, floor: Any = None, means: str = "", digits: int = 3) -> None:
        if as_dict(figure):
            text = short_interval(as_dict(floor), digits) if as_dict(floor) else ""
            value = short_interval(as_dict(figure), digits)
            out.append({"name": name, "value": value, "floor": text, "means": means})

    nearest, closer, authentic = (
        as_dict(found.get(k)) for k in ("to_train", "closer", "authentic")
    )
    row("distance to the nearest training case, median", nearest.get("figure"),
        nearest.get("floor"), "real: held-out to training cases")  # fmt: skip
    row("its ratio to that of real cases", found.get("ratio"), None, "1: as far as new patients", 2)
    row("distance to the nearest held-out case, median", found.get("to_held_out"))
    row("share closer to the training cases", closer.get("figure"), closer.get("floor"),
        "no bar at 0.5: a set made from training cases is closer to them", 2)  # fmt: skip
    row("authentic share", authentic.get("figure"), authentic.get("floor"),
        "further from the nearest training case than that is from all others", 2)  # fmt: skip
    row("membership, AUC", found.get("membership"), None, "0.5: an attacker guesses", 2)
    for name, gap in as_dict(found.get("likelihoods")).items():
        figure = {**as_dict(gap), "value": as_dict(gap).get("difference")}
        label = str(name).replace("_", "-")
        row(f"likelihood gap, {label} cases (nats per token)", figure, None,
            _GAPS.get(str(name), ""))  # fmt: skip
    return out


def utility_tables(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the table of each region: name, how many were tested, and its rows."""
    utility = as_dict(evaluation.get("utility"))
    tested = as_dict(utility.get("tested"))
    out = []
    for region, rows in as_dict(utility.get("regions")).items():
        made = []
        for row in as_dicts(rows):
            difference = as_dict(row.get("difference"))
            made.append(
                {
                    "name": str(row.get("name")),
                    "mean": short_interval(as_dict(row.get("mean")), 3),
                    "difference": short_interval(difference, 3) if difference else "reference",
                    "seeds": str(int(number(row.get("seeds")) or 0)),
                }
            )
        n = int(number(tested.get(region)) or 0)
        out.append({"region": str(region), "tested": n, "rows": made})
    return out


def cost_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a sample costs."""
    cost = as_dict(evaluation.get("cost"))
    out = []
    if number(cost.get("seconds_per_sample")) is not None:
        out.append(("Seconds per sample", duration(cost.get("seconds_per_sample"))))
    if number(cost.get("peak_bytes")) is not None:
        out.append(("Peak memory", bytes_text(cost.get("peak_bytes"))))
    if number(cost.get("added_bytes")) is not None:
        out.append(("Memory that drawing added", bytes_text(cost.get("added_bytes"))))
    threads = number(cost.get("threads"))
    if threads is not None and cost.get("device") == "CPU":
        out.append(("Threads", str(int(threads))))
    if cost.get("device"):
        out.append(("Device", str(cost.get("device"))))
    return out
