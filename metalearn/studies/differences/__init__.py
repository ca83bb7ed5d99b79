"""The study of single changes to the baseline of MAML and iMAML."""
