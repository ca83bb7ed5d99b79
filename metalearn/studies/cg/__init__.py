"""CG iterations and the accuracy of the meta-gradient."""
