"""The collapse of iMAML and its cure."""
