"""Bloch and phase-graph simulations in numpy that share nothing with the package."""

from __future__ import annotations

import numpy as np


def rotation_x(angle_deg: float, phase_deg: float = 0.0) -> np.ndarray:
    """Rotation by a pulse about an axis of the transverse plane, (3, 3)."""
    a, p = np.radians([angle_deg, phase_deg])
    turn = np.array([[1, 0, 0], [0, np.cos(a), np.sin(a)], [0, -np.sin(a), np.cos(a)]])
    axis = np.array([[np.cos(p), -np.sin(p), 0], [np.sin(p), np.cos(p), 0], [0, 0, 1]])
    return axis @ turn @ axis.T


def precession(phase: np.ndarray) -> np.ndarray:
    """Rotations about z by phases in rad, (..., 3, 3)."""
    c, s, o, i = np.cos(phase), np.sin(phase), np.zeros_like(phase), np.ones_like(phase)
    rows = [np.stack(r, -1) for r in ((c, s, o), (-s, c, o), (o, o, i))]
    return np.stack(rows, -2)


def relaxation(time: float, t1: float, t2: float) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and vector of the relaxation over `time`."""
    e1, e2 = np.exp(-time / t1), np.exp(-time / t2)
    return np.diag([e2, e2, e1]), np.array([0, 0, 1 - e1])


def dess(
    angle_deg: float, tr: float, te: float, t1: float, t2: float, r2_prime: float = 0.0
) -> tuple[float, float]:
    """Both echoes of a DESS from isochromats in their exact steady state.

    Each isochromat has its own gradient phase per TR and its own off-resonance
    (a Lorentzian of half width R2'); the gradient acts between the echoes only.
    """
    n, many = (128, 4001) if r2_prime else (400, 1)
    gradient = 2 * np.pi * (np.arange(n) + 0.5) / n
    omega = r2_prime * np.tan(np.pi * ((np.arange(many) + 0.5) / many - 0.5))
    phase, omega = (x.ravel() for x in np.meshgrid(gradient, omega, indexing="ij"))
    pulse = rotation_x(angle_deg)
    near, gained_near = relaxation(te, t1, t2)
    far, gained_far = relaxation(tr - 2 * te, t1, t2)
    first = precession(omega * te) @ near @ pulse  # pulse → echo 1
    between = precession(omega * (tr - 2 * te) + phase) @ far  # echo 1 → echo 2
    last = precession(omega * te) @ near  # echo 2 → pulse
    whole = last @ between @ first
    offset = last @ (between @ gained_near + gained_far)[..., None]
    offset = offset[..., 0] + gained_near
    before = np.linalg.solve(np.eye(3) - whole, offset[..., None])[..., 0]
    echo1 = (first @ before[..., None])[..., 0] + gained_near
    echo2 = (between @ echo1[..., None])[..., 0] + gained_far
    return tuple(float(abs(np.mean(e[:, 0] + 1j * e[:, 1]))) for e in (echo1, echo2))


def spoiled(angle_deg: float, tr: float, te: float, t1: float, t2: float, *, ideal: bool) -> float:
    """Steady state of a spoiled gradient echo, pulse by pulse from equilibrium.

    Ideal spoiling removes the transverse magnetisation before each pulse; the
    other kind dephases it by a gradient and moves the phase of the pulses by
    quadratic steps of 117°.
    """
    n = 1 if ideal else 512
    turn = precession(2 * np.pi * np.arange(n) / n)
    before, gained_before = relaxation(te, t1, t2)
    after, gained_after = relaxation(tr - te, t1, t2)
    m = np.tile([0.0, 0.0, 1.0], (n, 1))
    signals = []
    pulses = int(8 * t1 / tr)
    for i in range(pulses):
        m = m @ rotation_x(angle_deg, 117.0 * i * (i + 1) / 2).T
        m = m @ before.T + gained_before
        signals.append(abs(np.mean(m[:, 0] + 1j * m[:, 1])))
        m = m @ after.T + gained_after
        m = (turn @ m[..., None])[..., 0]
        if ideal:
            m[:, :2] = 0
    return float(np.mean(signals[-50:]))


def cpmg(
    excitation_deg: float, refocusing_deg: float, spacing: float, n: int, t1: float, t2: float
) -> np.ndarray:
    """Echoes of a CPMG train with crushers by phase-graph matrices over all orders."""
    orders = 2 * n + 2
    plus, minus, z = (np.zeros(orders, complex) for _ in range(3))
    a = np.radians(excitation_deg)
    plus[0] = minus[0] = np.sin(a)  # along x, after a pulse about -y
    z[0] = np.cos(a)
    a = np.radians(refocusing_deg)
    c2, s2 = np.cos(a / 2) ** 2, np.sin(a / 2) ** 2
    pulse = np.array(
        [
            [c2, s2, -1j * np.sin(a)],
            [s2, c2, 1j * np.sin(a)],
            [-0.5j * np.sin(a), 0.5j * np.sin(a), np.cos(a)],
        ]
    )
    e1, e2 = np.exp(-spacing / 2 / t1), np.exp(-spacing / 2 / t2)

    def half(plus, minus, z):
        plus, minus, z = e2 * plus, e2 * minus, e1 * z
        z[0] += 1 - e1
        plus, minus = np.r_[0, plus[:-1]], np.r_[minus[1:], 0]
        plus[0] = minus[0].conj()
        return plus, minus, z

    echoes = []
    for _ in range(n):
        plus, minus, z = half(plus, minus, z)
        plus, minus, z = pulse @ np.stack([plus, minus, z])
        plus, minus, z = half(plus, minus, z)
        echoes.append(plus[0].real)
    return np.array(echoes)


def cpmg_isochromats(
    excitation_deg: float, refocusing_deg: float, spacing: float, n: int, t1: float, t2: float
) -> np.ndarray:
    """Echoes of the same train from 1024 isochromats, a turn per half spacing across them."""
    phase = 2 * np.pi * np.arange(1024) / 1024
    turn = precession(phase)
    matrix, gained = relaxation(spacing / 2, t1, t2)
    m = np.tile([0.0, 0.0, 1.0], (phase.size, 1)) @ rotation_x(excitation_deg, 90.0).T
    refocus = rotation_x(refocusing_deg).T
    echoes = []
    for _ in range(n):
        m = (turn @ (m @ matrix.T + gained)[..., None])[..., 0] @ refocus
        m = (turn @ (m @ matrix.T + gained)[..., None])[..., 0]
        echoes.append(np.mean(m[:, 0]))
    return np.array(echoes) * np.sign(echoes[0])


def inversion(ti: float, tr: float, t1: float, efficiency: float) -> float:
    """Mz at TI after many repetitions of inversion, TI, 90° pulse, TR - TI."""
    z = 1.0
    for _ in range(200):
        z = -efficiency * z
        read = 1 - (1 - z) * np.exp(-ti / t1)
        z = 1 - np.exp(-(tr - ti) / t1)
    return float(read)


def mp2rage(
    ti: tuple[float, float],
    angles_deg: tuple[float, float],
    tr: float,
    tr_preparation: float,
    before: int,
    after: int,
    t1: float,
    efficiency: float,
) -> tuple[float, float]:
    """Both readouts, excitation by excitation, after many repetitions."""
    starts = [t - before * tr for t in ti]
    z = 1.0
    for _ in range(60):
        z, now, reads = -efficiency * z, 0.0, []
        for start, angle in zip(starts, np.radians(angles_deg), strict=True):
            z = 1 - (1 - z) * np.exp(-(start - now) / t1)
            for i in range(before + after):
                if i == before:
                    reads.append(np.sin(angle) * z)
                z = 1 - (1 - z * np.cos(angle)) * np.exp(-tr / t1)
            now = start + (before + after) * tr
        z = 1 - (1 - z) * np.exp(-(tr_preparation - now) / t1)
    return float(reads[0]), float(reads[1])
