"""The changes that may decide iMAML's accuracy: one at a time, from three starting points."""

from __future__ import annotations

from dataclasses import dataclass

BASES = {
    "authors": "omniglot_5w1s_imaml_authors_code",
    "paper": "omniglot_5w1s_imaml",
    "stable": "omniglot_5w1s_imaml_quick",
}
"""The experiments that the changes start from: the authors' code, their paper's algorithm, and
iMAML with a symmetric head and an inner loop that cannot diverge."""


@dataclass(frozen=True)
class Change:
    """A base with one subject set to another value.

    Args:
        base: a name of `BASES`.
        subject: the changed part; empty for the base itself.
        value: the description of its new value.
        overrides: the overrides of `metalearn train` that make the change.
    """

    base: str
    subject: str
    value: str
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return (
            f"{self.base}: {self.subject} {self.value}".rstrip(": ") if self.subject else self.base
        )


def _changes(base: str, subject: str, option: str, *values: float | str) -> list[Change]:
    return [Change(base, subject, f"{value}", (f"{option}={value}",)) for value in values]


def _network(base: str) -> list[Change]:
    """Return the changes of the network's end, which the experiments set as in the papers."""
    zero, norm = "model.head=zero", "model.feature_norm=true"
    return [
        Change(base, "head", "starts at zero", (zero,)),
        Change(base, "head", "batch norm before it", (norm,)),
        Change(base, "head", "starts at zero, batch norm before it", (zero, norm)),
    ]


_FIRST_ORDER = ("metagrad=first_order", "metagrad.inner.steps=16")
_UNCHECKED = "metagrad.linear_solver._target_=metalearn.linear_solve.unchecked_cg.UncheckedCG"

CHANGES: tuple[Change, ...] = (
    Change("authors", "", ""),
    *_changes("authors", "inner steps", "metagrad.inner.steps", 1, 5, 32),
    *_changes("authors", "lambda", "metagrad.prox", 0.5),
    Change("authors", "lambda", "10, the proximal step back to the start", ("metagrad.prox=10.0",)),
    Change(
        "authors",
        "lambda",
        "10, the proximal step as before",
        ("metagrad.prox=10.0", "metagrad.prox_lr=0.02"),
    ),
    *_changes("authors", "CG steps", "metagrad.linear_solver.max_iters", 1, 2, 10, 20),
    *_changes("authors", "damping", "metagrad.damping", 0.0, 10.0),
    Change("authors", "system", "I + H/lambda", ("metagrad.damping=0.0", "metagrad.offset=0.0")),
    Change("authors", "curvature", "Gauss-Newton", ("metagrad.curvature=gauss_newton",)),
    Change("authors", "negative curvature", "goes on", (_UNCHECKED,)),
    Change("authors", "proximal step", "none", ("metagrad.prox_lr=0.0",)),
    Change("authors", "algorithm", "the paper's", ("metagrad=imaml",)),
    Change("authors", "meta-gradient", "first-order", _FIRST_ORDER),
    Change("authors", "meta-gradient", "MAML, 5 steps", ("metagrad=maml_batched",)),
    *_changes("authors", "outer eps", "optimiser.eps", 1e-8),
    *_changes("authors", "outer rate", "optimiser.lr", 3e-4, 3e-3),
    Change("authors", "outer optimiser", "RMSprop", ("optimiser._target_=torch.optim.RMSprop",)),
    *_changes("authors", "distinct tasks", "tasks.task_pool", 200, 1000, 5000),
    Change("authors", "rotations", "none", ("tasks.rotations=false",)),
    *(
        Change("authors", "queries a class", f"{n}", (f"tasks.queries={n}", "tasks.test_queries=1"))
        for n in (5, 15)
    ),
    Change("authors", "batch statistics in training", "inductive", ("problem.transductive=false",)),
    *_network("authors")[:2],
    Change("paper", "", ""),
    *_changes("paper", "inner steps", "metagrad.inner.steps", 5, 32),
    *(
        Change("paper", "inner rate", f"0.05, {n} steps", ("metagrad.inner.lr=0.05", steps))
        for n, steps in ((16, "metagrad.inner.steps=16"), (32, "metagrad.inner.steps=32"))
    ),
    Change("paper", "inner solver", "rate found by each task", ("metagrad=imaml_stable",)),
    *_changes("paper", "lambda", "problem.prox", 0.1, 0.5, 10.0),
    *_changes("paper", "CG steps", "metagrad.linear_solver.max_iters", 1, 2, 10, 20),
    *_changes("paper", "damping", "metagrad.damping", 2.0, 10.0),
    Change("paper", "curvature", "Gauss-Newton", ("metagrad.curvature=gauss_newton",)),
    Change(
        "paper",
        "curvature",
        "Gauss-Newton, lambda 0.1",
        ("metagrad.curvature=gauss_newton", "problem.prox=0.1"),
    ),
    Change("paper", "negative curvature", "goes on", (_UNCHECKED,)),
    Change("paper", "negative curvature", "GMRES", ("metagrad=imaml_gmres",)),
    Change("paper", "negative curvature", "normal equations", ("metagrad=imaml_normal_cg",)),
    *_network("paper"),
    *_changes("paper", "outer eps", "optimiser.eps", 1e-3),
    *_changes("paper", "outer rate", "optimiser.lr", 3e-4, 3e-3),
    Change("paper", "outer optimiser", "SGD", ("optimiser=sgd", "optimiser.lr=0.03")),
    Change("stable", "", ""),
    Change("stable", "head", "its start learned for each class", ("model.head=free",)),
    Change("stable", "head", "no batch norm before it", ("model.feature_norm=false",)),
    Change("stable", "inner solver", "one fixed rate", ("metagrad=imaml",)),
    *_changes("stable", "inner rate", "metagrad.inner.lr", 0.1, 1.0),
    *_changes("stable", "inner steps", "metagrad.inner.steps", 1, 16),
    *_changes("stable", "lambda", "problem.prox", 0.1, 2.0),
    Change("stable", "curvature", "Hessian", ("metagrad.curvature=hessian",)),
    Change("stable", "adapted", "the head alone", ("problem.adapt=head",)),
    *_changes("stable", "outer rate", "optimiser.lr", 2e-3, 2e-2),
    Change("stable", "outer rate", "constant", ("schedule=constant",)),
    *(
        Change("stable", "queries a class", f"{n}", (f"tasks.queries={n}", "tasks.test_queries=5"))
        for n in (1, 15)
    ),
    *_changes("stable", "distinct tasks", "tasks.task_pool", 1000),
    Change("stable", "rotations", "none", ("tasks.rotations=false",)),
    Change("stable", "batch statistics in training", "inductive", ("problem.transductive=false",)),
)
"""The changes, each base before its own. Batch statistics and inner steps at test are not among
them: every run is measured with each of these, without further training."""
