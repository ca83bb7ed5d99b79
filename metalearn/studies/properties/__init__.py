"""The textbook's claims on implicit and unrolled gradients, measured."""
