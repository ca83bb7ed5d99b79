"""Differentiating through optimisation: unrolled and implicit meta-gradients, side by side."""

__version__ = "0.1.0"
