"""Whether two methods order the steps alike: SciPy's measures, with NaN where there is no order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rho with ties; NaN where one of them is constant or shorter than 2."""
    from scipy.stats import spearmanr

    return _agreement(spearmanr, a, b)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r; NaN where one of them is constant or shorter than 2."""
    from scipy.stats import pearsonr

    return _agreement(pearsonr, a, b)


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b; NaN where one of them is constant."""
    from scipy.stats import kendalltau

    return _agreement(kendalltau, a, b)


def _agreement(measure: Callable[..., Any], a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(measure(a, b).statistic)
