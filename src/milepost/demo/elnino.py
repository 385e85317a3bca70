# SPDX-License-Identifier: Apache-2.0
"""The sea surface temperature off Peru, 1950 to 2010, and a linear inverse model of it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import final

import numpy as np

from milepost.demo.digits import Array

FIRST_YEAR = 1950
_WINDOW, _PATTERNS = 12, 4


def load() -> Array:
    """Return the monthly means in degrees Celsius, float64 `(year, month)`."""
    with files("milepost.demo").joinpath("elnino.npz").open("rb") as file, np.load(file, allow_pickle=False) as data:
        return data["hundredths"] / 100


@final
@dataclass(frozen=True, slots=True)
class InverseModel:
    """A linear model driven by noise, of the leading patterns of a year's anomalies.

    Source: Penland and Sardeshmukh (1995), Journal of Climate 8, 1999-2024; on delays, as there is one series only.

    Attributes:
        climate: the mean of each calendar month, `(12,)`.
        newest: what each pattern adds to the anomaly of the newest month, `(pattern,)`.
        step: how the patterns' strengths go on by a month, `(pattern, pattern)`.
        noise: a factor of the covariance of what the step leaves unexplained, `(pattern, pattern)`.
        start: the patterns' strengths in the last month of the table, `(pattern,)`.
    """

    climate: Array
    newest: Array
    step: Array
    noise: Array
    start: Array

    @classmethod
    def fitted(cls, table: Array) -> InverseModel:
        """Fit the model to a table `(year, month)`."""
        climate = table.mean(axis=0)
        years = np.lib.stride_tricks.sliding_window_view((table - climate).ravel(), _WINDOW)
        _, vectors = np.linalg.eigh(years.T @ years)
        patterns = vectors[:, -_PATTERNS:]
        strengths = years @ patterns
        before, after = strengths[:-1], strengths[1:]
        step = np.linalg.solve(before.T @ before, before.T @ after).T
        left = after - before @ step.T
        return cls(climate, patterns[-1], step, np.linalg.cholesky(left.T @ left / len(left)), strengths[-1])

    def advanced(self, strengths: Array, random: np.random.Generator) -> Array:
        """Return the patterns' strengths a month later."""
        return self.step @ strengths + self.noise @ random.normal(size=len(strengths))

    def temperature(self, strengths: Array, lead: int) -> float:
        """Return the temperature of a month, `lead` 1 being the first after the table."""
        return float(self.climate[(lead - 1) % 12] + self.newest @ strengths)
