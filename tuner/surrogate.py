"""What is not known yet of a grid's configurations, from what is: a Gaussian process.

Formulae: Rasmussen and Williams, Gaussian Processes for Machine Learning, chapters 2 and 5. The
kernel is a mixture of a product over the parameters (all orders of interaction) and their mean
(main effects alone); a parameter's own kernel falls exponentially with a weighted sum of the
distances that its grid has for two values. Which distances matter, and how much, is learnt from the
data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .grid import Floats, Grid, Indices

Singles = NDArray[np.float32]

#: Variance of an observation about the truth, as a share of the process's own: timings repeat to a
#: few percent.
NOISE = 1e-3
#: What is expected before anything is known, in standard deviations of the objective, as mean and
#: deviation of a coefficient: of each number that is no power of two, and of lying far outside.
ODD, OUTER = (0.3, 0.3), (0.3, 0.3)
#: Prior of the weights of a parameter's distances: they add up to this, give or take a factor.
WEIGHT, WEIGHT_LOG_SD = 0.35, 1.5
#: Prior of the objective's variance, and how many observations that is worth.
VARIANCE, VARIANCE_WORTH = 1.0, 2.0
#: Bounds of a logarithm of a weight about its prior mean, and of a step of the fit.
LOWEST, HIGHEST = -5.0, 4.0
SMALLEST_STEP, FIRST_STEP, LARGEST_STEP = 1e-3, 0.3, 1.0


class Surrogate:
    """Mean and standard deviation of every configuration, updated with each that is observed.

    ``weights`` are logarithms: of each distance of each parameter, and of the odds of the product
    against the mean. ``capacity`` is how many observations fit. The time of an update goes with
    observations times configurations.
    """

    def __init__(self, grid: Grid, capacity: int) -> None:
        self.grid = grid
        self.at: Indices = np.zeros(0, np.int64)
        self._prior_logs = np.concatenate(
            [*(np.full(len(t), np.log(WEIGHT / len(t))) for t in grid.tables), np.zeros(1)]
        )
        self.weights = self._prior_logs.copy()
        self._inverse = np.zeros((capacity, capacity))
        self._rows: Singles = np.zeros((capacity, grid.size), np.float32)
        self._explained: Singles = np.zeros(grid.size, np.float32)
        self._trends = [(ODD[1] ** 2, grid.odd), (OUTER[1] ** 2, grid.outer)]
        self.prior = ODD[0] * grid.odd + OUTER[0] * grid.outer
        self._variance = 1.0 + sum(sd2 * feature**2 for sd2, feature in self._trends)
        self._tabulate()

    # -- observations --------------------------------------------------------------------------

    def add(self, index: int) -> None:
        """Observe one more configuration: a row of the Cholesky factor, and of its inverse."""
        n, row = len(self.at), self._row(index)
        inverse, rows = self._inverse[:n, :n], self._rows[:n]
        left = inverse @ row[self.at].astype(float)
        pivot = np.sqrt(max(float(row[index]) + NOISE - left @ left, NOISE / 2))
        self._inverse[n, :n] = -(left @ inverse) / pivot
        self._inverse[n, n] = 1 / pivot
        new = (row - left.astype(np.float32) @ rows) / np.float32(pivot)
        self._rows[n] = new
        self._explained += new * new
        self.at = np.append(self.at, index)

    def reset(self, at: Indices) -> None:
        """Observe exactly ``at``, under the weights as they are now fitted."""
        self._tabulate()
        self.at = at
        n = len(at)
        self._explained[:] = 0
        if n:
            rows = np.stack([self._row(index) for index in at])
            lower = np.linalg.cholesky(rows[:, self.at].astype(float) + NOISE * np.eye(n))
            self._inverse[:n, :n] = np.linalg.inv(lower)
            np.matmul(self._inverse[:n, :n].astype(np.float32), rows, out=self._rows[:n])
            np.einsum("ij,ij->j", self._rows[:n], self._rows[:n], out=self._explained)

    def _tabulate(self) -> None:
        weights = self._split(np.exp(self.weights))
        self._tables = [
            np.exp(-np.tensordot(weight, table, 1)).astype(np.float32)
            for weight, table in zip(weights, self.grid.tables, strict=True)
        ]
        self._share = _logistic(self.weights[-1])

    def _split(self, weights: Floats) -> list[Floats]:
        ends = np.cumsum([len(table) for table in self.grid.tables])
        return np.split(weights[:-1], ends[:-1]) if len(ends) else []

    def _row(self, index: int) -> Singles:
        """Covariance of configuration ``index`` with every one."""
        codes = self.grid.codes
        product = np.ones(self.grid.size, np.float32)
        total = np.zeros(self.grid.size, np.float32)
        for p, table in enumerate(self._tables):
            factor = table[codes[index, p]][codes[:, p]]
            product *= factor
            total += factor
        row = product * np.float32(self._share)
        row += total * np.float32((1 - self._share) / max(1, len(self._tables)))
        for sd2, feature in self._trends:
            row += (sd2 * feature[index] * feature).astype(np.float32)
        return row

    # -- what follows from them ----------------------------------------------------------------

    def predict(self, targets: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation [configurations]; ``targets`` are the values at ``at``."""
        n = len(self.at)
        inverse = self._inverse[:n, :n]
        one = inverse.sum(1)
        level = inverse @ (targets - self.prior[self.at])
        constant = (one @ level) / (one @ one)
        rest = level - constant * one
        variance = (VARIANCE * VARIANCE_WORTH + rest @ rest) / (VARIANCE_WORTH + n)
        mean = rest.astype(np.float32) @ self._rows[:n]
        left = np.maximum(self._variance - self._explained, 1e-9)
        return mean + (constant + self.prior), np.sqrt(variance * left)

    def smooth(self, targets: Floats) -> Floats:
        """Mean [configurations] of another quantity, whose mean far from all observed is zero."""
        n = len(self.at)
        return ((self._inverse[:n, :n] @ targets).astype(np.float32) @ self._rows[:n]).astype(float)

    # -- the weights ---------------------------------------------------------------------------

    def fit(self, at: Indices, targets: Floats, steps: int) -> None:
        """Move the weights to where these observations are likelier; ``reset`` puts them to use.

        Ascent with a step of its own for each weight, by the gradient's signs alone (Rprop).
        """
        evidence = _Evidence(self.grid, at, targets - self.prior[at], self._trends)
        logs, prior = self.weights.copy(), self._prior_logs
        step, last = np.full(len(logs), FIRST_STEP), np.zeros(len(logs))
        best = -np.inf
        for _ in range(steps):
            value, gradient = evidence.at(logs)
            away = (logs - prior) / WEIGHT_LOG_SD
            value -= 0.5 * float(away @ away)
            gradient -= away / WEIGHT_LOG_SD
            if value > best:
                best, self.weights = value, logs
            sign = np.sign(gradient)
            step *= np.where(sign == last, 1.3, 0.5)
            step, last = np.clip(step, SMALLEST_STEP, LARGEST_STEP), sign
            logs = np.clip(logs + sign * step, prior + LOWEST, prior + HIGHEST)


