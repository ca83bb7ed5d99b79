"""The demonstration: MAML and iMAML side by side, in a minute or two."""
