"""Minimum cuts that are solved again after a change, from where the last one ended."""

from __future__ import annotations

import torch

from medpipe.errors import StepError
from medpipe.graphcut.problem import INFINITE, CutProblem, CutResult, cut_value
from medpipe.graphcut.pseudoflow import run_pseudoflow, sink_side
from medpipe.graphcut.residual import residual_of

__all__ = ["IncrementalCut"]


class IncrementalCut:
    """A minimum cut that keeps its flow, for interactive edits.

    Changing source and sink capacities only changes how much flow waits at the
    nodes, so the flow found before stays valid and only the difference is solved
    (after Kohli and Torr, DOI 10.1109/TPAMI.2007.1128). Results are the same as
    those of `medpipe.graphcut.solve.min_cut`.

    Parameters
    ----------
    problem : CutProblem
        The problem to begin with. It is not changed.
    """

    def __init__(self, problem: CutProblem) -> None:
        self.problem = problem
        self._state = residual_of(problem)

    def change(self, source_delta: torch.Tensor, sink_delta: torch.Tensor) -> None:
        """Add to the capacities of source and sink.

        Parameters
        ----------
        source_delta, sink_delta : Tensor
            Integers, the shape of the problem. A hard capacity (INFINITE) is made by
            adding INFINITE to 0 and taken back by subtracting it.

        Raises
        ------
        StepError
            If a change has another shape or no integers, a capacity leaves the range 0 to
            INFINITE, or flows could pass 64 bits. The problem is then the one it was.
        """
        if source_delta.is_floating_point() or sink_delta.is_floating_point():
            raise StepError("the change is not of integers", hint="use quantise()")
        old = self.problem
        for delta in (source_delta, sink_delta):
            if delta.shape != old.source.shape:
                raise StepError(
                    "the change does not fit the problem",
                    expected=str(old.shape),
                    got=str(tuple(delta.shape)),
                )
        new = [
            (x.to(torch.int64) + delta.to(torch.int64))
            for x, delta in ((old.source, source_delta), (old.sink, sink_delta))
        ]
        if any(int(x.min()) < 0 or int(x.max()) > INFINITE for x in new):
            raise StepError(
                "the change takes a capacity out of range", expected=f"0 to {INFINITE} afterwards"
            )
        source, sink = (x.to(torch.int32) for x in new)
        problem = CutProblem(source, sink, old.arcs, old.wrap, old.links)
        if self._state.can_take(problem):
            self._state.change_terminals(old, problem)
        else:
            # its infinity is too large for so many hard terminals: look for a smaller one
            self._state = residual_of(problem, wide=True)
        self.problem = problem

    def solve(self) -> CutResult:
        """Return the minimum cut of the problem as it now is.

        Raises
        ------
        StepError
            If the hard constraints contradict each other. The next change may end that.
        """
        cut: CutResult | None = None
        try:
            cut = self._run()
        except StepError:
            if not self._state.may_overfill(self.problem):
                raise
        if cut is None or (not cut.proved and self._state.may_overfill(self.problem)):
            # flow filled an arc of infinite capacity: begin anew with a larger infinity
            self._state = residual_of(self.problem, wide=True)
            cut = self._run()
        return cut

    def _run(self) -> CutResult:
        stats = run_pseudoflow(self._state)
        side = torch.from_numpy(~sink_side(self._state)).reshape(self.problem.shape)
        side = side.to(self.problem.device)
        cut = cut_value(self.problem, side)
        return CutResult(side, self._state.flow(), cut, "pseudoflow", stats)