class _Evidence:
    """Logarithm of the marginal likelihood, and its gradient by the logarithms of the weights."""

    def __init__(
        self, grid: Grid, at: Indices, rest: Floats, trends: Sequence[tuple[float, Floats]]
    ) -> None:
        codes = grid.codes[at]
        self._distances = [
            table[:, codes[:, p][:, None], codes[:, p][None]] for p, table in enumerate(grid.tables)
        ]
        self._rest = rest
        self._fixed = NOISE * np.eye(len(at))
        for sd2, feature in trends:
            self._fixed += sd2 * np.outer(feature[at], feature[at])

    def at(self, logs: Floats) -> tuple[float, Floats]:
        n, weights, share = len(self._rest), np.exp(logs), _logistic(logs[-1])
        factors, start = [], 0
        for ways in self._distances:
            factors.append(np.exp(-np.tensordot(weights[start : start + len(ways)], ways, 1)))
            start += len(ways)
        product = np.prod(factors, axis=0) if factors else np.ones((n, n))
        each = (1 - share) / max(1, len(factors))
        mean = sum(factors, np.zeros((n, n))) / max(1, len(factors))
        lower = np.linalg.cholesky(share * product + (1 - share) * mean + self._fixed)
        root = np.linalg.inv(lower)
        inverse = root.T @ root
        ones = inverse.sum(1)
        rest = self._rest - (ones @ self._rest) / ones.sum()
        solved = inverse @ rest
        variance = (VARIANCE * VARIANCE_WORTH + rest @ solved) / (VARIANCE_WORTH + n)
        value = -0.5 * (n + VARIANCE_WORTH) * np.log(variance) - np.log(np.diag(lower)).sum()
        slope = 0.5 * (np.outer(solved, solved) / variance - inverse)
        gradient = []
        for factor, ways in zip(factors, self._distances, strict=True):
            part = slope * (share * product + each * factor)
            gradient += [-np.vdot(part, way) for way in ways]
        last = share * (1 - share) * np.vdot(slope, product - mean)
        return float(value), np.array([*(weights[:-1] * gradient), last])


def _logistic(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))
