"""Tables of a case as people read them."""

from __future__ import annotations

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
