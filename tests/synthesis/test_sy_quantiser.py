"""The codebook: nearest codes, averages, where codes begin and move to, what it keeps."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from monai.networks.layers.vector_quantizer import EMAQuantizer

from medpipe.errors import UsageError
from medpipe.synthesis import quantiser
from medpipe.synthesis.quantiser import Codebook, perplexity


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def begun(codes=12, width=4, seed=3, **how):
    """A codebook that has codes already, which the first batch does not choose."""
    book = Codebook(codes, width, **how)
    counts = noise(codes, seed=seed).abs() + 1
    vectors = noise(codes, width, seed=seed + 1)
    state = {
        "vectors": vectors,
        "counts": counts,
        "sums": vectors * counts[:, None],
        "idle": torch.zeros(codes),
        "steps": torch.tensor(1),
    }
    book.load_state_dict(state)
    return book


def clusters(count, each, width=3, seed=0, spread=0.01):
    """Points around centres on a line, 1 apart."""
    centres = torch.zeros(count, width)
    centres[:, 0] = torch.arange(count)
    points = centres.repeat_interleave(each, 0) + spread * noise(count * each, width, seed=seed)
    return points.T.reshape(1, width, count, each, 1), centres


def test_nearest_codes_are_those_of_all_distances(monkeypatch):
    book = begun(50, 6)
    x = noise(2, 6, 5, 4, 3)
    rows = x.movedim(1, -1).reshape(-1, 6).double()
    truth = torch.cdist(rows, book.vectors.double()).argmin(1).view(2, 5, 4, 3)
    assert torch.equal(book.nearest(x), truth)
    monkeypatch.setattr(quantiser, "TABLE", 7 * 50)  # in parts of seven rows
    assert torch.equal(book.nearest(x), truth)
    assert torch.equal(book.embed(truth)[1, :, 2, 3, 1], book.vectors[truth[1, 2, 3, 1]])


def test_averages_are_those_of_monai():
    mine = begun(decay=0.9, final_decay=0.9)
    peer = EMAQuantizer(3, 12, 4, commitment_cost=0.25, decay=0.9, epsilon=1e-12)
    peer.embedding.weight.data.copy_(mine.vectors)
    peer.ema_cluster_size.copy_(mine.counts)
    peer.ema_w.copy_(mine.sums)
    mine.train(), peer.train()
    for step in range(5):
        x = noise(2, 4, 4, 4, 4, seed=step)
        made = mine(x)
        values, loss, codes = peer(x)
        assert torch.equal(made.codes, codes)
        assert torch.allclose(made.values, values, atol=1e-6)
        assert torch.allclose(0.25 * made.commitment, loss, rtol=1e-5)
        assert torch.allclose(mine.vectors, peer.embedding.weight, atol=1e-5)


def test_an_average_is_the_closed_form_and_its_decay_follows_the_steps():
    book = begun(2, 1, decay=0.5, final_decay=0.9, decay_steps=4)
    book.load_state_dict(
        {
            "vectors": torch.tensor([[0.0], [10.0]]),
            "counts": torch.tensor([2.0, 2.0]),
            "sums": torch.tensor([[0.0], [20.0]]),
            "idle": torch.zeros(2),
            "steps": torch.tensor(0) + 1,
        }
    )
    book.train()
    count, total = [2.0, 2.0], [0.0, 20.0]
    for step in range(1, 8):
        made = book(torch.tensor([1.0, 2.0, 3.0, 9.0]).view(1, 1, 4, 1, 1))
        rate = 0.5 + min(1, step / 4) * 0.4
        count = [rate * c + (1 - rate) * n for c, n in zip(count, (3, 1), strict=True)]
        total = [rate * t + (1 - rate) * n for t, n in zip(total, (6, 9), strict=True)]
        expected = [t / c for t, c in zip(total, count, strict=True)]
        assert book.vectors[:, 0].tolist() == pytest.approx(expected, rel=1e-5)
        assert made.codes.flatten().tolist() == [0, 0, 0, 1]
    assert float(made.perplexity) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )


def test_gradients_pass_straight_through_and_pull_to_the_codes():
    book = begun().eval()
    x = noise(1, 4, 2, 3, 1).requires_grad_()
    made = book(x)
    weight = noise(1, 4, 2, 3, 1, seed=9)
    (made.values * weight).sum().backward(retain_graph=True)
    assert torch.equal(x.grad, weight)
    x.grad = None
    made.commitment.backward()
    assert torch.allclose(x.grad, 2 * (x - book.embed(made.codes)).detach() / x.numel(), atol=1e-6)


def test_the_first_batch_decides_where_codes_begin():
    x, centres = clusters(16, 20)
    book = Codebook(16, 3, seed=1).train()
    made = book(x)
    order = book.vectors[:, 0].argsort()
    assert torch.allclose(book.vectors[order], centres, atol=0.05)
    assert float(made.perplexity) == pytest.approx(16, rel=1e-4)
    assert int(book.steps) == 1
    # codes that begin at random do not reach them: MONAI's
    torch.manual_seed(0)
    peer = EMAQuantizer(3, 16, 3, decay=0.5).train()
    used = len(peer(x * 0.001)[2].unique())
    assert used <= 3 < len(Codebook(16, 3).train()(x * 0.001).codes.unique())


def test_a_codebook_larger_than_the_batch_begins_too():
    x = noise(1, 3, 2, 2, 1)
    made = Codebook(16, 3).train()(x)
    assert torch.allclose(made.values, x, atol=1e-6)
    assert float(made.perplexity) == pytest.approx(4, rel=1e-4)


@pytest.mark.parametrize(("restart_after", "alive"), [(3.0, True), (1e9, False)])
def test_codes_that_nobody_chooses_move_to_where_the_error_is(restart_after, alive):
    """The data move away from all codes but one; codes follow, or stay behind."""
    book = Codebook(16, 3, restart_after=restart_after, decay=0.9, final_decay=0.9).train()
    x, _ = clusters(16, 20)
    book(x)
    far = 100 + 10 * x
    for _ in range(40):
        made = book(far)
    assert (float(made.perplexity) > 13) == alive
    assert (float(made.perplexity) < 3) == (not alive)


def test_the_seed_decides_and_nothing_else():
    x = noise(2, 3, 6, 6, 6)

    def run(seed, torch_seed):
        torch.manual_seed(torch_seed)
        book = Codebook(24, 3, seed=seed, restart_after=2.0).train()
        for step in range(6):
            book(x + 5 * noise(1, 3, 1, 1, 1, seed=step))
        return book.vectors

    assert torch.equal(run(1, 10), run(1, 11))
    assert not torch.equal(run(1, 10), run(2, 10))


def test_all_that_is_needed_to_continue_is_in_the_state():
    batches = [noise(2, 3, 6, 6, 6, seed=s) * (1 + s) for s in range(8)]
    how = {"restart_after": 2.0, "decay": 0.5, "final_decay": 0.95, "decay_steps": 6}
    whole = Codebook(24, 3, **how).train()
    for x in batches:
        whole(x)
    first = Codebook(24, 3, **how).train()
    for x in batches[:3]:
        first(x)
    second = Codebook(24, 3, **how).train()
    second.load_state_dict(first.state_dict())
    for x in batches[3:]:
        second(x)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_nothing_is_quantised_while_it_warms_up():
    book = Codebook(16, 3).train()
    book.warmup = 2
    x = noise(1, 3, 4, 4, 4).requires_grad_()
    for _ in range(2):
        made = book(x)
        assert torch.equal(made.values, x)
        assert float(made.commitment) == 0
        assert not torch.equal(book.eval()(x).values, x)  # codes follow, to be asked
        book.train()
    made = book(x)
    assert not torch.equal(made.values, x)
    made.commitment.backward()
    assert float(x.grad.abs().sum()) > 0


def test_codes_begin_anew_from_several_batches_after_the_warmup():
    """Each batch is of other clusters; the first one is far from all of them."""
    x, _ = clusters(24, 40)
    how = {"restart_after": 1e9, "decay": 0.9, "final_decay": 0.9}
    batches = [100 + x, *(x[:, :, n : n + 4] for n in range(0, 24, 4))]

    def learn(warmup):
        book = Codebook(32, 3, **how).train()
        book.warmup = warmup
        for batch in [*batches, batches[1]]:
            made = book(batch)
        assert "pool" not in book.state_dict()
        return made, float(book.eval()(x).commitment)

    made, error = learn(7)
    assert len(made.codes.unique()) >= 4
    assert error < 0.05
    _, stayed = learn(0)
    assert stayed > 100


def test_what_is_rare_gets_codes():
    """Eight structures are 4 % of what is looked at; the rest is one background with noise."""
    x, _ = clusters(9, 4)
    rare = 3 * x[0, :, 1:].reshape(3, -1)
    background = 0.02 * noise(3, 800)
    book = Codebook(128, 3).train()
    book(torch.cat([background, rare], 1)[None])
    nearest = torch.cdist(rare.T, book.vectors).min(1).values
    assert float(nearest.max()) < 0.1


@pytest.mark.parametrize("stop", [2, 5, 6])
def test_a_warmup_continues_with_the_same_bits(stop):
    batches = [noise(2, 3, 4, 4, 4, seed=s) for s in range(9)]

    def learn(book, some):
        book.train()
        book.warmup = 6
        for x in some:
            book(x)
        return book

    whole = learn(Codebook(12, 3), batches).state_dict()
    second = Codebook(12, 3)
    second.load_state_dict(learn(Codebook(12, 3), batches[:stop]).state_dict())
    again = learn(second, batches[stop:]).state_dict()
    assert whole.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_nothing_is_learned_in_evaluation():
    book = begun().eval()
    before = {n: v.clone() for n, v in book.state_dict().items()}
    book(noise(2, 4, 4, 4, 4))
    assert all(torch.equal(v, before[n]) for n, v in book.state_dict().items())


def test_autocast_changes_no_code():
    x = noise(2, 4, 6, 6, 6)
    plain, mixed = begun().train(), begun().train()
    expected = plain(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = mixed(x)
    assert torch.equal(made.codes, expected.codes)
    assert torch.equal(mixed.vectors, plain.vectors)
    half = begun().eval()(x.bfloat16())
    assert half.values.dtype == torch.bfloat16
    assert half.commitment.dtype == torch.float32


def test_perplexity_counts_even_codes():
    assert float(perplexity(torch.tensor([5.0, 5, 5, 5, 0]))) == pytest.approx(4)
    assert float(perplexity(torch.tensor([0.0, 9]))) == pytest.approx(1)


def test_wrong_settings_are_named():
    for bad in ({"decay": 0.9, "final_decay": 0.5}, {"restart_after": 0}, {"decay_steps": -1}):
        with pytest.raises(UsageError, match="codebook"):
            Codebook(4, 2, **bad)
    with pytest.raises(UsageError, match="codebook"):
        Codebook(1, 2)


TWO = """
import sys, torch
import ignite.distributed as idist
from medpipe.synthesis.quantiser import Codebook

