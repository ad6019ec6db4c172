"""SQuAD's measures of an answer (Rajpurkar et al. 2016, arXiv 1606.05250; 2018, arXiv 1806.03822), as its official
evaluation defines them: of the acceptable answers the one that fits best counts, a question without an answer accepts the
empty text alone. That is 2.0's evaluation; 1.1's differs for answers that normalise to nothing, and only there.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, words one blank apart."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(given: str, wanted: str) -> float:
    """1 where both are the same but for case, punctuation, articles and blanks."""
    return float(normalised(given) == normalised(wanted))


def f1(given: str, wanted: str) -> float:
    """F1 over the words of both as multisets; where one has none, 1 if neither has."""
    ours, theirs = normalised(given).split(), normalised(wanted).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def against(measure: Callable[[str, str], float], given: Sequence[str], wanted: Sequence[Sequence[str]]) -> list[float]:
    """`measure` of every given text against the best of its acceptable ones; those that normalise to nothing do not count
    unless there are no others."""
    kept = [[text for text in texts if normalised(text)] or [""] for texts in wanted]
    return [max(measure(text, each) for each in texts) for text, texts in zip(given, kept, strict=True)]


def with_best_threshold(scores: Sequence[float], answerable: Sequence[bool], no_answer: Sequence[float]) -> float:
    """The best mean score that any threshold on `no_answer` gives: where a question's value lies above it, the answer is
    taken back, which scores 1 where there is none and 0 where there is one.

    scores: those of the answers as given, never taken back; answerable: whether the question has an answer.
    """
    total = best = float(sum(not each for each in answerable))  # everything taken back
    for row in sorted(range(len(scores)), key=lambda row: no_answer[row]):
        total += scores[row] if answerable[row] else scores[row] - 1
        best = max(best, total)
    return best / len(scores)
