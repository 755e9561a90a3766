"""Sparse attention against its mask: what is attended to, what comes out, its gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from medpipe.errors import UsageError
from medpipe.synthesis import attention
from medpipe.synthesis.attention import AttentionPattern, attend
from medpipe.synthesis.orders import token_order
from medpipe.synthesis.positions import RelativeBias, coordinates, rotary_tables, rotate

PATTERNS = [
    AttentionPattern((3, 2, 4), "raster", "dense"),
    AttentionPattern((3, 2, 4), "hilbert", "dense"),
    AttentionPattern((4, 2, 3), "raster", "plane-column"),
    AttentionPattern((4, 3, 3), "s-curve", "plane-column"),
    AttentionPattern((1, 3, 2), "raster", "plane-column"),
    AttentionPattern((6,), "raster", "plane-column"),
    AttentionPattern((3, 3, 3), "raster", "strided"),
    AttentionPattern((5, 5), "hilbert", "strided", stride=4),
    AttentionPattern((3, 3, 3), "raster", "fixed", summary=2),
    AttentionPattern((5, 5), "s-curve", "fixed", stride=4, summary=9),
]


def name(pattern):
    return f"{pattern.kind} {pattern.order} {pattern.grid}"


@pytest.fixture(params=PATTERNS, ids=name)
def pattern(request):
    return request.param


@pytest.fixture(params=[{}, {"CHUNK": 200, "ROWS": 4, "KEPT": 200}], ids=["at once", "in parts"])
def chunk(request, monkeypatch):
    for name, size in request.param.items():
        monkeypatch.setattr(attention, name, size)


def tensors(pattern, requires_grad=False):
    torch.manual_seed(3)
    shape = (2, 3, pattern.length, 6)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad) for _ in range(3)]


def bias_of(pattern):
    order = token_order(pattern.grid, pattern.order)
    bias = RelativeBias(pattern.grid, order, 3).double()
    torch.nn.init.normal_(bias.table)
    return bias


def test_plane_and_column_are_what_they_are_called():
    pattern = AttentionPattern((4, 3, 3), "s-curve", "plane-column")
    places = coordinates(pattern.grid, token_order(pattern.grid, pattern.order)).tolist()
    mask = pattern.mask()
    for i, j in itertools.product(range(36), repeat=2):
        if j == 0:
            expected = True
        elif j > i:
            expected = False
        else:  # input j holds the code at position j - 1
            drawn, held = places[i], places[j - 1]
            expected = held[0] == drawn[0] or held[1:] == drawn[1:]
        assert mask[i, j] == expected, (i, j)


@pytest.mark.parametrize(("kind", "stride"), [("strided", 4), ("fixed", 4), ("strided", 5)])
def test_the_published_patterns(kind, stride):
    """The sets of arXiv 1904.10509, section 4.2 and 4.3, with both factors in one."""
    summary = 2
    mask = AttentionPattern((3, 3, 3), kind=kind, stride=stride, summary=summary).mask()
    for i in range(27):
        if kind == "strided":
            first = set(range(max(0, i - stride), i + 1))
            second = {j for j in range(i + 1) if (i - j) % stride == 0}
        else:
            first = {j for j in range(i + 1) if j // stride == i // stride}
            second = {j for j in range(i + 1) if j % stride in range(stride - summary, stride)}
        assert set(mask[i].nonzero().flatten().tolist()) == first | second


def test_lists_name_what_the_mask_shows(pattern):
    mask = pattern.mask()
    for i in range(pattern.length):
        row, count = pattern.rest(i)
        rest = pattern.rest_table[row, :count].tolist()
        local = list(range(pattern.local(i), i + 1))
        assert all(j < i for j in rest)
        assert len({*rest, *local}) == len(rest) + len(local)
        assert sorted(rest + local) == mask[i].nonzero().flatten().tolist()
    assert pattern.pairs == int(mask.sum())


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("biased", [False, True])
def test_blocks_give_what_the_mask_gives_with_gradients(pattern, biased):
    bias = bias_of(pattern) if biased else None
    q, k, v = tensors(pattern, requires_grad=True)
    at = torch.arange(pattern.length)
    mask = torch.zeros(1, dtype=torch.float64) if bias is None else bias(at[:, None], at[None])
    mask = mask.expand(3, pattern.length, -1) if biased else mask
    hidden = ~pattern.mask()
    expected = scaled_dot_product_attention(
        q, k, v, attn_mask=(mask + torch.zeros(hidden.shape)).masked_fill(hidden, -torch.inf)
    )
    found = attend(q, k, v, pattern, bias)
    assert torch.allclose(found, expected, atol=1e-12)
    wanted = [q, k, v, *([bias.table] if biased else [])]
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((found * weights).sum(), wanted)
    theirs = torch.autograd.grad((expected * weights).sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
        assert b.abs().max() > 0


def test_sparse_patterns_have_few_pairs():
    dense = AttentionPattern((20, 28, 20)).pairs
    assert dense == 11200 * 11201 // 2
    planes = AttentionPattern((20, 28, 20), kind="plane-column").pairs
    # each token meets half a plane, half of the former planes and the start
    assert planes == 20 * (560 * 559 // 2) + 560 * (20 * 19 // 2) + 11200
    assert dense / planes > 18
    assert dense / AttentionPattern((20, 28, 20), kind="strided").pairs > 30


def test_a_rotated_product_depends_on_the_offset_alone():
    torch.manual_seed(0)
    grid, order = (4, 5, 6), token_order((4, 5, 6), "raster")
    places = coordinates(grid, order)
    queries, keys = rotary_tables(places, 14)
    x, y = torch.randn(2, 14, dtype=torch.float64)
    q = rotate(x.expand(120, -1), queries)
    k = rotate(y.expand(120, -1), keys)[1:]  # key j holds position j - 1
    products = q @ k.T
    seen: dict[tuple[int, ...], float] = {}
    for i, j in itertools.product(range(119), repeat=2):
        offset = tuple((places[i] - places[j]).tolist())
        assert float(products[i, j]) == pytest.approx(
            seen.setdefault(offset, float(products[i, j])), abs=1e-5
        )
    assert len({round(p, 4) for p in seen.values()}) > 0.9 * len(seen)


def test_the_relative_bias_looks_up_the_bucket_of_every_axis():
    grid, order = (9, 4, 3), token_order((9, 4, 3), "hilbert")
    bias = RelativeBias(grid, order, 2)
    torch.nn.init.normal_(bias.table)
    places = coordinates(grid, order).tolist()
    at = torch.arange(108)
    found = bias(at[:, None], at[None])

    def bucket(offset):
        far = abs(offset)
        size = far if far <= 2 else 3 if far <= 5 else 4
        return 4 + (size if offset > 0 else -size)

    for i, j in itertools.product(range(0, 108, 5), range(1, 108, 3)):
        a, b, c = (bucket(p - q) for p, q in zip(places[i], places[j - 1], strict=True))
        assert torch.equal(found[:, i, j], bias.table[:, (a * 9 + b) * 9 + c])
    assert torch.equal(found[:, :, 0], bias.table[:, -1:].expand(-1, 108))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "local"}, "unknown attention.*got local"),
        ({"kind": "plane-column", "order": "hilbert"}, "not pass plane by plane"),
        ({"kind": "strided", "stride": 0}, "stride and summary are wrong"),
    ],
)
def test_patterns_that_cannot_be_are_named(settings, said):
    with pytest.raises(UsageError, match=said):
        AttentionPattern((2, 2, 2), **settings)


def test_heads_too_narrow_for_rotations_are_named():
    places = coordinates((2, 2, 2), torch.arange(8))
    with pytest.raises(UsageError, match="an even width of 6 or more for each head, got 4"):
        rotary_tables(places, 4)
