"""Training time until a validation accuracy is reached."""
