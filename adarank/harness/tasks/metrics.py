"""What a task reports, from scikit-learn and scipy (imported when first computed)."""

from collections.abc import Callable, Sequence

import numpy as np

from adarank.errors import SettingError
from adarank.harness.complaints import near


def compute(names: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{name: value} of the named metrics.

    logits: [rows, classes], or for regression [rows] or [rows, 1]; labels: class indices or targets [rows].
    Every value is NaN where a logit is NaN or infinite. Raises SettingError for an unknown name, ValueError where the
    logits have no rows or a shape that the metric cannot use.
    """
    for name in names:
        _require(name)
    logits = np.asarray(logits, dtype=np.float64)
    if len(logits) != len(labels) or not len(labels):
        raise ValueError(f"{len(logits)} rows of logits for {len(labels)} labels; need as many, at least one")
    if not np.isfinite(logits).all():
        return dict.fromkeys(names, float("nan"))
    return {
        name: _OF_TARGETS[name](_one_column(name, logits), np.asarray(labels, dtype=np.float64))
        if name in _OF_TARGETS
        else _OF_CLASSES[name](_two_columns(name, logits), np.asarray(labels))
        for name in names
    }


def known() -> tuple[str, ...]:
    """The names of all metrics."""
    return (*_OF_CLASSES, *_OF_TARGETS)


def fitting(regression: bool) -> tuple[str, ...]:
    """The metrics of regression, or of classification."""
    return tuple(_OF_TARGETS if regression else _OF_CLASSES)


def higher_is_better(name: str) -> bool:
    """True for every metric there is so far. Raises SettingError for an unknown name."""
    _require(name)
    return True


def _require(name: str) -> None:
    if name not in known():
        raise SettingError(f"task.metric={name} is not known; {near(str(name), known())}")


def _one_column(name: str, logits: np.ndarray) -> np.ndarray:
    if logits.size != len(logits):
        raise ValueError(f"{name} needs one output a row, got logits of shape {logits.shape}")
    return logits.reshape(-1)


def _two_columns(name: str, logits: np.ndarray) -> np.ndarray:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"{name} needs logits of shape [rows, classes], got {logits.shape}")
    return logits


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows whose largest logit is the label's."""
    return float(np.mean(logits.argmax(1) == labels))  # without scikit-learn, whose import takes seconds


def f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Of two classes: F1 of class 1. Of more: the mean of F1 over the classes among labels or predictions (macro).

    0 where neither labels nor predictions hold the positive class.
    """
    from sklearn.metrics import f1_score

    average = "binary" if logits.shape[1] == 2 else "macro"
    return float(f1_score(labels, logits.argmax(1), average=average, zero_division=0))


def matthews(logits: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation coefficient, its multi-class form where there are more than two; 0 where constant."""
    from sklearn.metrics import matthews_corrcoef

    predicted = logits.argmax(1)
    if _constant(predicted) or _constant(labels):
        return 0.0
    return float(matthews_corrcoef(labels, predicted))


def pearson(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Pearson's r; 0 where predictions or targets are constant."""
    from scipy.stats import pearsonr

    if _constant(predicted) or _constant(targets):
        return 0.0
    return float(pearsonr(predicted, targets).statistic)


def spearman(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Spearman's rho, Pearson's r of the ranks (ties share their mean rank); 0 where constant."""
    from scipy.stats import spearmanr

    if _constant(predicted) or _constant(targets):
        return 0.0
    return float(spearmanr(predicted, targets).statistic)


def pearson_spearman(predicted: np.ndarray, targets: np.ndarray) -> float:
    """The mean of the two, GLUE's measure of STS-B."""
    return (pearson(predicted, targets) + spearman(predicted, targets)) / 2


def _constant(values: np.ndarray) -> bool:
    """Equal, or apart by rounding alone: scipy's own bound for a correlation that means something."""
    values = values.astype(np.float64)
    deviation = values - values.mean()
    return bool(np.linalg.norm(deviation) <= 1e-13 * abs(values.mean()) or np.ptp(values) == 0)


Metric = Callable[[np.ndarray, np.ndarray], float]
_OF_CLASSES: dict[str, Metric] = {"accuracy": accuracy, "f1": f1, "matthews": matthews}
_OF_TARGETS: dict[str, Metric] = {"pearson": pearson, "spearman": spearman, "pearson_spearman": pearson_spearman}
