"""The meta-gradients: interchangeable methods to differentiate a bilevel problem."""

from metalearn.metagrad.authors_code import IMAMLAuthorsCode
from metalearn.metagrad.base import (
    MetaGradient,
    MetaGradientResult,
    NonFiniteGradient,
)
from metalearn.metagrad.by_iterations import implicit_by_iterations
from metalearn.metagrad.certificate import Certificate
from metalearn.metagrad.first_order import FirstOrder
from metalearn.metagrad.implicit import Implicit
from metalearn.metagrad.reptile import Reptile
from metalearn.metagrad.unrolled import Unrolled

__all__ = [
    "Certificate",
    "FirstOrder",
    "IMAMLAuthorsCode",
    "Implicit",
    "MetaGradient",
    "MetaGradientResult",
    "NonFiniteGradient",
    "Reptile",
    "Unrolled",
    "implicit_by_iterations",
]
