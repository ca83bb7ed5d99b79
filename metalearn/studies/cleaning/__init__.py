"""Data hyper-cleaning with minibatches: learned weights of mislabelled examples."""
