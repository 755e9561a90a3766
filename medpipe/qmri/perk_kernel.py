"""PERK's sums of cosines, compiled for the host and written in torch for other devices.

For regressors q, frequencies Ω, phases φ and read-outs W and V the kernel gives
W cos(Ωᵀq + φ) and V sin(Ωᵀq + φ) in float32. On the host a voxel's cosines stay in the
first-level cache and are computed by a polynomial of a turn, some five times faster
than a matrix product, a cosine and a second product one after the other.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from medpipe.jit import compiled_fastmath

__all__ = ["cosine_sums"]

DEVICE_ROWS = 65536
"""Rows at a time on a GPU: 262 MB of 1000 features."""
THREAD_ROWS = 2048
"""Rows at a time on the host, for one thread or in one matrix product."""

Floats = NDArray[np.float32]

# sin(2πu)/u in powers of u² for |u| ≤ ¼, fitted at Chebyshev points; the sine is right to 7e-9
S0, S1, S2, S3, S4 = (
    np.float32(c) for c in (6.28318528, -41.34168068, 81.60248108, -76.58128818, 39.76072296)
)
HALF, QUARTER, ZERO = np.float32(0.5), np.float32(0.25), np.float32(0)


@compiled_fastmath
def _sums(
    q: Floats,
    turns: Floats,
    phases: Floats,
    cosines: Floats,
    sines: Floats,
    out: Floats,
) -> None:
    """Fill out[i] with the read-outs of cos, then of sin, at row i; angles in turns."""
    regressors, count = turns.shape
    angle = np.empty(count, np.float32)
    wave = np.empty(count, np.float32)
    for i in range(q.shape[0]):
        for z in range(count):
            angle[z] = phases[z]
        for k in range(regressors):
            value = q[i, k]
            for z in range(count):
                angle[z] += value * turns[k, z]
        for part in range(2):
            readout = cosines if part == 0 else sines
            if readout.shape[0] == 0:
                continue
            # sin is cos a quarter of a turn later; cos is even, so the sign may go
            shift = ZERO if part == 0 else QUARTER
            for z in range(count):
                a = abs(angle[z] - shift)
                r = a - np.float32(np.int32(a + HALF))
                u = QUARTER - abs(r)
                s = u * u
                wave[z] = u * (S0 + s * (S1 + s * (S2 + s * (S3 + s * S4))))
            first = 0 if part == 0 else cosines.shape[0]
            for j in range(readout.shape[0]):
                total = ZERO
                for z in range(count):
                    total += wave[z] * readout[j, z]
                out[i, first + j] = total


def _host(
    q: torch.Tensor,
    frequencies: torch.Tensor,
    phases: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    threads: int,
) -> torch.Tensor:
    """Return the sums from the compiled loop, rows shared among threads."""
    out = torch.empty(q.shape[0], cosines.shape[0] + sines.shape[0])
    turns, turned = frequencies / (2 * math.pi), phases / (2 * math.pi)
    omega, shift, real, imaginary = (
        t.to(torch.float32).contiguous().numpy() for t in (turns, turned, cosines, sines)
    )
    rows, filled = q.to(torch.float32).contiguous().numpy(), out.numpy()

    def work(start: int) -> None:
        part = slice(start, start + THREAD_ROWS)
        _sums(rows[part], omega, shift, real, imaginary, filled[part])

    starts = range(0, len(rows), THREAD_ROWS)
    threads = min(threads, len(starts))
    if threads < 2:
        for start in starts:
            work(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, starts))
    return out


def _device(
    q: torch.Tensor,
    frequencies: torch.Tensor,
    phases: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
) -> torch.Tensor:
    """Return the sums by matrix products in q's dtype, in chunks."""
    omega, shift = frequencies.to(q), phases.to(q)
    parts = []
    for rows in q.split(THREAD_ROWS if q.device.type == "cpu" else DEVICE_ROWS):
        angles = torch.addmm(shift, rows, omega)
        turned = angles.sin() @ sines.to(q).T if sines.shape[0] else None
        found = angles.cos_() @ cosines.to(q).T
        parts.append(found if turned is None else torch.cat([found, turned], 1))
    return torch.cat(parts)


@contextlib.contextmanager
def _full_precision(q: torch.Tensor) -> Iterator[None]:
    """Keep all digits of float32 in products on a GPU, whatever the process has set."""
    if q.device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def cosine_sums(
    q: torch.Tensor,
    frequencies: torch.Tensor,
    phases: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor | None = None,
    *,
    threads: int | None = None,
) -> torch.Tensor:
    """Return the read-outs of cos(q·frequencies + phases), then of the sine, (N, C + S).

    Parameters
    ----------
    q : Tensor
        (N, Q); float32 on the host takes the compiled loop, all else matrix products
        (in full float32 also on a GPU: read-outs reach 1e6, a shorter mantissa is lost).
    frequencies : Tensor
        (Q, Z), angular.
    phases : Tensor
        (Z,).
    cosines : Tensor
        (C, Z), read-outs of the cosines.
    sines : Tensor, optional
        (S, Z), read-outs of the sines.
    threads : int, optional
        Of the compiled loop; by default as many as torch has.
    """
    sines = cosines[:0] if sines is None else sines
    if q.shape[0] == 0:
        return q.new_empty(0, cosines.shape[0] + sines.shape[0])
    if q.device.type == "cpu" and q.dtype == torch.float32:
        count = torch.get_num_threads() if threads is None else threads
        return _host(q, frequencies, phases, cosines, sines, count)
    with _full_precision(q):
        return _device(q, frequencies, phases, cosines, sines)
