"""The memory of long trainings."""
