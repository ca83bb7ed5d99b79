"""The test functions of Moré, Garbow & Hillstrom 1981, as residuals with their standard starts."""

from __future__ import annotations

import math

import torch

from metalearn.tree import Tree


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def count(n, start=1):
    return torch.arange(start, start + n, dtype=torch.float64)


def rosenbrock(x):
    return torch.cat([10 * (x[1::2] - x[::2] ** 2), 1 - x[::2]])


def freudenstein_roth(x):
    a, b = x
    return torch.stack([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])


def powell_badly_scaled(x):
    return torch.stack([1e4 * x[0] * x[1] - 1, (-x).exp().sum() - 1.0001])


def brown_badly_scaled(x):
    return torch.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def beale(x):
    return t(1.5, 2.25, 2.625) - x[0] * (1 - x[1] ** count(3))


def jennrich_sampson(x):
    i = count(10)
    return 2 + 2 * i - (i * x[0]).exp() - (i * x[1]).exp()


def helical_valley(x):
    angle = torch.atan2(x[1], x[0]) / (2 * math.pi)
    return torch.stack([10 * (x[2] - 10 * angle), 10 * (torch.hypot(x[0], x[1]) - 1), x[2]])


BARD = t(0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.1, 4.39)


def bard(x):
    u = count(15)
    v = 16 - u
    return BARD - (x[0] + u / (v * x[1] + torch.minimum(u, v) * x[2]))


HALF_BELL = t(0.0009, 0.0044, 0.0175, 0.054, 0.1295, 0.242, 0.3521)


def gaussian(x):
    y = torch.cat([HALF_BELL, t(0.3989), HALF_BELL.flip(0)])
    return x[0] * (-x[1] * ((8 - count(15)) / 2 - x[2]) ** 2 / 2).exp() - y


MEYER = t(34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147)
MEYER = torch.cat([MEYER, t(4427, 3820, 3307, 2872)])


def meyer(x):
    return x[0] * (x[1] / (45 + 5 * count(16) + x[2])).exp() - MEYER


def box(x):
    s = 0.1 * count(10)
    return (-s * x[0]).exp() - (-s * x[1]).exp() - x[2] * ((-s).exp() - (-10 * s).exp())


def powell_singular(x):
    a, b, c, d = x.view(-1, 4).T
    tail = [(b - 2 * c) ** 2, math.sqrt(10) * (a - d) ** 2]
    return torch.cat([a + 10 * b, math.sqrt(5) * (c - d), *tail])


def wood(x):
    a, b, c, d = x
    first = [10 * (b - a**2), 1 - a, math.sqrt(90) * (d - c**2), 1 - c]
    return torch.stack([*first, math.sqrt(10) * (b + d - 2), (b - d) / math.sqrt(10)])


KOWALIK_Y = t(0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246)
KOWALIK_U = t(4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625)


def kowalik_osborne(x):
    u = KOWALIK_U
    return KOWALIK_Y - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def brown_dennis(x):
    s = count(20) / 5
    return (x[0] + s * x[1] - s.exp()) ** 2 + (x[2] + x[3] * s.sin() - s.cos()) ** 2


OSBORNE = t(0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.85, 0.818, 0.784, 0.751, 0.718)
OSBORNE = torch.cat([OSBORNE, t(0.685, 0.658, 0.628, 0.603, 0.58, 0.558, 0.538, 0.522, 0.506)])
OSBORNE = torch.cat([OSBORNE, t(0.49, 0.478, 0.467, 0.457, 0.448, 0.438, 0.431, 0.424, 0.42)])
OSBORNE = torch.cat([OSBORNE, t(0.414, 0.411, 0.406)])


def osborne_1(x):
    s = 10 * count(33, 0)
    return OSBORNE - (x[0] + x[1] * (-s * x[3]).exp() + x[2] * (-s * x[4]).exp())


def biggs_exp6(x):
    s = 0.1 * count(13)
    y = (-s).exp() - 5 * (-10 * s).exp() + 3 * (-4 * s).exp()
    model = x[2] * (-s * x[0]).exp() - x[3] * (-s * x[1]).exp() + x[5] * (-s * x[4]).exp()
    return model - y


def watson(x):
    powers = (count(29) / 29)[:, None] ** count(len(x), 0)
    slopes = count(len(x) - 1) * powers[:, :-1]
    body = slopes @ x[1:] - (powers @ x) ** 2 - 1
    return torch.cat([body, torch.stack([x[0], x[1] - x[0] ** 2 - 1])])


def penalty_1(x):
    return torch.cat([math.sqrt(1e-5) * (x - 1), ((x**2).sum() - 0.25)[None]])


def variably_dimensioned(x):
    s = (count(len(x)) * (x - 1)).sum()
    return torch.cat([x - 1, torch.stack([s, s**2])])


def trigonometric(x):
    return len(x) - x.cos().sum() + count(len(x)) * (1 - x.cos()) - x.sin()


def brown_almost_linear(x):
    return torch.cat([x[:-1] + x.sum() - (len(x) + 1), (x.prod() - 1)[None]])


