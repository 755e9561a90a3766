"""Tables of a case as people read them."""

from __future__ import annotations

import json
from pathlib import Path

from report_tree import case_record

from medpipe.report.build import build_report
from medpipe.report.case_page import _table
from medpipe.report.pages import render_page


def test_few_groups_stand_side_by_side_and_nested_ones_have_whole_names() -> None:
    table = _table(
        "statistics",
        {
            "image": {"mean": 1.0, "sd": 2.0},
            "labels": {"1": {"mean": 3.0, "volume_ml": 4.0}},
            "spacing_mm": [1.0, 1.0, 5.0],
        },
    )
    assert table["columns"] == ["", "image", "labels 1"]
    assert table["rows"] == [["mean", 1.0, 3.0], ["sd", 2.0, None], ["volume_ml", None, 4.0]]
    assert table["pairs"] == [["spacing_mm", "1, 1, 5"]]


def test_many_groups_are_rows() -> None:
    table = _table("labels", {str(k): {"voxels": k, "box": [[0, 1], [2, 3]]} for k in range(9)})
    assert table["columns"] == ["", "voxels", "box"]
    assert table["rows"][7] == ["7", 7, "0, 1 to 2, 3"]


def test_records_and_single_values() -> None:
    assert _table("t", {"rows": [{"a": 1}, {"b": 2}]})["rows"] == [[1, None], [None, 2]]
    assert _table("t", {"letters": 3})["rows"] == [["letters", 3]]
    assert _table("t", "text")["rows"] == [["value", "text"]]


def test_long_names_of_columns_break_between_words_and_are_never_markup() -> None:
    """Ten measures of a frame fit beside each other; what does not fit scrolls below the names."""
    table = _table("frames", {str(k): {"wall_mean_um": k, "<b>_x": k} for k in range(9)})
    text = render_page("case.html", case={"case_id": "c"}, tables=[table]).decode()
    assert '<div class="wide"><table class="grid">' in text
    assert "wall_<wbr>mean_<wbr>um</th>" in text
    assert "&lt;b&gt;_<wbr>x</th>" in text
    assert "<b>" not in text.partition("<h2>frames</h2>")[2]


def test_the_cohort_takes_summaries_first_and_no_long_tables(tmp_path: Path) -> None:
    """Branch 7 of one case is another vessel than branch 7 of the next."""
    for number in range(3):
        branches = {f"label {n}": {"length_mm": n + number} for n in range(1, 60)}
        tables = {
            "branches": branches,
            "organs": {"liver": {"ml": 1.0 + number}, "spleen": {"ml": 2.0 + number}},
            "summary": {"length_mm": 10.0 + number},
        }
        folder = tmp_path / "cases" / f"c{number}"
        folder.mkdir(parents=True)
        record = case_record(folder.name, outputs=[], qc=[], tables=tables)
        (folder / "case.json").write_text(json.dumps(record))
    build_report(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "label 1" not in page
    assert page.index("summary.length_mm") < page.index("organs.liver.ml")


def test_a_long_table_is_folded(tmp_path: Path) -> None:
    rows = {f"label {n}": {"length_mm": n, "radius_mm": 1.0} for n in range(1, 60)}
    short = {f"organ {n}": {"ml": n, "hu": 1.0} for n in range(1, 9)}
    folder = tmp_path / "cases" / "c"
    folder.mkdir(parents=True)
    record = case_record("c", outputs=[], qc=[], tables={"branches": rows, "organs": short})
    (folder / "case.json").write_text(json.dumps(record))
    build_report(tmp_path)
    page = (tmp_path / "report" / "cases" / "c.html").read_text()
    assert page.count("<summary>59 rows</summary>") == page.count("</details>") == 1
    assert page.index("<details>") < page.index("label 59") < page.index("</details>")
    assert not page.index("<details>") < page.index("organ 8") < page.index("</details>")
