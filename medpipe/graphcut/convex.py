"""Convex priors on the distance between neighbouring surface positions, and their arcs.

A prior ψ acts on real positions in mm, so columns need not be sampled regularly.
Its graph is that of Shah, Abràmoff and Wu (arXiv 1611.03059): with F(y) the cost
of lying y above the neighbour (0 for y ≤ 0), the arc from node k of column a to
node j of column b weighs

    g(k, j) = F(a_k − b_j−1) − F(a_k−1 − b_j−1) − F(a_k − b_j) + F(a_k−1 − b_j),

where terms of k − 1 < 0 are 0, and the head beyond the last node is the sink. All
weights are non-negative because F is convex and does not fall; the weights cut by
surfaces at k and m sum to F(a_k − b_m).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from medpipe.errors import StepError, UsageError

__all__ = ["ConvexPrior", "Kind", "Value", "arc_weights", "per_column"]

Kind = Literal["none", "linear", "quadratic", "dead_zone", "dead_zone_quadratic", "huber", "custom"]
Value = torch.Tensor | float

_LINEAR = ("none", "linear", "dead_zone", "huber")
_NEEDS_WIDTH = ("dead_zone", "dead_zone_quadratic", "huber")
_SAMPLES = 2049


@dataclass(frozen=True, eq=False)
class ConvexPrior:
    """A convex cost ψ of a difference x in mm, with its minimum 0 at `expected_mm`.

    With y = |x − expected_mm| the kinds are

    =====================  ==============================================
    none                   0 (only `max_jump_mm` acts)
    linear                 weight · y
    quadratic              weight · y²
    dead_zone              weight · max(y − width, 0)
    dead_zone_quadratic    weight · max(y − width, 0)²
    huber                  weight · y² up to the width, weight · (2 · width · y − width²) beyond
    custom                 weight · function(x − expected_mm)
    =====================  ==============================================

    Parameters
    ----------
    kind : str
        One of the kinds above.
    weight : float or Tensor
        Non-negative, in units of cost per mm (linear, dead zone), per mm² (the
        quadratic ones and Huber) or per unit of the function. A tensor holds one
        value per pair of columns, at the first column of the pair.
    width_mm : float or Tensor
        Half-width of the dead zone or of the quadratic part, in mm.
    max_jump_mm : float or Tensor, optional
        Hard limit of |x − expected_mm|, in mm; infinite entries are no limit.
    expected_mm : float or Tensor
        The difference that costs nothing: an expected slope or distance. The arcs
        see it as a shift of one column, which keeps every weight non-negative.
    function : callable, optional
        For ``"custom"``: takes a float64 tensor in mm and returns the cost. It must be
        convex with value and minimum 0 at 0; it may be asymmetric.

    Raises
    ------
    UsageError
        If a parameter is unknown, negative, not finite, or missing.
    StepError
        If the function is not 0 at 0.
    """

    kind: Kind = "none"
    weight: Value = 1.0
    width_mm: Value = 0.0
    max_jump_mm: Value | None = None
    expected_mm: Value = 0.0
    function: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(
                "the prior is unknown", expected=", ".join(get_args(Kind)), got=str(self.kind)
            )
        for name in ("weight", "width_mm", "max_jump_mm"):
            _check_value(name, getattr(self, name), infinite=name == "max_jump_mm", signed=False)
        _check_value("expected_mm", self.expected_mm, infinite=False, signed=True)
        if (self.kind == "custom") != (self.function is not None):
            raise UsageError("a function is given for the kind 'custom' and for no other")
        if self.kind == "dead_zone_quadratic" and _all_zero(self.width_mm):
            raise UsageError("the dead zone has no width", hint="use 'quadratic' or set width_mm")
        if self.function is not None:
            at_zero = self.function(torch.zeros(1, dtype=torch.float64))
            if not float(at_zero[0]) == 0.0:
                raise StepError(
                    "the prior is not 0 where nothing is to be paid",
                    expected="function(0) == 0",
                    got=f"{float(at_zero[0]):.3g}",
                )

    def __call__(self, difference_mm: torch.Tensor) -> torch.Tensor:
        """Return the cost of differences in mm, float64; the hard limit is not part of it."""
        return self.shape(difference_mm.to(torch.float64) - self.expected_mm)

    def shape(self, excess_mm: torch.Tensor) -> torch.Tensor:
        """Return the cost of differences from which `expected_mm` is already taken."""
        if self.function is not None:
            return self.weight * self.function(excess_mm)
        y = excess_mm.abs()
        if self.kind == "none":
            return torch.zeros_like(y)
        if self.kind == "linear":
            return self.weight * y
        if self.kind == "quadratic":
            return self.weight * y.square()
        if self.kind == "huber":
            width = torch.as_tensor(self.width_mm, dtype=y.dtype, device=y.device)
            inner = torch.minimum(y, width)
            return self.weight * (inner.square() + 2.0 * width * (y - inner))
        beyond = (y - self.width_mm).clamp_min(0.0)
        return self.weight * (beyond if self.kind == "dead_zone" else beyond.square())

    def rise(self, excess_mm: torch.Tensor, direction: int) -> torch.Tensor:
        """Return the one-sided cost F(y): ψ(direction · y) for y > 0, else 0."""
        return torch.where(excess_mm > 0, self.shape(direction * excess_mm.clamp_min(0.0)), 0.0)

    @property
    def free_mm(self) -> Value:
        """Excess in mm up to which nothing is paid."""
        return self.width_mm if self.kind.startswith("dead_zone") else 0.0

    @property
    def linear_from_mm(self) -> Value | None:
        """Excess in mm from which the cost is linear, None where it never is."""
        if self.kind not in _LINEAR:
            return None
        return self.width_mm if self.kind in _NEEDS_WIDTH else 0.0

    def on_columns(self, row: int | None = None) -> ConvexPrior:
        """Return the prior with tensors that broadcast against (columns, nodes).

        Parameters
        ----------
        row : int, optional
            Row of links: it is taken from tensors of shape (J, C).
        """
        jump = self.max_jump_mm
        return replace(
            self,
            weight=per_column(self.weight, row),
            width_mm=per_column(self.width_mm, row),
            max_jump_mm=None if jump is None else per_column(jump, row),
            expected_mm=per_column(self.expected_mm, row),
        )

    def check_convex(self, largest_mm: float) -> None:
        """Check a custom function by second differences up to ± `largest_mm`.

        The other kinds are convex by construction.

        Raises
        ------
        StepError
            If the function is not finite, not convex or has no minimum at 0.
        """
        if self.function is None or not largest_mm > 0:
            return
        x = torch.linspace(-largest_mm, largest_mm, _SAMPLES, dtype=torch.float64)
        y = self.function(x)
        if not bool(torch.isfinite(y).all()):
            raise StepError("the prior is not finite", got=f"within ±{largest_mm:g} mm")
        noise = 1e-9 * max(float(y.abs().max()), 1e-300)
        if float(y.min()) < -noise:
            raise StepError("the prior is negative", hint="its minimum must be 0, at 0")
        second = y[2:] - 2 * y[1:-1] + y[:-2]
        if float(second.min()) < -noise:
            at = float(x[1 + int(second.argmin())])
            raise StepError(
                "the prior is not convex",
                expected="second differences of 0 or more",
                got=f"{float(second.min()):.3g} near {at:.3g} mm",
                hint="only convex priors can be solved exactly",
            )


def per_column(value: Value, row: int | None = None) -> Value:
    """Return a value per column with an axis for the nodes, of one row of links if given."""
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    if row is not None and value.ndim == 2:
        value = value[row]
    return value[..., None]


def arc_weights(
    prior: ConvexPrior, from_mm: torch.Tensor, to_mm: torch.Tensor, *, direction: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all arc weights from the nodes of one column to those of another.

    Parameters
    ----------
    prior : ConvexPrior
        The cost of the difference; `expected_mm` and the hard limit are not applied.
    from_mm, to_mm : Tensor
        Strictly increasing positions in mm, shapes (..., N) and (..., M).
    direction : {1, -1}
        Which side of an asymmetric prior is paid when `from_mm` lies above.

    Returns
    -------
    weights : Tensor
        float64 (..., N, M): the arc from node k to node j. The column j = 0 is 0,
        because the lowest node is always below the surface.
    to_sink : Tensor
        float64 (..., N): the arc from node k to the sink.

    Notes
    -----
    Dense, for checks and small columns; `medpipe.graphcut.surface_arcs` makes the
    same weights diagonal by diagonal.
    """
    a, b = from_mm.to(torch.float64), to_mm.to(torch.float64)
    cost = prior.rise(a[..., :, None] - b[..., None, :], direction)
    below = torch.cat([torch.zeros_like(cost[..., :1, :]), cost[..., :-1, :]], -2)
    fall = cost - below
    weights = torch.cat([torch.zeros_like(fall[..., :1]), fall[..., :-1] - fall[..., 1:]], -1)
    return weights, fall[..., -1]


def _all_zero(value: Value) -> bool:
    return bool((torch.as_tensor(value) == 0).all())


def _check_value(name: str, value: Value | None, *, infinite: bool, signed: bool) -> None:
    if value is None:
        return
    tensor = torch.as_tensor(value, dtype=torch.float64)
    bad = torch.isnan(tensor) | (tensor == -torch.inf)
    if not infinite:
        bad |= torch.isinf(tensor)
    if not signed:
        bad |= tensor < 0
    if bool(bad.any()):
        kind = "finite" if signed else "0 or more" if infinite else "finite and 0 or more"
        raise UsageError(
            f"{name} of a prior is wrong",
            expected=kind,
            got=f"{float(tensor[bad].reshape(-1)[0]):g}",
        )
