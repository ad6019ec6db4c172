"""Metrics for generated texts and their references. A metric whose package is missing is NaN, not 0.

Every metric takes n texts and one or more references for each of them.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from statistics import fmean
from typing import NamedTuple

Texts = Sequence[str]
References = Sequence[Sequence[str]]

# How the evaluation code of LLM-Adapters (Hu et al. 2023) extracts an answer, {task: pattern}, in the suite's order.
CHOICES = {
    "boolq": "true|false",
    "piqa": "solution1|solution2",
    "social_i_qa": "answer1|answer2|answer3|answer4|answer5",
    "hellaswag": "ending1|ending2|ending3|ending4",
    "winogrande": "option1|option2",
    "ARC-Easy": "answer1|answer2|answer3|answer4|answer5",
    "ARC-Challenge": "answer1|answer2|answer3|answer4|answer5",
    "openbookqa": "answer1|answer2|answer3|answer4|answer5",
}


def compute(
    names: Sequence[str], texts: Texts, references: References, parts: Sequence[str] | None = None
) -> dict[str, float]:
    """{name: value}; NaN for the metrics that `not_computed` lists. parts: the task (of `CHOICES`) that each text comes
    from, for "accuracy" and "accuracy_TASK"."""
    absent = not_computed(names)
    stripped = [text.strip() for text in texts]
    values = dict.fromkeys(absent, float("nan"))
    if parts is not None:  # NaN for a task without answered rows
        values |= {name: float("nan") for name in names if name.startswith("accuracy_")}
        values |= accuracies(stripped, references, parts)
    return {name: values[name] if name in values else METRICS[name].compute(stripped, references) for name in names}


def rules(names: Sequence[str]) -> dict[str, str]:
    """{name: how it extracts the answer from a text} for the metrics that compare extracted answers."""
    stated = {name: METRICS[name].rule for name in names if name in METRICS and METRICS[name].rule}
    tasks = [name.removeprefix("accuracy_") for name in names if name.startswith("accuracy_")]
    if tasks:
        stated["accuracy"] = "the mean of the tasks' accuracies"
    rule = "the first match of {} in the lower-cased answer; without a match it is wrong"
    return stated | {f"accuracy_{task}": rule.format(CHOICES[task]) for task in tasks}


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
    """Corpus BLEU (Papineni et al. 2002), 0 to 100, computed by sacrebleu with the tokeniser 13a; the number of
    references may differ between texts."""
    from sacrebleu import corpus_bleu

    most = max(map(len, references))
    streams = [[group[i] if i < len(group) else None for group in references] for i in range(most)]
    return float(corpus_bleu(texts, streams, tokenize="13a").score)


def rouge(name: str, texts: Texts, references: References) -> float:
    """ROUGE-1, -2, -L or -Lsum (Lin 2004), 0 to 100, computed by rouge-score with its stemmer: the mean F of the best
    reference.

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
    """The share, 0 to 1, of texts for which `read` returns the same as for one of the references; None is wrong."""
    pairs = zip(texts, references, strict=True)
    return fmean(read(text) in {read(one) for one in group} - {None} for text, group in pairs)


def exact_match(texts: Texts, references: References) -> float:
    """The share, 0 to 1, of texts that equal a reference up to white space."""
    return _share_right(texts, references, lambda text: " ".join(text.split()))


def answer_match(texts: Texts, references: References) -> float:
    """GSM8K's metric (Cobbe et al. 2021): the share, 0 to 1, of texts whose number after the last #### equals that of a
    reference. A text without a number is wrong."""
    return _share_right(texts, references, partial(_answer, "####"))


def final_answer(texts: Texts, references: References) -> float:
    """The share, 0 to 1, of texts whose final answer equals that of a reference.

    The final answer follows the last "The answer is:" (MetaMath's format) or "####" (GSM8K's); numbers are compared as
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


def chosen(task: str, text: str) -> str | None:
    """The text's answer to a question of `task` (one of CHOICES): the first match in the lower-cased text."""
    match = re.search(CHOICES[task], text.lower())
    return None if match is None else match[0]


def accuracies(texts: Texts, references: References, tasks: Sequence[str]) -> dict[str, float]:
    """{"accuracy_TASK": the share, 0 to 1, of the task's texts with the same answer as a reference; "accuracy": the
    mean over the tasks}. tasks: the task of each text."""
    shares = {}
    for task in dict.fromkeys(tasks):
        rows = [row for row, each in enumerate(tasks) if each == task]
        own = [texts[row] for row in rows], [references[row] for row in rows]
        shares[f"accuracy_{task}"] = _share_right(*own, partial(chosen, task))
    return {"accuracy": fmean(shares.values()), **shares}


def meteor(texts: Texts, references: References) -> float:
    """METEOR, 0 to 100, computed by nltk (version 1.0 of the metric, with WordNet): the mean over the texts of the best
    reference's score. The E2E challenge's own script uses version 1.5, whose numbers differ."""
    from nltk.translate.meteor_score import meteor_score

    words = [[one.split() for one in _tokenised(group)] for group in references]
    pairs = zip(_tokenised(texts), words, strict=True)
    return 100 * fmean(float(meteor_score(group, text.split())) for text, group in pairs)


def cider(texts: Texts, references: References) -> float:
    """CIDEr-D (Vedantam et al. 2015), computed by pycocoevalcap on lower-cased text with the tokeniser 13a, because its
    own tokeniser needs Java."""
    from pycocoevalcap.cider.cider import Cider

    answered = {i: [text] for i, text in enumerate(_tokenised(texts))}
    expected = {i: _tokenised(group) for i, group in enumerate(references)}
    return float(Cider().compute_score(expected, answered)[0])


def _tokenised(texts: Texts) -> list[str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return [Tokenizer13a()(text).lower() for text in texts]


class Metric(NamedTuple):
    """compute(texts, references) -> value; needs: the packages it imports; rule: how it extracts the answer, if it
    does so."""

    compute: Callable[[Texts, References], float]
    needs: tuple[str, ...] = ()
    rule: str = ""


_TO_THE_END = "up to the end of its line, without commas and without $ or . at either end; without one it is wrong"


METRICS = {
    "bleu": Metric(bleu, ("sacrebleu",)),
    **{name: Metric(partial(rouge, name), ("rouge_score",)) for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")},
    "exact_match": Metric(exact_match),
    "answer_match": Metric(answer_match, rule=f"the text after the last ####, {_TO_THE_END}"),
    "final_answer": Metric(
        final_answer,
        rule=f'the text after the last "The answer is:" or ####, {_TO_THE_END}; numbers are compared as numbers',
    ),
    "meteor": Metric(meteor, ("nltk", "sacrebleu")),
    "cider": Metric(cider, ("pycocoevalcap", "sacrebleu")),
}
