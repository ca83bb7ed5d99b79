"""Accuracy of meta-gradients."""
