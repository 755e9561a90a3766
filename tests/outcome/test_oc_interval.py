"""A figure with its interval: JSON, text and what it refuses."""

from __future__ import annotations

import json

import pytest
from scipy import stats

from medpipe.errors import InputError, UsageError
from medpipe.outcome.interval import Interval, PairedDifference
from medpipe.outcome.metrics.shares import proportion, wilson


def test_an_interval_comes_back_from_json():
    figure = Interval(0.82, 0.66, 0.98, 44, 13, "DeLong, logit", 0.9, 0.05, "a note")
    assert Interval.from_dict(json.loads(json.dumps(figure.to_dict()))) == figure


def test_a_difference_comes_back_from_json_and_unpacks():
    figure = PairedDifference(0.1, 0.0, 0.2, 1.96, 0.05, 44, 13, "DeLong")
    assert PairedDifference.from_dict(json.loads(json.dumps(figure.to_dict()))) == figure
    assert list(figure) == [0.1, 0.0, 0.2, 1.96, 0.05]


def test_text_says_figure_and_interval_or_that_there_is_none():
    assert Interval(0.824, 0.661, 0.977, 44, 13, "m").text() == "0.82 (0.66 to 0.98)"
    assert Interval(0.8246, None, None, 44, 13, "m").text(3) == "0.825 (no interval)"
    assert Interval(None, None, None, 44, 0, "m", note="one class").text() == "not estimable"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_is_never_nan(value):
    with pytest.raises(UsageError, match="not a finite number"):
        Interval(value, None, None, 44, 13, "m")


@pytest.mark.parametrize("record", [{}, {"value": 1.0}, {"n": 1, "method": "m", "other": 2}])
def test_a_record_of_something_else_is_refused(record):
    with pytest.raises(InputError, match="this is no interval"):
        Interval.from_dict(record)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (1, 7), (33, 44), (7, 7), (480, 2000)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_agrees_with_scipy(k, n, level):
    peer = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert wilson(k, n, level) == pytest.approx((peer.low, peer.high), abs=1e-12)
    figure = proportion(k, n, events=3, level=level)
    assert (figure.low, figure.high) == pytest.approx((peer.low, peer.high), abs=1e-12)
    assert figure.value == k / n


def test_a_share_of_nothing_has_no_value_and_says_why():
    figure = proportion(0, 0, events=0, empty="nobody")
    assert (figure.value, figure.low, figure.note) == (None, None, "nobody")
    with pytest.raises(UsageError, match="level"):
        proportion(1, 2, events=1, level=95)
