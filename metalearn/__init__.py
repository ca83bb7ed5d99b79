"""Differentiating through optimisation: unrolled and implicit meta-gradients on the same problems."""

__version__ = "0.1.0"