def run(rank, file):
    book = Codebook(12, 3, restart_after=1e9, seed=rank).train()
    g = torch.Generator().manual_seed(0)
    state = book.state_dict()
    vectors = torch.randn(12, 3, generator=g)
    state |= {"vectors": vectors, "sums": vectors * 2, "counts": torch.full((12,), 2.0)}
    state["steps"] = torch.tensor(1)
    book.load_state_dict(state)
    world = idist.get_world_size()
    for step in range(4):
        x = torch.randn(4, 3, 3, 3, 3, generator=g)
        book(x[rank::world])
    other = Codebook(6, 3, seed=rank).train()
    other(torch.randn(4, 3, 3, 3, 3, generator=torch.Generator().manual_seed(rank)))
    both = idist.all_gather(other.vectors[None])
    if rank == 0:
        torch.save({"vectors": book.vectors, "begun": both}, file)

if __name__ == "__main__":
    run(0, sys.argv[1])
    with idist.Parallel(backend="gloo", nproc_per_node=2) as parallel:
        parallel.run(run, sys.argv[2])
"""


@pytest.mark.slow
def test_two_processes_average_as_one_and_keep_the_same_codes(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    files = [str(tmp_path / name) for name in ("one.pt", "two.pt")]
    subprocess.run(
        [sys.executable, str(script), *files], check=True, timeout=240, capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    one, two = (torch.load(f, weights_only=True) for f in files)
    assert torch.allclose(one["vectors"], two["vectors"], atol=1e-5)
    assert torch.equal(two["begun"][0], two["begun"][1])
