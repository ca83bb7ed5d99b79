"""The two ways of problems with batch norm to normalise the queries."""

from __future__ import annotations

import copy

from metalearn.problems.protocol import BilevelProblem, TrainableProblem


class QueryStatistics(TrainableProblem):
    """A problem that batch norm makes transductive or inductive.

    Attributes:
        transductive: True: the queries' own statistics, as in the papers; False: those of the
            support set.
    """

    transductive: bool = True

    @property
    def mode(self) -> str:  # type: ignore[override]
        """The statistics that batch norm takes for the queries: "transductive" or "inductive"."""
        return "transductive" if self.transductive else "inductive"

    def modes(self) -> dict[str, BilevelProblem]:
        """Return this problem by the queries' own batch statistics, and by the support set's."""
        return {p.mode: p for p in map(self._in_mode, (True, False))}

    def _in_mode(self, transductive: bool) -> QueryStatistics:
        problem = copy.copy(self)
        problem.transductive = transductive
        return problem
