"""The hyper-parameters of a whole training, learned while it goes on."""