def discrete_boundary_value(x):
    h = 1 / (len(x) + 1)
    ends = torch.nn.functional.pad(x, (1, 1))
    return 2 * x - ends[:-2] - ends[2:] + h**2 * (x + h * count(len(x)) + 1) ** 3 / 2


def discrete_integral(x):
    h = 1 / (len(x) + 1)
    s = h * count(len(x))
    cubes = (x + s + 1) ** 3
    kernel = torch.where(s[None] <= s[:, None], s[None] * (1 - s[:, None]), s[:, None] * (1 - s))
    return x + h * (kernel @ cubes) / 2


def broyden_tridiagonal(x):
    ends = torch.nn.functional.pad(x, (1, 1))
    return (3 - 2 * x) * x - ends[:-2] - 2 * ends[2:] + 1


def broyden_banded(x):
    i = torch.arange(len(x))
    band = (i[None] >= i[:, None] - 5) & (i[None] <= i[:, None] + 1) & (i[None] != i[:, None])
    return x * (2 + 5 * x**2) + 1 - band.to(x) @ (x * (1 + x))


def linear_full_rank(x):
    mean = 2 * x.sum() / 10
    return torch.cat([x - mean - 1, (-mean - 1).expand(10 - len(x))])


def linear_rank_1(x):
    return count(10) * (count(len(x)) * x).sum() - 1


def chebyquad(x):
    a, b = torch.ones_like(x), 2 * x - 1
    out = []
    for i in range(1, len(x) + 1):
        integral = 0.0 if i % 2 else -1.0 / (i**2 - 1)
        out.append(b.mean() - integral)
        a, b = b, 2 * (2 * x - 1) * b - a
    return torch.stack(out)


def grid(n):
    s = count(n) / (n + 1)
    return s * (s - 1)


PROBLEMS: dict[str, tuple[Tree, torch.Tensor]] = {
    "rosenbrock": (rosenbrock, t(-1.2, 1)),
    "freudenstein_roth": (freudenstein_roth, t(0.5, -2)),
    "powell_badly_scaled": (powell_badly_scaled, t(0, 1)),
    "brown_badly_scaled": (brown_badly_scaled, t(1, 1)),
    "beale": (beale, t(1, 1)),
    "jennrich_sampson": (jennrich_sampson, t(0.3, 0.4)),
    "helical_valley": (helical_valley, t(-1, 0, 0)),
    "bard": (bard, t(1, 1, 1)),
    "gaussian": (gaussian, t(0.4, 1, 0)),
    "meyer": (meyer, t(0.02, 4000, 250)),
    "box": (box, t(0, 10, 20)),
    "powell_singular": (powell_singular, t(3, -1, 0, 1)),
    "wood": (wood, t(-3, -1, -3, -1)),
    "kowalik_osborne": (kowalik_osborne, t(0.25, 0.39, 0.415, 0.39)),
    "brown_dennis": (brown_dennis, t(25, 5, -5, -1)),
    "osborne_1": (osborne_1, t(0.5, 1.5, -1, 0.01, 0.02)),
    "biggs_exp6": (biggs_exp6, t(1, 2, 1, 1, 1, 1)),
    "watson": (watson, torch.zeros(6, dtype=torch.float64)),
    "extended_rosenbrock": (rosenbrock, t(-1.2, 1).repeat(4)),
    "extended_powell": (powell_singular, t(3, -1, 0, 1).repeat(2)),
    "penalty_1": (penalty_1, count(4)),
    "variably_dimensioned": (variably_dimensioned, 1 - count(6) / 6),
    "trigonometric": (trigonometric, torch.full((5,), 0.2, dtype=torch.float64)),
    "brown_almost_linear": (brown_almost_linear, torch.full((5,), 0.5, dtype=torch.float64)),
    "discrete_boundary_value": (discrete_boundary_value, grid(8)),
    "discrete_integral": (discrete_integral, grid(8)),
    "broyden_tridiagonal": (broyden_tridiagonal, -torch.ones(8, dtype=torch.float64)),
    "broyden_banded": (broyden_banded, -torch.ones(8, dtype=torch.float64)),
    "linear_full_rank": (linear_full_rank, torch.ones(5, dtype=torch.float64)),
    "linear_rank_1": (linear_rank_1, torch.ones(5, dtype=torch.float64)),
    "chebyquad_5": (chebyquad, count(5) / 6),
    "chebyquad_8": (chebyquad, count(8) / 9),
}

MINIMA = {
    "freudenstein_roth": 48.9842,
    "jennrich_sampson": 124.362,
    "bard": 8.21487e-3,
    "gaussian": 1.12793e-8,
    "meyer": 87.9458,
    "kowalik_osborne": 3.07505e-4,
    "brown_dennis": 85822.2,
    "osborne_1": 5.46489e-5,
    "watson": 2.28767e-3,
    "penalty_1": 2.24997e-5,
    "linear_full_rank": 5.0,
    "linear_rank_1": 15 / 7,
    "chebyquad_8": 3.51687e-3,
}
"""The published sums of squares, to six digits; 0 for every problem that is not listed."""
