"""Metrics of texts against ones written out; what is absent is not computed."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adarank.harness.data.metrics import texts as text_metrics

WORDS = ("rain", "sun", "wind", "fog", "snow", "hat")
line = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)
answered = st.lists(st.tuples(line, st.lists(line, min_size=1, max_size=3)), min_size=1, max_size=5)


def grams(words, n):
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def slow_bleu(pairs):
    """Papineni et al. 2002: clipped counts over the corpus, the closest reference's length; exponential smoothing."""
    hits, all_, ours, theirs = [0] * 4, [0] * 4, 0, 0
    for text, references in pairs:
        words = text.split()
        ours += len(words)
        theirs += min((abs(len(r.split()) - len(words)), len(r.split())) for r in references)[1]
        for n in range(1, 5):
            own, best = grams(words, n), Counter()
            for reference in references:
                best |= grams(reference.split(), n)
            hits[n - 1] += sum((own & best).values())
            all_[n - 1] += sum(own.values())
    if not hits[0]:
        return 0.0
    logs, smooth, orders = 0.0, 1.0, 0
    for hit, total in zip(hits, all_, strict=True):
        if not total:
            break
        orders += 1
        smooth = smooth * 2 if not hit else smooth
        logs += math.log(100 * hit / total if hit else 100 / (smooth * total))
    if orders < 4:  # no text is long enough for a 4-gram: a geometric mean with nothing in it
        return 0.0
    return math.exp(logs / 4) * (1.0 if ours >= theirs else math.exp(1 - theirs / ours))


@settings(max_examples=60, deadline=None)
@given(answered)
def test_bleu_by_its_definition(pairs):
    pytest.importorskip("sacrebleu")
    found = text_metrics.bleu([t for t, _ in pairs], [r for _, r in pairs])
    assert found == pytest.approx(slow_bleu(pairs), abs=1e-6)


def slow_rouge_l(text, reference):
    a, b = text.split(), reference.split()
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    common = table[-1][-1]
    return 2 * common / (len(a) + len(b))


def slow_rouge_n(n, text, reference):
    a, b = grams(text.split(), n), grams(reference.split(), n)
    common = sum((a & b).values())
    if not common:
        return 0.0
    precision, recall = common / sum(a.values()), common / sum(b.values())
    return 2 * precision * recall / (precision + recall)


@settings(max_examples=40, deadline=None)
@given(answered)
def test_rouge_by_its_definition(pairs):
    pytest.importorskip("rouge_score")
    texts, references = [t for t, _ in pairs], [r for _, r in pairs]
    for kind, slow in (
        ("rouge1", lambda a, b: slow_rouge_n(1, a, b)),
        ("rouge2", lambda a, b: slow_rouge_n(2, a, b)),
        ("rougeL", slow_rouge_l),
    ):
        expected = sum(max(slow(t, r) for r in own) for t, own in pairs) / len(pairs)
        assert text_metrics.rouge(kind, texts, references) == pytest.approx(100 * expected, abs=1e-6)


def test_rouge_of_summaries_matches_sentence_by_sentence():
    """Lin 2004, section 3.2: of every reference sentence the union of what it has in common with the text's
    sentences."""
    pytest.importorskip("rouge_score")
    texts, references = ["rain sun. hat fog"], [["hat rain. sun fog"]]
    # "hat rain": rain of the one, hat of the other; "sun fog": sun of the one, fog of the other
    assert text_metrics.rouge("rougeLsum", texts, references) == pytest.approx(100)
    assert text_metrics.rouge("rougeL", texts, references) == pytest.approx(100 * 2 * 3 / 8)  # rain, sun, fog


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("#### 7\nThe answer is: 42", True),
        ("The answer is 42.0.", True),
        ("#### $1,0\n#### 42", True),
        ("The answer is: 42\nmore", True),
        ("The answer is: x", False),
        ("42", False),
        ("The answer is:", False),
    ],
)
def test_the_final_answer_in_both_forms(text, right):
    assert text_metrics.final_answer([text], [["#### 42"]]) == right
    assert text_metrics.final_answer([text], [["no answer"]]) == 0
    assert text_metrics.final_answer(["The answer is: x + 1."], [["The answer is: x + 1"]]) == 1


def test_exact_match_does_not_see_white_space():
    texts = ["a b", " a\n b ", "ab", "A b", "c"]
    assert text_metrics.exact_match(texts, [["a b", "c"]] * 5) == 3 / 5


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("so it is 3\n#### 1,234", True),
        ("#### $1234.", True),
        ("#### 7 no\n#### 1234", True),
        ("####1234\nmore words", True),
        ("it is 1234", False),
        ("#### 1235", False),
        ("####", False),
        ("", False),
    ],
)
def test_the_number_behind_the_mark(text, right):
    assert text_metrics.answer_match([text], [["2 * 617 = <<2*617=1234>>1234\n#### 1234"]]) == right


def test_a_reference_without_the_mark_matches_nothing():
    assert text_metrics.answer_match(["no number"], [["none here"]]) == 0.0


def test_what_is_not_installed_is_not_computed_and_not_zero(monkeypatch):
    monkeypatch.setattr(text_metrics, "find_spec", lambda name: None)
    names = ["loss", "exact_match", "bleu", "meteor", "cider"]
    assert text_metrics.not_computed(names) == {
        "bleu": "sacrebleu is not installed",
        "meteor": "nltk is not installed",
        "cider": "pycocoevalcap is not installed",
    }
    found = text_metrics.compute(names[1:], ["a"], [["a"]])
    assert found["exact_match"] == 1.0
    assert all(math.isnan(found[name]) for name in ("bleu", "meteor", "cider"))


def test_meteor_and_cider_where_they_are():
    names = [name for name in ("meteor", "cider") if not text_metrics.not_computed([name])]
    if not names:
        pytest.skip("neither nltk with WordNet nor pycocoevalcap is installed")
    same = ["the cat sat on a warm mat", "a dog ran to the old red barn", "we ate two green apples in town"]
    other = ["rain fell all over", "seven ships sail", "nothing else matters"]
    for name in names:
        high, low = (text_metrics.compute([name], texts, [[one] for one in same])[name] for texts in (same, other))
        assert high > 3 * low + 1


def test_meteor_by_its_definition_but_for_synonyms(monkeypatch):
    """F = 10PR / (R + 9P), less half the cube of chunks per match; the best reference counts."""
    score = pytest.importorskip("nltk.translate.meteor_score")

    class NoSynonyms:
        @staticmethod
        def synsets(word):
            return []

    *first, _, alpha, beta, gamma = score.meteor_score.__defaults__
    monkeypatch.setattr(score.meteor_score, "__defaults__", (*first, NoSynonyms, alpha, beta, gamma))
    texts = ["rain sun wind fog", "sun rain wind fog", "rain sun"]
    references = [["rain sun wind fog"], ["snow", "rain sun wind fog"], ["rain sun wind fog"]]
    expected = [1 - 0.5 / 64, 1 - 0.5 * (3 / 4) ** 3, 10 * 0.5 / (0.5 + 9) * (1 - 0.5 / 8)]
    assert text_metrics.meteor(texts, references) == pytest.approx(100 * sum(expected) / 3)
