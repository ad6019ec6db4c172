"""Metrics for labels (classes and regression targets), computed with scikit-learn and scipy."""

from collections.abc import Callable, Sequence

import numpy as np

from adarank.errors import SettingError


def compute(names: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{name: value} of the named metrics.

    logits: [rows, classes], or [rows] or [rows, 1] for regression; labels: class indices or targets, [rows]. If a logit
    is NaN or infinite, every value is NaN. Raises SettingError for an unknown name, and ValueError if the logits have
    no rows or a shape that the metric cannot use.
    """
    for name in names:
        require_known(name)
    logits = np.asarray(logits, dtype=np.float64)
    if len(logits) != len(labels) or not len(labels):
        raise ValueError(
            f"logits and labels must have the same number of rows, at least 1 (got {len(logits)} and {len(labels)})"
        )
    if not np.isfinite(logits).all():
        return dict.fromkeys(names, float("nan"))
    return {
        name: _OF_TARGETS[name](_one_column(name, logits), np.asarray(labels, dtype=np.float64))
        if name in _OF_TARGETS
        else _OF_CLASSES[name](_two_columns(name, logits), np.asarray(labels))
        for name in names
    }


def majority(name: str, labels: np.ndarray, classes: int) -> float:
    """The value of a classification metric if every row is predicted to be of the most frequent class in `labels` (the
    first one in case of a tie). labels: class indices [rows]."""
    most = int(np.bincount(labels, minlength=classes).argmax())
    return compute([name], np.tile(np.eye(classes)[most], (len(labels), 1)), labels)[name]


def known() -> tuple[str, ...]:
    """The names of all metrics."""
    return (*_OF_CLASSES, *_OF_TARGETS)


def fitting(regression: bool) -> tuple[str, ...]:
    """The names of the metrics for regression, or for classification."""
    return tuple(_OF_TARGETS if regression else _OF_CLASSES)


def require_known(name: str) -> None:
    if name not in known():
        raise SettingError(f"task.metric must be one of {', '.join(known())} (got {name})")


def _one_column(name: str, logits: np.ndarray) -> np.ndarray:
    if logits.size != len(logits):
        raise ValueError(f"{name} needs one output per row (got logits of shape {logits.shape})")
    return logits.reshape(-1)


def _two_columns(name: str, logits: np.ndarray) -> np.ndarray:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"{name} needs logits of shape [rows, classes] (got {logits.shape})")
    return logits


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows whose largest logit is that of the label."""
    return float(np.mean(logits.argmax(1) == labels))  # without scikit-learn, whose import takes seconds


def f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1 if there are two classes, else the mean F1 over the classes in labels or predictions (macro).

    0 if neither labels nor predictions contain the positive class.
    """
    from sklearn.metrics import f1_score

    average = "binary" if logits.shape[1] == 2 else "macro"
    return float(f1_score(labels, logits.argmax(1), average=average, zero_division=0))


def matthews(logits: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation coefficient (its multi-class form for more than two); 0 if either side is constant."""
    from sklearn.metrics import matthews_corrcoef

    predicted = logits.argmax(1)
    if _constant(predicted) or _constant(labels):
        return 0.0
    return float(matthews_corrcoef(labels, predicted))


def pearson(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Pearson's r; 0 if predictions or targets are constant."""
    return _correlation("pearsonr", predicted, targets)


def spearman(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Spearman's rho: Pearson's r of the ranks (ties share their mean rank); 0 if either side is constant."""
    return _correlation("spearmanr", predicted, targets)


def pearson_spearman(predicted: np.ndarray, targets: np.ndarray) -> float:
    """The mean of Pearson's and Spearman's correlation, GLUE's metric for STS-B."""
    return (pearson(predicted, targets) + spearman(predicted, targets)) / 2


def _correlation(name: str, predicted: np.ndarray, targets: np.ndarray) -> float:
    from scipy import stats

    if _constant(predicted) or _constant(targets):
        return 0.0
    return float(getattr(stats, name)(predicted, targets).statistic)


def _constant(values: np.ndarray) -> bool:
    """Whether all values are equal up to rounding (scipy's own bound for a meaningful correlation)."""
    values = values.astype(np.float64)
    deviation = values - values.mean()
    return bool(np.linalg.norm(deviation) <= 1e-13 * abs(values.mean()) or np.ptp(values) == 0)


Metric = Callable[[np.ndarray, np.ndarray], float]
_OF_CLASSES: dict[str, Metric] = {"accuracy": accuracy, "f1": f1, "matthews": matthews}
_OF_TARGETS: dict[str, Metric] = {"pearson": pearson, "spearman": spearman, "pearson_spearman": pearson_spearman}
