"""The page of an evaluation of synthesis: how good, how useful and how private it is.

Made from the JSON of `medpipe.synthesis.evaluation.evaluate_synthesis` alone, as it may be
read back from a file, and trusts none of it: a field that is absent or of the wrong type is
left out, and a picture is shown only if it is a PNG.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from medpipe.errors import InputError
from medpipe.figures.synthesis import agreement_svg, distances_svg, distribution_svg
from medpipe.report.outcome_tables import percent_of, short_interval
from medpipe.report.pages import render_page
from medpipe.report.records import as_dict, as_dicts, number, numbers
from medpipe.report.synthesis_tables import (
    agreement_rows,
    ceiling_rows,
    control_rows,
    cost_rows,
    distribution_rows,
    gate_rows,
    privacy_rows,
    t_map_rows,
    tiles,
    utility_tables,
    volume_rows,
)

__all__ = ["synthesis_page"]

MAX_PICTURE_BYTES = 2_000_000
MAX_PICTURES = 48
_PNG = b"\x89PNG\r\n\x1a\n"
_POINTS = {
    "synthetic": "synthetic",
    "measurement": "real",
    "reconstruction": "real, compressed and back",
}
_NEAREST = {
    "synthetic_to_train": "synthetic to training",
    "synthetic_to_held_out": "synthetic to held-out",
    "held_out_to_train": "held-out to training (real)",
}


_ALIGNED = {
    "rigid": "turned and moved onto the mean of the real cases",
    "shift": "moved onto the mean of the real cases",
    "centre": "moved by the centre of mass",
}


def synthesis_page(evaluation: Mapping[str, Any]) -> str:
    """Return the page of an evaluation: HTML that stands alone and runs without scripts.

    Parameters
    ----------
    evaluation : mapping
        From `medpipe.synthesis.evaluation.evaluate_synthesis`, or its JSON read back.

    Raises
    ------
    InputError
        If it is no evaluation of synthesis.
    """
    evaluation = dict(evaluation)
    counts = as_dict(evaluation.get("n"))
    if number(counts.get("synthetic")) is None or not as_dicts(evaluation.get("gates")):
        raise InputError("this is no evaluation of synthesis", expected="counts and gates")
    study = as_dict(evaluation.get("study"))
    title = str(study.get("title") or "Synthetic volumes")
    t_map = as_dict(evaluation.get("t_map"))
    picture = as_dict(t_map.get("picture"))
    privacy = as_dict(evaluation.get("privacy"))
    page = render_page(
        "synthesis.html",
        title=title,
        heading=title,
        source="",
        simulated=evaluation.get("simulated") is True,
        counts=_counts(counts),
        made=int(number(counts.get("synthetic")) or 0),
        level=percent_of(evaluation),
        tiles=tiles(evaluation),
        gates=gate_rows(evaluation),
        controls=control_rows(evaluation),
        pictures=_pictures(evaluation),
        distribution=distribution_rows(evaluation),
        features=str(as_dict(evaluation.get("features")).get("name") or ""),
        volumes=volume_rows(evaluation),
        volume_figures=_volume_figures(evaluation),
        agreements=agreement_rows(evaluation),
        agreement_figures=_agreement_figures(evaluation),
        ceilings=ceiling_rows(evaluation),
        ceiling_n=int(number(as_dict(evaluation.get("segmenter")).get("n")) or 0),
        t_maps=t_map_rows(evaluation),
        t_picture=_address(picture.get("png")),
        t_threshold=number(picture.get("threshold")),
        t_end=number(picture.get("end")),
        alignment=_ALIGNED.get(str(t_map.get("alignment")), ""),
        inside=number(t_map.get("inside_share")),
        privacy=privacy_rows(evaluation),
        rule=str(privacy.get("rule") or ""),
        space=str(privacy.get("space") or ""),
        copied=int(number(privacy.get("copied")) or 0),
        distances=_distances(evaluation),
        utility=utility_tables(evaluation),
        reference=str(as_dict(evaluation.get("utility")).get("reference") or ""),
        cost=cost_rows(evaluation),
        facts=sorted((str(k), str(v)) for k, v in study.items() if k != "title"),
    )
    return page.decode()


def _counts(counts: Mapping[str, Any]) -> str:
    made, train, test = (int(number(counts.get(k)) or 0) for k in ("synthetic", "train", "test"))
    return f"{made} synthetic, {train} real training and {test} real held-out cases"


def _address(png: Any) -> str:
    """Return the data address of a PNG in base64, empty if it is none."""
    if not isinstance(png, str) or len(png) > MAX_PICTURE_BYTES:
        return ""
    try:
        content = base64.b64decode(png, validate=True)
    except (binascii.Error, ValueError):
        return ""
    if not content.startswith(_PNG):
        return ""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _pictures(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    out = []
    for row in as_dicts(evaluation.get("pictures"))[:MAX_PICTURES]:
        sample, nearest = (_address(row.get(k)) for k in ("sample", "nearest"))
        distance, rank = number(row.get("distance")), number(row.get("rank"))
        if not sample or not nearest or distance is None or rank is None:
            continue
        text = f"{distance:.3g}"
        out.append({"sample": sample, "nearest": nearest, "distance": text, "rank": int(rank) + 1})
    return out


def _markup(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)  # noqa: S704 - the figures escape every text


def _volume_figures(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the distributions of regional volumes."""
    out = []
    for region, sets in as_dict(as_dict(evaluation.get("volumes")).get("values")).items():
        values = {f"{k} cases": numbers(as_dict(sets).get(k)) for k in ("real", "synthetic")}
        svg = distribution_svg(
            values, title=f"Volumes of {region}", x_label=f"{region}, mm³",
            simulated=evaluation.get("simulated") is True,
        )  # fmt: skip
        if svg:
            out.append({"name": str(region), "svg": _markup(svg)})
    return out


def _agreement_figures(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return requested against measured values of each condition."""
    out = []
    for condition in as_dicts(evaluation.get("conditions")):
        points, texts = {}, {}
        rows = as_dict(condition.get("rows"))
        for key, name in _POINTS.items():
            pair = as_dict(as_dict(condition.get("points")).get(key))
            points[name] = (numbers(pair.get("requested")), numbers(pair.get("measured")))
            texts[name] = f"r {short_interval(as_dict(as_dict(rows.get(key)).get('pearson')))}"
        svg = agreement_svg(
            points, title=f"Requested and measured {condition.get('name')}",
            unit=str(condition.get("unit") or ""), texts=texts,
            simulated=evaluation.get("simulated") is True,
        )  # fmt: skip
        if svg:
            out.append({"name": str(condition.get("name")), "svg": _markup(svg)})
    return out


def _distances(evaluation: Mapping[str, Any]) -> Any:
    """Return the histograms of nearest distances."""
    privacy = as_dict(evaluation.get("privacy"))
    nearest = as_dict(privacy.get("nearest"))
    smallest = number(privacy.get("smallest_real"))
    svg = distances_svg(
        {name: numbers(nearest.get(key)) for key, name in _NEAREST.items()},
        title="Distances to the nearest case",
        x_label="root mean square difference of intensities (0 to 1)",
        marks={} if smallest is None else {"smallest between two real cases": smallest},
        simulated=evaluation.get("simulated") is True,
    )
    return _markup(svg) if svg else ""
