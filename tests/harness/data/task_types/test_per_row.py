"""What evaluation tells of every row: in the order of the rows, whatever the batches, and in line with the metrics."""

import numpy as np
import pytest
import torch

from adarank.harness.config.spec import TrainConfig
from adarank.harness.data.batches import encode
from adarank.harness.data.metrics import labels as metrics
from adarank.harness.data.task_types import classify, extract, generate, seq2seq
from adarank.harness.data.tasks.base import Split
from adarank.harness.models import byte_tokenizer, tiny
from tests.harness.data.task_types import test_extract, test_generate, test_seq2seq

CPU = torch.device("cpu")
TEXTS = ["a", "a much longer text", "short", "neither long nor short", "b c", "the longest of all the texts here"]


def evaluated(task_type, model, rows, names, batch_size=1):
    """(metrics, columns) of an evaluation in batches of 2 · batch_size rows, or as many shorter ones."""
    found = []
    config = TrainConfig(lr=1.0, batch_size=batch_size, precision="fp32")
    values = task_type.evaluate(model, rows, names, config, CPU, per_row=found.append)
    (columns,) = found
    return values, columns


@pytest.mark.parametrize("label", [[0, 2, 1, 1, 0, 2], [0.5, -1.0, 2.0, 0.0, 1.5, 3.0]])
def test_labels_predictions_and_scores_are_those_of_one_row_at_a_time(label):
    regression = isinstance(label[0], float)
    torch.manual_seed(0)
    built = tiny("bert", width=32, layers=1).build(1 if regression else 3)
    label = np.array(label, dtype=np.float32 if regression else np.int64)
    rows = encode(Split(TEXTS, None, label), byte_tokenizer(), 64)
    name = "pearson" if regression else "accuracy"
    values, columns = evaluated(classify, built.model, rows, (name,))
    built.model.eval()
    for i, text in enumerate(TEXTS):
        with torch.no_grad():
            logits = built.model(**byte_tokenizer()(text, return_tensors="pt")).logits[0].numpy()
        if regression:
            assert columns["prediction"][i] == columns["score"][i] == pytest.approx(logits[0], abs=1e-6)
        else:
            shares = np.exp(logits) / np.exp(logits).sum()
            assert columns["prediction"][i] == logits.argmax()
            assert columns["score"][i] == pytest.approx(shares.max(), abs=1e-6)
    assert np.array_equal(columns["label"], label)
    kind = {"label": label.dtype, "prediction": label.dtype, "score": np.float32}
    assert {k: v.dtype for k, v in columns.items()} == kind
    logits = columns["prediction"] if regression else np.eye(3)[columns["prediction"]]
    assert metrics.compute([name], logits, label)[name] == pytest.approx(values[name])


def test_the_score_of_a_generated_text_is_its_own_loss():
    model, rows = test_generate.built().model, test_generate.encoded()
    values, columns = evaluated(generate, model, rows, ("loss",))
    alone = [generate.loss(model.eval(), generate.collate(rows, np.array([i]), CPU)).item() for i in range(4)]
    assert columns["score"] == pytest.approx(alone, rel=1e-5)
    assert np.average(columns["score"], weights=rows.counted) == pytest.approx(values["loss"], rel=1e-5)
    built = tiny("bart").build(0, seq2seq)
    rows = seq2seq.encode(test_seq2seq.task(max_new_tokens=20), "dev", built.tokenizer)
    _, columns = evaluated(seq2seq, built.model, rows, ("loss",))
    alone = [seq2seq.loss(built.model.eval(), seq2seq.collate(rows, np.array([i]), CPU)).item() for i in range(3)]
    assert columns["score"] == pytest.approx(alone, rel=1e-5)


def test_the_score_of_a_question_is_the_f1_of_its_answer():
    rows = test_extract.made(90, 30)
    start, end = test_extract.scores_of(rows, [""] * len(test_extract.QUESTIONS))  # nothing is answered
    found = []
    values = extract.span_metrics(rows, start, end, ("f1",), found.append)
    assert found[0]["score"].dtype == np.float32
    assert found[0]["score"].tolist() == [float(not references) for references in test_extract.QUESTIONS.answers]
    assert found[0]["score"].mean() == pytest.approx(values["f1"])
    start[0, 3] = np.nan
    extract.span_metrics(rows, start, end, ("f1",), found.append)
    assert np.isnan(found[1]["score"]).all()
