"""The journal of a measurement: what was measured is not measured again."""

import json

import pytest

from adarank.probe.ablation import Ablation
from adarank.probe.journal import resume

ABLATIONS = [Ablation(2, 1 / 3, [0.1, 0.2]), Ablation(2, 2 / 7, [0.3, 0.1]), Ablation(1, 1e-17, [0.5, 0.25])]
HEAD = {"rows": 5, "batch": 2, "adapter": "ab12"}


def rest(asked, stops=None):
    def stream(done):
        begin = len(done)
        asked.append(begin)
        for place in range(begin, len(ABLATIONS)):
            if place == stops:
                raise KeyboardInterrupt
            yield ABLATIONS[place]

    return stream


def resumed(journal, head, asked):
    return resume(journal, head, rest(asked), len(ABLATIONS), parse)


def parse(line):
    return Ablation(*line)


def stopped_after(journal, parts):
    with pytest.raises(KeyboardInterrupt):
        resume(journal, HEAD, rest([], stops=parts), len(ABLATIONS), parse)


def test_it_goes_on_where_it_was_stopped(tmp_path, capsys):
    journal, asked = tmp_path / "probe.jsonl", []
    stopped_after(journal, 2)
    assert capsys.readouterr().out == "  1 of 3 batches\n  2 of 3 batches\n"
    assert resumed(journal, HEAD, asked) == ABLATIONS  # to the last bit
    assert asked == [2]
    assert resumed(journal, HEAD, asked) == ABLATIONS
    assert asked == [2, 3]


@pytest.mark.parametrize("key", HEAD)
def test_another_measurement_begins_anew(tmp_path, key):
    journal, asked = tmp_path / "probe.jsonl", []
    stopped_after(journal, 2)
    resumed(journal, {**HEAD, key: 9}, asked)
    assert asked == [0]
    assert json.loads(journal.read_text().splitlines()[0]) == {**HEAD, key: 9}


def test_a_line_that_was_cut_off_is_measured_again(tmp_path):
    journal, asked = tmp_path / "probe.jsonl", []
    stopped_after(journal, 2)
    journal.write_text(journal.read_text()[:-9])
    assert resumed(journal, HEAD, asked) == ABLATIONS
    assert asked == [1]
    assert [Ablation(*json.loads(line)) for line in journal.read_text().splitlines()[1:]] == ABLATIONS
