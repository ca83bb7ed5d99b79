"""Systems of a known spectrum."""

from __future__ import annotations

import torch


def symmetric(eigenvalues, seed=0):
    """A symmetric matrix of the given spectrum and a right-hand side, float64."""
    g = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    A = q @ torch.diag(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ q.T
    return (A + A.T) / 2, torch.randn(n, generator=g, dtype=torch.float64)


def general(n, seed=0):
    """A matrix without symmetry, its eigenvalues in a disc of radius 0.5 about 1, float64."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, n, generator=g, dtype=torch.float64) / n**0.5
    return torch.eye(n) + 0.5 * noise, torch.randn(n, generator=g, dtype=torch.float64)
