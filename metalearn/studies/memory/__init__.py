"""Memory of MAML and iMAML."""
