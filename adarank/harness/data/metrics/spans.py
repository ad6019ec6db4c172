"""SQuAD's metrics (Rajpurkar et al. 2016, arXiv 1606.05250; 2018, arXiv 1806.03822), by the official definition.

An answer is compared with every acceptable answer and the best value counts; a question without an answer accepts only
the empty text. This is the evaluation of 2.0, from which that of 1.1 differs only for answers that normalise to
nothing.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, words separated by single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
    """1 if both are equal after normalisation, else 0."""
    return float(normalised(answer) == normalised(reference))


def f1(answer: str, reference: str) -> float:
    """F1 between the words of both as multisets. If either has no words, 1 if neither has any, else 0."""
    words, expected = normalised(answer).split(), normalised(reference).split()
    if not words or not expected:
        return float(words == expected)
    common = sum((Counter(words) & Counter(expected)).values())
    return 2 * common / (len(words) + len(expected))


def best_over_references(
    metric: Callable[[str, str], float], answers: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """The best value of `metric` for each answer over its references, [answers].

    References that normalise to nothing do not count unless there are no others.
    """
    kept = [[text for text in texts if normalised(text)] or [""] for texts in references]
    return [max(metric(answer, each) for each in texts) for answer, texts in zip(answers, kept, strict=True)]


def with_best_threshold(scores: Sequence[float], answerable: Sequence[bool], no_answer: Sequence[float]) -> float:
    """The best mean score over all thresholds on `no_answer`.

    A question whose `no_answer` lies above the threshold is left unanswered, which scores 1 if it has no answer and 0
    if it has one. scores: the scores of the given answers; answerable: whether each question has an answer.
    """
    total = best = float(sum(not each for each in answerable))  # with no question answered
    for row in sorted(range(len(scores)), key=lambda row: no_answer[row]):
        total += scores[row] if answerable[row] else scores[row] - 1
        best = max(best, total)
    return best / len(scores)
