"""Hyper-parameter optimisation."""
