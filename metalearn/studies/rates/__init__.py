"""The convergence rates of the bilevel methods, measured against their papers."""
