"""Windows and answers against a slow reference that reads the characters, and one run."""

import itertools
import json

import numpy as np
import pytest
import torch

from adarank.errors import SettingError
from adarank.harness.config.spec import TrainConfig
from adarank.harness.data.task_types import extract
from adarank.harness.data.task_types.extract import answers, windows
from adarank.harness.data.tasks.questions import Questions, squad
from adarank.harness.models import byte_tokenizer, tiny
from tests.experiments.test_run import inside, summaries
from tests.harness.data.tasks.squad_folder import CONTEXT, ROWS, write
from tests.representatives import representatives

QUESTIONS = Questions(
    [question for question, _ in ROWS],
    [CONTEXT] * len(ROWS),
    [found for _, found in ROWS],
    [[CONTEXT.index(text) for text in found] for _, found in ROWS],
)

CPU = torch.device("cpu")


def made(max_length=48, stride=8, longest=30, none_allowed=True):
    return windows(QUESTIONS, byte_tokenizer(), max_length, stride, longest, none_allowed)


def test_windows_cover_the_context_and_label_whole_answers_only():
    tokenizer, found = byte_tokenizer(), made()
    assert len(found) > len(QUESTIONS)
    for i, row in enumerate(found.row):
        ids, offsets = found.tokens["input_ids"][i], found.offsets[i]
        assert len(ids) == len(offsets) <= 48
        assert found.none[i] == 0
        assert ids[0] == tokenizer.cls_token_id
        inside = [(a, b) for a, b in offsets.tolist() if a >= 0]
        seen = CONTEXT[inside[0][0] : inside[-1][1]]
        assert tokenizer.decode(ids).endswith(f"{seen}[SEP]")
        first, last = found.label[i].tolist()
        answer = ([*QUESTIONS.answers[row], None])[0]
        start = CONTEXT.index(answer) if answer else -1
        if answer and inside[0][0] <= start and start + len(answer) <= inside[-1][1]:
            assert CONTEXT[offsets[first, 0] : offsets[last, 1]] == answer
        else:
            assert (first, last) == (0, 0)
    for row in range(len(QUESTIONS)):
        pieces = [found.offsets[i] for i in np.flatnonzero(found.row == row)]
        ranges = [(piece[piece[:, 0] >= 0][0, 0], piece[piece[:, 0] >= 0][-1, 1]) for piece in pieces]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == len(CONTEXT)
        assert all(a[1] - b[0] == 8 for a, b in itertools.pairwise(ranges))  # a byte is a token here


def test_a_question_too_long_is_cut():
    long = Questions(["why " * 50], [CONTEXT], [[]], [[]])
    found = windows(long, byte_tokenizer(), 48, 8, 30, True)
    assert all(len(ids) <= 48 for ids in found.tokens["input_ids"])
    assert sum(len(set(o[o[:, 0] >= 0, 0].tolist())) > 8 for o in found.offsets) == len(found)


def test_a_slow_tokeniser_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(SettingError, match="Slow does not report where its tokens are"):
        windows(QUESTIONS, Slow(), 48, 8, 30, True)


def slow_answers(found, start, end, tried):
    """By loops: every pair of one of the `tried` best starts and ends in the context of every window."""
    text, doubt = [], []
    for row in range(len(QUESTIONS)):
        best, span, nothing = -np.inf, "", np.inf
        for i in np.flatnonzero(found.row == row):
            offsets = found.offsets[i]
            nothing = min(nothing, start[i, 0] + end[i, 0])
            tokens = [t for t in range(len(offsets)) if offsets[t, 0] >= 0]
            firsts = sorted(tokens, key=lambda t, i=i: -start[i, t])[:tried]
            lasts = sorted(tokens, key=lambda t, i=i: -end[i, t])[:tried]
            for a in firsts:
                for b in lasts:
                    if a <= b < a + found.longest and start[i, a] + end[i, b] > best:
                        best, span = start[i, a] + end[i, b], CONTEXT[offsets[a, 0] : offsets[b, 1]]
        text.append(span)
        doubt.append(nothing - best)
    return text, doubt


