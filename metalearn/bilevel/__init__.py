"""The bilevel methods for stochastic problems, whose losses are means over data.

`Descent` takes outer steps of a method; `train` runs it into a folder.
"""

from metalearn.bilevel.amigo import AmIGO
from metalearn.bilevel.batches import FixedBatches
from metalearn.bilevel.bome import BOME
from metalearn.bilevel.certificate import Certify, StochasticCertificate
from metalearn.bilevel.descent import Descent, OuterStep
from metalearn.bilevel.f2sa import F2SA
from metalearn.bilevel.method import Hypergradient, Method
from metalearn.bilevel.run import train
from metalearn.bilevel.saba import SABA
from metalearn.bilevel.soba import SOBA
from metalearn.bilevel.stocbio import StocBiO
from metalearn.bilevel.truncated_unrolling import TruncatedUnrolling

__all__ = [
    "BOME",
    "F2SA",
    "SABA",
    "SOBA",
    "AmIGO",
    "Certify",
    "Descent",
    "FixedBatches",
    "Hypergradient",
    "Method",
    "OuterStep",
    "StocBiO",
    "StochasticCertificate",
    "TruncatedUnrolling",
    "train",
]
