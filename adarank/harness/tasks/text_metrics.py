"""What generated texts are worth beside their references. Packages are imported when they are first needed; what they are
not there for is not computed, and is never 0.

Every metric takes texts [n] and the references of each [n][1 or more].
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
    """{name: value}; NaN where `not_computed` says why."""
    absent = not_computed(names)
    stripped = [text.strip() for text in texts]
    return {name: float("nan") if name in absent else METRICS[name].compute(stripped, references) for name in names}


def not_computed(names: Sequence[str]) -> dict[str, str]:
    """{name: why} for the metrics that this installation cannot compute."""
    reasons = {name: _missing(METRICS[name].needs) for name in names if name in METRICS}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def higher_is_better(name: str) -> bool:
    return name != "loss"


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
    """Corpus BLEU (Papineni et al. 2002) by sacrebleu, tokeniser 13a, from 0 to 100; texts may have unlike numbers of
    references."""
    from sacrebleu import corpus_bleu

    most = max(map(len, references))
    streams = [[own[i] if i < len(own) else None for own in references] for i in range(most)]
    return float(corpus_bleu(texts, streams, tokenize="13a").score)


def rouge(kind: str, texts: Texts, references: References) -> float:
    """ROUGE-1, -2, -L or -Lsum (Lin 2004) by rouge-score with its stemmer: the mean F of the best reference, from 0 to 100.
    -Lsum matches sentence by sentence, which end at line breaks and behind . ! and ?."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=True)
    if kind == "rougeLsum":
        texts, references = _a_line_each(texts), [_a_line_each(own) for own in references]
    pairs = zip(texts, references, strict=True)
    return 100 * fmean(scorer.score_multi(list(own), text)[kind].fmeasure for text, own in pairs)


def _a_line_each(texts: Texts) -> list[str]:
    """The texts with every sentence on a line of its own."""
    return [re.sub(r"(?<=[.!?])\s+", "\n", text) for text in texts]


def exact_match(texts: Texts, references: References) -> float:
    """The share, from 0 to 1, of texts that equal a reference, but for white space."""
    pairs = zip(texts, references, strict=True)
    return fmean(" ".join(text.split()) in {" ".join(one.split()) for one in own} for text, own in pairs)


def answer_match(texts: Texts, references: References) -> float:
    """GSM8K's measure (Cobbe et al. 2021): the share, from 0 to 1, of texts whose number behind the last #### is a
    reference's. A text without one is wrong."""
    pairs = zip(texts, references, strict=True)
    return fmean(_answer(text) in {_answer(one) for one in own} - {None} for text, own in pairs)


def _answer(text: str) -> str | None:
    """What stands behind the last ####, up to the line's end, without commas and currency."""
    _, mark, end = text.rpartition("####")
    words = end.strip().splitlines()
    return words[0].strip().strip("$.").replace(",", "") if mark and words else None


def final_answer(texts: Texts, references: References) -> float:
    """The share, from 0 to 1, of texts whose final answer is a reference's: what stands behind the last "The answer is:"
    (MetaMath's form) or "####" (GSM8K's), as numbers where both are. A text without one is wrong."""
    pairs = zip(texts, references, strict=True)
    return fmean(_final(text) in {_final(one) for one in own} - {None} for text, own in pairs)


def _final(text: str) -> float | str | None:
    stated = re.split(r"The answer is:?|####", text)
    words = stated[-1].strip().splitlines()
    if len(stated) == 1 or not words:
        return None
    answer = words[0].strip().strip("$.").replace(",", "")
    try:
        return float(answer)
    except ValueError:
        return answer


def meteor(texts: Texts, references: References) -> float:
    """METEOR by nltk (the metric's version 1.0, with WordNet), from 0 to 100: the mean of the best reference. The E2E
    challenge's own script runs version 1.5, whose numbers differ."""
    from nltk.translate.meteor_score import meteor_score

    words = [[one.split() for one in _tokenised(own)] for own in references]
    pairs = zip(_tokenised(texts), words, strict=True)
    return 100 * fmean(float(meteor_score(own, text.split())) for text, own in pairs)


def cider(texts: Texts, references: References) -> float:
    """CIDEr-D (Vedantam et al. 2015) by pycocoevalcap, tokenised by 13a and lower-cased (its own tokeniser is in Java)."""
    from pycocoevalcap.cider.cider import Cider

    answered = {i: [text] for i, text in enumerate(_tokenised(texts))}
    wanted = {i: _tokenised(own) for i, own in enumerate(references)}
    return float(Cider().compute_score(wanted, answered)[0])


def _tokenised(texts: Texts) -> list[str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return [Tokenizer13a()(text).lower() for text in texts]


class Metric(NamedTuple):
    """compute(texts, references) -> value; needs: packages."""

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
