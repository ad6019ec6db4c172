"""Metrics of generated texts against their references. If its package is missing, a metric is NaN, not 0.

Every metric takes n texts and, for each of them, one or more references.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from statistics import fmean
from typing import NamedTuple

Texts = Sequence[str]
References = Sequence[Sequence[str]]


def compute(names: Sequence[str], texts: Texts, references: References) -> dict[str, float]:
    """{name: value}; NaN for those that `not_computed` names."""
    absent = not_computed(names)
    stripped = [text.strip() for text in texts]
    return {name: float("nan") if name in absent else METRICS[name].compute(stripped, references) for name in names}


def not_computed(names: Sequence[str]) -> dict[str, str]:
    """{name: reason} for the metrics that this installation cannot compute."""
    reasons = {name: _missing(METRICS[name].needs) for name in names if name in METRICS}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _missing(packages: Sequence[str]) -> str | None:
    for package in packages:
        if find_spec(package) is None:
            return f"{package} is not installed"
    if "nltk" in packages:
        from nltk.data import find

        try:
            find("corpora/wordnet.zip")
        except LookupError:
            return "nltk has no WordNet (nltk.download('wordnet'))"
    return None


def bleu(texts: Texts, references: References) -> float:
    """Corpus BLEU (Papineni et al. 2002) by sacrebleu, tokeniser 13a, from 0 to 100; the number of references may
    differ from text to text."""
    from sacrebleu import corpus_bleu

    most = max(map(len, references))
    streams = [[group[i] if i < len(group) else None for group in references] for i in range(most)]
    return float(corpus_bleu(texts, streams, tokenize="13a").score)


def rouge(name: str, texts: Texts, references: References) -> float:
    """ROUGE-1, -2, -L or -Lsum (Lin 2004) by rouge-score with its stemmer: the mean F of the best reference, 0 to 100.

    name: "rouge1", "rouge2", "rougeL" or "rougeLsum", which compares sentence by sentence; a sentence ends at a line
    break or after . ! or ?.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([name], use_stemmer=True)
    if name == "rougeLsum":
        texts, references = _sentence_per_line(texts), [_sentence_per_line(group) for group in references]
    pairs = zip(texts, references, strict=True)
    return 100 * fmean(scorer.score_multi(list(group), text)[name].fmeasure for text, group in pairs)


def _sentence_per_line(texts: Texts) -> list[str]:
    """The texts with a line break after every sentence."""
    return [re.sub(r"(?<=[.!?])\s+", "\n", text) for text in texts]


def _share_right(texts: Texts, references: References, read: Callable[[str], object]) -> float:
    """The share, from 0 to 1, of texts for which `read` finds what it finds in a reference; None is wrong."""
    pairs = zip(texts, references, strict=True)
    return fmean(read(text) in {read(one) for one in group} - {None} for text, group in pairs)


def exact_match(texts: Texts, references: References) -> float:
    """The share, from 0 to 1, of texts that equal a reference up to white space."""
    return _share_right(texts, references, lambda text: " ".join(text.split()))


def answer_match(texts: Texts, references: References) -> float:
    """GSM8K's metric (Cobbe et al. 2021): the share, from 0 to 1, of texts whose number after the last #### is that of
    a reference. A text without a number is wrong."""
    return _share_right(texts, references, partial(_answer, "####"))


def final_answer(texts: Texts, references: References) -> float:
    """The share, from 0 to 1, of texts whose final answer is that of a reference.

    The final answer follows the last "The answer is:" (MetaMath's form) or "####" (GSM8K's); numbers are compared as
    numbers. A text without an answer is wrong.
    """

    def final(text: str) -> float | str | None:
        answer = _answer(r"The answer is:?|####", text)
        try:
            return None if answer is None else float(answer)
        except ValueError:
            return answer

    return _share_right(texts, references, final)


def _answer(marks: str, text: str) -> str | None:
    """The text between the last of `marks` (a pattern) and the end of its line, without commas and currency."""
    _, *stated = re.split(marks, text)
    words = stated[-1].strip().splitlines() if stated else []
    return words[0].strip().strip("$.").replace(",", "") if words else None


def meteor(texts: Texts, references: References) -> float:
    """METEOR by nltk (the metric's version 1.0, with WordNet), from 0 to 100: the mean of the best reference. The E2E
    challenge's own script runs version 1.5, whose numbers differ."""
    from nltk.translate.meteor_score import meteor_score

    words = [[one.split() for one in _tokenised(group)] for group in references]
    pairs = zip(_tokenised(texts), words, strict=True)
    return 100 * fmean(float(meteor_score(group, text.split())) for text, group in pairs)


def cider(texts: Texts, references: References) -> float:
    """CIDEr-D (Vedantam et al. 2015) by pycocoevalcap, tokenised by 13a, lower-cased (its own tokeniser is Java)."""
    from pycocoevalcap.cider.cider import Cider

    answered = {i: [text] for i, text in enumerate(_tokenised(texts))}
    expected = {i: _tokenised(group) for i, group in enumerate(references)}
    return float(Cider().compute_score(expected, answered)[0])


def _tokenised(texts: Texts) -> list[str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return [Tokenizer13a()(text).lower() for text in texts]


class Metric(NamedTuple):
    """compute(texts, references) -> value; needs: the packages it imports."""

    compute: Callable[[Texts, References], float]
    needs: tuple[str, ...] = ()


METRICS = {
    "bleu": Metric(bleu, ("sacrebleu",)),
    **{name: Metric(partial(rouge, name), ("rouge_score",)) for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")},
    "exact_match": Metric(exact_match),
    "answer_match": Metric(answer_match),
    "final_answer": Metric(final_answer),
    "meteor": Metric(meteor, ("nltk", "sacrebleu")),
    "cider": Metric(cider, ("pycocoevalcap", "sacrebleu")),
}
