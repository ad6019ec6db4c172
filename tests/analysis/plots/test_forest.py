from dataclasses import replace

import pytest

from analysis.load import read_runs
from analysis.plots import forest
from analysis.tables import tables
from analysis.verdicts import MARGIN, family


def drawn(out):
    (table,) = tables(read_runs(out))
    (judged,) = family([table]).verdicts
    return judged, forest.draw(judged, table.metric, MARGIN)


@pytest.fixture
def decided(tmp_path, write_run):
    """Eight seeds: adalora better, sora equivalent (LoRA at r = 2 shows that rank matters), full undecided, two seeds
    of eva."""
    for seed in range(8):
        level = 0.7 + 0.01 * seed
        gains = {
            "lora": 0.0,
            "adalora": 0.02 + 0.001 * seed,
            "sora": 0.0005 * (-1) ** seed,
            "full": 0.02 * (-1) ** seed,
        }
        for method, gain in gains.items():
            write_run(tmp_path, method, seed, metric__test=level + gain)
        write_run(tmp_path, "lora", seed, 2, metric__test=level - 0.05 + 0.001 * (seed % 2))
    for seed in (0, 1):
        write_run(tmp_path, "eva", seed, metric__test=0.7)
    return tmp_path


def test_every_comparison_has_its_mark_and_interval(decided):
    judged, figure = drawn(decided)
    axes = figure.axes[0]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == [f"{verdict.comparison.label}  (n = {verdict.pairs})" for verdict in judged]
    marks = {line.get_ydata()[0]: line for line in axes.get_lines() if line.get_linestyle() == "None"}
    bars = {line.get_ydata()[0]: line for line in axes.get_lines() if len(line.get_xdata()) == 2 and
            line.get_ydata()[0] == line.get_ydata()[1]}  # fmt: skip
    for y, verdict in enumerate(judged):
        assert marks[y].get_xdata()[0] == verdict.difference
        assert (tuple(bars[y].get_xdata()) if y in bars else None) == verdict.interval
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((-MARGIN, MARGIN))
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top


def test_verdicts_differ_in_shape_and_filling_too(decided):
    judged, figure = drawn(decided)
    assert {verdict.kind for verdict in judged} == set(forest.STYLES)
    assert len(figure.legends[0].get_texts()) == 4
    assert len({look["marker"] for look in forest.STYLES.values()}) == 4


def test_two_pairs_have_a_mark_and_no_bar(quickstart):
    judged, figure = drawn(quickstart)
    assert all(verdict.interval is None for verdict in judged)
    horizontal = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2 and
                  line.get_ydata()[0] == line.get_ydata()[1]]  # fmt: skip
    assert horizontal == []


def test_one_pair_is_no_forest(tmp_path, write_run):
    write_run(tmp_path, "lora", 0)
    write_run(tmp_path, "full", 0)
    assert drawn(tmp_path)[1] is None


def test_a_declared_claim_has_its_own_name_and_its_arms(decided):
    """The figures of the findings did not say what was subtracted from what."""
    judged, _ = drawn(decided)
    comparison = replace(judged[0].comparison, name="where the rank goes")
    ours, theirs = comparison.rows
    in_a_study = replace(comparison, rows=(replace(ours, arm="wide@2"), replace(theirs, arm="lora@2")))
    measured = replace(comparison, rows=None, label="wide", against="lora")
    claims = [replace(judged[0], comparison=each) for each in (comparison, in_a_study, measured)]
    axes = forest.draw([*claims, judged[1]], "accuracy", MARGIN).axes[0]
    names = [tick.get_text().replace("\n", " ") for tick in axes.get_yticklabels()]
    pairs = f"  (n = {judged[0].pairs})"
    assert names[0] == f"where the rank goes{pairs}"
    assert [" ".join(name.split()) for name in names[1:3]] == [
        " ".join(f"where the rank goes: {arms}{pairs}".split()) for arms in ("wide@2 − lora@2", "wide − lora")
    ]
    assert names[3].startswith(judged[1].comparison.label)
