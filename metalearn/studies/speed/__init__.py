"""Time of one meta-gradient."""