@pytest.mark.parametrize("longest", [1, 5, 30])
def test_the_answer_is_the_best_span_of_all_windows(longest):
    found = made(longest=longest)
    width = max(map(len, found.tokens["input_ids"]))
    generator = np.random.default_rng(longest)
    start, end = generator.normal(size=(2, len(found), width))
    text, doubt = answers(found, start, end)
    expected, expected_doubt = slow_answers(found, start, end, 20)
    assert text == expected
    np.testing.assert_allclose(doubt, expected_doubt)


def scores_of(found, wanted, certainty=9.0):
    """Scores that point at `wanted` texts ("" for none), in the windows that hold them."""
    width = max(map(len, found.tokens["input_ids"]))
    start, end = np.zeros((2, len(found), width))
    for i, row in enumerate(found.row):
        first, last = found.label[i].tolist()
        if wanted[row] == "":
            start[i, 0] = end[i, 0] = certainty
        elif first:
            start[i, first] = end[i, last] = certainty
    return start, end


def test_a_perfect_model_scores_1_and_one_that_never_answers_what_has_no_answer():
    found, names = made(90, 30), ("f1", "exact_match", "best_f1", "best_exact_match")  # some window holds every answer
    perfect = scores_of(found, [([*own, ""])[0] for own in QUESTIONS.answers])
    assert extract.span_metrics(found, *perfect, names) == dict.fromkeys(names, 1.0)
    silent = scores_of(found, [""] * 4)
    assert extract.span_metrics(found, *silent, names[:2]) == {"f1": 0.25, "exact_match": 0.25}
    assert extract.span_metrics(made(90, 30, none_allowed=False), *silent, ("exact_match",))["exact_match"] == 0.0


def test_a_span_as_good_as_no_answer_is_answered():
    found = made()
    start, end = np.zeros((2, len(found), max(map(len, found.tokens["input_ids"]))))
    _, margin = answers(found, start, end)
    assert margin.tolist() == [0.0] * len(QUESTIONS)
    values = {a: extract.span_metrics(made(none_allowed=a), start, end, ("f1", "exact_match")) for a in (True, False)}
    assert values[True] == values[False]
    assert values[True]["exact_match"] == 0.0


def test_scores_that_are_no_numbers_are_nan():
    start, end = scores_of(made(), [""] * 4)
    start[0, 3] = np.nan
    assert np.isnan(extract.span_metrics(made(), start, end, ("f1",))["f1"])


def test_the_loss_is_transformers_own():
    built = tiny("bert").build(2, extract)
    batch = extract.collate(made(), np.arange(5), torch.device("cpu"))
    built.model.eval()
    torch.testing.assert_close(extract.loss(built.model, batch), built.model(**batch).loss)
    assert "qa_outputs" in built.head


def test_evaluation_puts_windows_back_in_order(tmp_path):
    """Batches of any size give the same values."""
    task = squad("squad_v2", path=str(write(tmp_path, "v2.0")), max_length=48)
    torch.manual_seed(0)
    built = tiny("deberta_v2").build(2, extract)
    rows = extract.encode(task, "dev", built.tokenizer)
    assert rows.lengths.tolist() == [len(ids) for ids in rows.tokens["input_ids"]]
    found = [
        extract.evaluate(built.model, rows, task.metrics, TrainConfig(lr=1.0, batch_size=size, precision="fp32"), CPU)
        for size in (1, 3, 50)
    ]
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-5)


def test_a_model_that_does_not_point_is_refused():
    config = type("Config", (), {"model_type": "mamba"})()
    with pytest.raises(
        SettingError, match=r"^model=x: a mamba model cannot extract answers from a text; choose an encoder"
    ):
        extract.check(config, "model=x")


@pytest.mark.parametrize("model", representatives(["tiny_deberta_v2", "tiny_bert"], 1))
def test_it_runs(tmp_path, model):
    write(tmp_path, "v2.0")
    out = tmp_path / "out"
    inside("task=squad_v2", f"task.path={tmp_path}", "tiny=true", f"model={model}", f"out={out}", "method=adalora")
    (summary,) = summaries(out).values()
    assert (summary["status"], summary["task"], summary["metric"]["name"]) == ("finished", "squad_v2", "f1")
    (folder,) = out.glob("adalora-*")
    dev = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if '"dev"' in line]
    assert {"f1", "exact_match", "best_f1", "best_exact_match", "loss"} <= dev[-1].keys()
    assert all(0 <= dev[-1][name] <= 1 for name in ("f1", "exact_match", "best_f1", "best_exact_match"))
