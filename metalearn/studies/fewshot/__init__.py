"""Few-shot accuracy of all methods at equal budgets."""
