"""Reading conditions from labels, and choosing by it."""

import numpy as np
import pytest
import torch

from medpipe.synthesis.conditions import Conditions
from medpipe.synthesis.label_reading import LabelReading, label_sizes

SHAPE = (12, 12, 12)


def cases(n: int = 60) -> tuple[list[torch.Tensor], list[dict[str, float]]]:
    """Return labels of two regions and conditions: their volumes, age (half), luck (no)."""
    rng = np.random.default_rng(0)
    labels, rows = [], []
    for _ in range(n):
        a, b = rng.integers(100, 400, 2)
        flat = torch.zeros(12**3, dtype=torch.uint8)
        flat[:a], flat[a : a + b] = 1, 2
        labels.append(flat.reshape(1, *SHAPE))
        rows.append(
            {
                "both_ml": (a + b) * 0.027,
                "first_ml": a * 0.027,
                "age_years": 50 + a / 20 + rng.normal(0, 4.3),
                "luck": rng.normal(),
                "sex": "F",
            }
        )
    return labels, rows


def sizes(labels: list[torch.Tensor]) -> np.ndarray:
    """Return the sizes of both regions of each."""
    return np.stack([label_sizes(each, 3) for each in labels])


def fitted(rows: list[dict[str, float]], labels: list[torch.Tensor]) -> LabelReading:
    """Return what reads them."""
    names = ["both_ml", "first_ml", "age_years", "luck"]
    table = {n: [r[n] for r in rows] for n in names}
    conditions = Conditions.fit(table, dict.fromkeys(names, "continuous"))
    found = LabelReading.fit(sizes(labels), rows, conditions)
    assert found is not None
    return found


def test_volumes_are_read_exactly_and_what_labels_do_not_show_is_not():
    labels, rows = cases()
    reading = fitted(rows, labels)
    for known, row in zip(labels, rows, strict=True):
        read = reading.read(known)
        assert read["both_ml"] == pytest.approx(row["both_ml"], rel=0.01)
        assert read["first_ml"] == pytest.approx(row["first_ml"], rel=0.02)
    errors = dict(zip(reading.names, reading.errors, strict=True))
    spread = {n: float(np.std([r[n] for r in rows])) for n in reading.names}
    assert errors["both_ml"] == pytest.approx(0.05 * spread["both_ml"])
    assert errors["age_years"] == pytest.approx(4.3, rel=0.2)
    assert errors["luck"] > 0.9 * spread["luck"]


def test_a_labeller_that_sees_too_much_is_read_as_if_it_did_not():
    labels, rows = cases()
    reading = fitted(rows, labels)

    def larger(known: torch.Tensor) -> torch.Tensor:
        """Half as much of the second region again, and the first as it is."""
        flat = known.flatten().clone()
        first, second = int((flat == 1).sum()), int((flat == 2).sum())
        flat[first : first + second + second // 2] = 2
        return flat.reshape(known.shape)

    own = reading.of_labeller(sizes([larger(known) for known in labels]), sizes(labels))
    assert own.read(larger(labels[0])) == pytest.approx(reading.read(labels[0]), rel=0.02)
    assert own.read(larger(labels[0]))["both_ml"] != pytest.approx(
        reading.read(larger(labels[0]))["both_ml"], rel=0.05
    )
    blind = reading.of_labeller(np.zeros((len(labels), 2)), sizes(labels))
    assert blind.read(labels[0]) == reading.read(labels[0])


def test_the_nearest_is_the_one_that_was_asked_for():
    labels, rows = cases()
    reading = fitted(rows, labels)
    for n in (3, 17, 40):
        distances = [reading.distance(each, rows[n]) for each in labels]
        assert int(np.argmin(distances)) == n
    assert reading.distance(labels[3], {}) == 0
    assert reading.distance(labels[3], {"both_ml": None, "sex": "F"}) == 0
    lacking = reading.lacking(labels[3], rows[4] | {"luck": 2.0})
    assert list(lacking) == ["both_ml", "first_ml"]  # of the others labels say too little
    short = (rows[4]["both_ml"] - rows[3]["both_ml"]) / np.std([r["both_ml"] for r in rows])
    assert lacking["both_ml"] == pytest.approx(short, rel=0.05)
    again = LabelReading.from_json(reading.to_json())
    assert again.distance(labels[3], rows[4]) == reading.distance(labels[3], rows[4])


def test_nothing_to_read():
    labels, rows = cases(5)
    nothing = Conditions.fit({"sex": ["F", "M"]}, {"sex": "binary"})
    assert LabelReading.fit(sizes(labels), rows, nothing) is None
    known = Conditions.fit({"both_ml": [1.0, 20.0]}, {"both_ml": "continuous"})
    assert LabelReading.fit(sizes(labels), [{"both_ml": None}] * 5, known) is None
