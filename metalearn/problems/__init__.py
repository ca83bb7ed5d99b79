"""The bilevel problems beside `FewShot`: a shared body under a head, and convex heads."""

from metalearn.problems.convex_head import ConvexHead
from metalearn.problems.with_body import WithBody

__all__ = ["ConvexHead", "WithBody"]
