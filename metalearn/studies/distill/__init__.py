"""Data distillation."""
