"""Training of a prior: it reaches the entropy of what made the codes, resumes, keeps, refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from medpipe.errors import InputError, UsageError
from medpipe.synthesis.conditions import Conditions
from medpipe.synthesis.prior import PriorSettings
from medpipe.synthesis.prior_model import PriorModel
from medpipe.synthesis.prior_training import ConditionedCodes, PriorTraining, train_prior
from medpipe.synthesis.sampling import sample_codes

GRID = (2, 2, 2)
LENGTH = 8
NETWORK = PriorSettings(codes=4, grid=GRID, width=32, layers=2, heads=2, dropout=0.1)
SHORT = PriorTraining(
    iterations=9, batch_size=4, warmup=2, validate_every=4, validation_share=0.25, ema_decay=0.5
)


def population(count, seed=0):
    """Codes 0 and 1 evenly for one sex, 2 and 3 for the other; age says nothing."""
    made = torch.Generator().manual_seed(seed)
    sex = torch.randint(0, 2, (count,), generator=made)
    codes = torch.randint(0, 2, (count, *GRID), generator=made) + 2 * sex.view(-1, 1, 1, 1)
    age = torch.rand(count, generator=made) * 50 + 20
    return codes, {"sex": ["FM"[s] for s in sex.tolist()], "age": age.tolist()}


KINDS = {"sex": "binary", "age": "continuous"}


class StopError(Exception):
    pass


def stop_at(n):
    def tell(at):
        if at.iteration == n:
            raise StopError

    return tell


def weights(model):
    return model.prior.state_dict()


@pytest.fixture(scope="module")
def learned():
    codes, table = population(240)
    training = PriorTraining(
        iterations=250, batch_size=32, learning_rate=3e-3, warmup=20, hide=0.3, hide_each=0.0,
        validate_every=50, validation_share=0.25,
    )  # fmt: skip
    return train_prior(
        codes, table, KINDS, NETWORK, training, units={"age": "years"}, tokeniser="ab", device="cpu"
    )


def test_held_out_likelihoods_reach_the_entropies_of_what_made_the_codes(learned):
    """log 2 per token for a known sex; unknown, the first token tells it: log 2 more for all."""
    found = learned.facts["held_out"]
    assert found["n"] == 60
    conditional, unconditional = (found[k]["mean"] for k in ("conditional", "unconditional"))
    assert conditional == pytest.approx(math.log(2), abs=0.03)
    assert unconditional == pytest.approx(math.log(2) * (1 + 1 / LENGTH), abs=0.03)
    assert found["gain"]["mean"] == pytest.approx(unconditional - conditional, abs=1e-6)
    best = min(row["metric"] for row in learned.history)
    assert conditional == pytest.approx(best, abs=1e-5)
    assert "age" in learned.conditions.names
    assert learned.conditions.items[1].unit == "years"


def test_codes_are_drawn_as_asked(learned):
    values, present = learned.conditions.encode([{"sex": s, "age": 40.0} for s in "FM" * 8])
    drawn = sample_codes(learned.prior, values, present, seeds=range(16))
    shares = (drawn >= 2).float().mean(1)
    assert float(shares[::2].mean()) < 0.05
    assert float(shares[1::2].mean()) > 0.95


def test_likelihoods_of_new_volumes(learned):
    codes, table = population(40, seed=9)
    rows = [{"sex": s} for s in table["sex"]]
    told, untold = learned.nll(codes, rows)
    assert told.shape == untold.shape == (40,)
    assert float(told.mean()) == pytest.approx(math.log(2), abs=0.04)
    wrong, same = learned.nll(codes, [{"sex": "FM"[s == "F"]} for s in table["sex"]])
    assert float(wrong.mean()) > float(untold.mean()) + 0.2
    assert torch.allclose(same, untold)
    with pytest.raises(UsageError, match="one row of conditions for each volume; expected 40"):
        learned.nll(codes, rows[:3])


def test_a_training_that_was_killed_ends_with_the_same_bits(tmp_path):
    """Dropout, hidden conditions, the average and the schedule are all in the checkpoint."""
    codes, table = population(20)

    def run(**how):
        return train_prior(codes, table, KINDS, NETWORK, SHORT, device="cpu", **how)

    file = tmp_path / "run.pt"
    with pytest.raises(StopError):
        run(checkpoint=file, progress=stop_at(6))
    again, whole = run(checkpoint=file), run()
    assert all(torch.equal(weights(again)[n], weights(whole)[n]) for n in weights(whole))
    assert again.history == whole.history
    assert again.facts == whole.facts
    other = torch.flip(codes, (0,))
    with pytest.raises(UsageError, match=r"checkpoint is of other settings.*got data"):
        train_prior(other, table, KINDS, NETWORK, SHORT, device="cpu", checkpoint=file)
    with pytest.raises(UsageError, match=r"checkpoint is of other settings.*hide_each"):
        train_prior(
            codes, table, KINDS, NETWORK, replace(SHORT, hide_each=0.5), device="cpu",
            checkpoint=file,
        )  # fmt: skip


def test_a_file_holds_all_of_it(learned, tmp_path):
    path = tmp_path / "prior.safetensors"
    path.write_bytes(learned.to_bytes({"name": "test"}))
    back = PriorModel.read(path)
    assert back.settings == learned.settings
    assert back.conditions == learned.conditions
    assert (back.tokeniser, back.facts["name"]) == ("ab", "test")
    assert all(torch.equal(weights(back)[n], weights(learned)[n]) for n in weights(learned))
    assert back.to_bytes() == path.read_bytes()
    half = PriorModel.from_bytes(learned.to_bytes(half=True))
    assert weights(half)["start"].dtype == torch.float32
    assert torch.allclose(weights(half)["start"], weights(learned)["start"], atol=1e-3)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"prior.safetensors"):
        PriorModel.read(path)


def test_conditions_are_hidden_together_and_alone_augmentations_only_together():
    kinds = {"sex": "binary", "site": "category", "shift": "augmentation"}
    table = {"sex": ["F", "M"], "site": ["a", "b"], "shift": [0, 2]}
    conditions = Conditions.fit(table, kinds)
    values, present = conditions.encode([{"sex": "F", "site": "b", "shift": 1}])
    codes = torch.zeros(1, LENGTH, dtype=torch.int64)
    data = ConditionedCodes(codes, values, present, conditions, hide=0.2, hide_each=0.3)
    data.set_random_state(seed=0)
    shown = torch.stack([data[0][0]["present"] for _ in range(3000)]).double()
    assert bool((shown[:, 1] == shown[:, 2]).all())  # the columns of a category
    share = shown.mean(0)
    assert float(share[3]) == pytest.approx(0.8, abs=0.03)
    assert float(share[0]) == pytest.approx(0.8 * 0.7, abs=0.03)
    none = (shown.sum(1) == 0).double().mean()
    assert float(none) == pytest.approx(0.2, abs=0.03)


def test_all_volumes_of_a_subject_are_on_one_side_and_augmented_ones_do_not_validate():
    codes, table = population(12)
    table["shift"] = [0, 1, -1] * 4
    subjects = [n // 3 for n in range(12)]
    model = train_prior(
        codes, table, KINDS | {"shift": "augmentation"}, NETWORK, replace(SHORT, iterations=3),
        subjects=subjects, validation=[1, 3], device="cpu",
    )  # fmt: skip
    assert (model.facts["trained"]["n"], model.facts["held_out"]["n"]) == (6, 2)
    assert model.settings.conditions == 3


def test_batches_of_another_size_follow_legw():
    how = PriorTraining(
        iterations=1000, batch_size=64, written_for_batch=16, learning_rate=1e-3, warmup=50
    ).loop()
    assert (how.batch_size, how.iterations, how.warmup) == (64, 250, 50)
    assert how.learning_rate == pytest.approx(2e-3)


def test_what_does_not_fit_is_named():
    codes, table = population(4)

    def run(codes=codes, table=table, kinds=KINDS, network=NETWORK, **how):
        return train_prior(codes, table, kinds, network, SHORT, device="cpu", **how)

    with pytest.raises(UsageError, match="another codebook; expected 0 to 3, got 4 to 7"):
        run(codes % 2 + torch.tensor([4, 6]).repeat(2).view(-1, 1, 1, 1))
    with pytest.raises(UsageError, match=r"not those of the prior; expected a grid of \(2, 2, 2\)"):
        run(codes[:, :1])
    with pytest.raises(UsageError, match="lacks a condition; expected sex, got age"):
        run(table={"age": table["age"]})
    with pytest.raises(UsageError, match=r"condition age: .*one row for each volume"):
        run(table=table | {"age": [1.0, 2.0]})
    with pytest.raises(UsageError, match="a subject to validate with is not there"):
        run(validation=[9])
    with pytest.raises(UsageError, match="a subject that does not validate"):
        run(validation=[0, 1, 2, 3])
    with pytest.raises(UsageError, match="hide, hide_each and validation_share"):
        PriorTraining(hide=1.0)
