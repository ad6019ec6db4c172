import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from analysis import claims, format_table, report, stats, verdicts
from analysis.load import FolderError, read_runs
from analysis.tables import kind_and_ranks, searches, tables
from analysis.verdicts import across_tasks, family, verdict_cells


def judge(out):
    (judged,) = family(tables(read_runs(out))).verdicts
    return {verdict.comparison.label: verdict for verdict in judged}


def pair(out, write_run, gains, method="adalora", base=0.7, **changes):
    """LoRA and `method`, one seed for each gain."""
    for seed, gain in enumerate(gains):
        write_run(out, "lora", seed, metric__test=base + 0.01 * seed, **changes)
        write_run(out, method, seed, metric__test=base + 0.01 * seed + gain, **changes)


CLEAR = [0.020, 0.022, 0.018, 0.021, 0.019, 0.023]


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_pairs_decide_nothing_however_clear(tmp_path, write_run, n):
    pair(tmp_path, write_run, CLEAR[:n])
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert verdict.text == "cannot be decided at this n"
    assert (verdict.pairs, verdict.interval, verdict.more) == (n, None, None)


def test_six_clear_pairs_decide(tmp_path, write_run):
    pair(tmp_path, write_run, CLEAR)
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert verdict.text == "adalora better"
    assert verdict.winner == "adalora"
    assert verdict.difference == pytest.approx(0.0205)
    found = reference.ttest_1samp(CLEAR, 0.0)
    assert verdict.p == pytest.approx(found.pvalue)
    assert verdict.interval == pytest.approx(found.confidence_interval(0.95))
    assert verdict.sign_flip == 2 / 2**6
    assert verdict.improvement.value == 1.0
    assert verdict.effect > 5
    assert verdict.detectable < 0.005
    shown = dict(zip(verdicts.HEADER, verdict_cells(verdict), strict=True))
    assert shown["comparison"] == "adalora 12 → 8 − lora 8"
    assert shown["difference"] == "+0.0205"
    assert (shown["p"], shown["sign flip"], shown["pairs"]) == ("< 0.001", "0.0312", "6")


def test_lora_can_be_the_better_one(tmp_path, write_run):
    pair(tmp_path, write_run, [-gain for gain in CLEAR], method="sora")
    assert judge(tmp_path)["sora 12 → 8"].text == "lora better"


def test_where_lower_is_better_the_sign_turns(tmp_path, write_run):
    pair(tmp_path, write_run, CLEAR, metric__higher_is_better=False)
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert verdict.text == "lora better"
    assert verdict.difference == pytest.approx(0.0205)
    assert verdict.improvement.value == 0.0


NOISE = [0.02, -0.015, 0.01, -0.02, 0.012, 0.005]


def test_noise_is_undecided_and_says_how_many_more_seeds(tmp_path, write_run):
    pair(tmp_path, write_run, NOISE)
    verdict = judge(tmp_path)["adalora 12 → 8"]
    needed = stats.pairs_needed(0.005, np.std(NOISE, ddof=1), 0.05)  # the margin: the observed 0.002 is smaller
    assert verdict.text == f"undecided (about {needed - 6} more seeds)"
    assert verdict.more == needed - 6 > 50


def test_of_a_declared_number_of_seeds_no_verdict_asks_for_more(tmp_path, write_run):
    pair(tmp_path, write_run, NOISE)
    (table,) = tables(read_runs(tmp_path))
    found = verdicts.against_reference(table)
    (open_,) = verdicts.judge(found, 0.005, True, planned=True)
    assert (open_.kind, open_.text, open_.more) == ("undecided", "undecided", None)
    (silent,) = verdicts.judge(found, 0.1, True, planned=True)
    assert silent.text == "undecided (no assay shows that this task responds)"


def test_a_large_difference_needs_fewer_seeds_than_the_margin(tmp_path, write_run):
    pair(tmp_path, write_run, [0.05, -0.01, 0.03, 0.0])
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert verdict.kind == "undecided"
    assert verdict.more == stats.pairs_needed(0.0175, verdict.estimate.spread, 0.05) - 4


def test_no_margin_off_the_unit_scale(tmp_path, write_run):
    pair(tmp_path, write_run, [0.001, -0.001, 0.002, 0.0, -0.002, 0.001], base=70.0)
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert verdict.margin is None
    assert verdict.kind in ("undecided", "impossible")


CLOSE = [0.001, -0.001, 0.002, 0.0, -0.002, 0.001]


def test_small_differences_are_equivalent_only_where_an_assay_shows(tmp_path, write_run):
    pair(tmp_path, write_run, CLOSE)
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert verdict.text == "undecided (no assay shows that this task responds)"
    for seed in range(6):  # LoRA at r = 2 is three points worse
        write_run(tmp_path, "lora", seed, 2, metric__test=0.67 + 0.01 * seed + 0.0005 * (seed % 2))
    found = family(tables(read_runs(tmp_path)))
    ((assay,),) = found.assays
    assert (assay.shows, assay.label) == (True, "lora 8 − lora 2")
    assert [verdict.text for verdict in found.verdicts[0]] == ["equivalent"]


@pytest.mark.parametrize(("gain", "noise"), [(0.0, 0.0005), (0.008, 0.0005), (0.0, 0.05), (0.02, 0.05)])
def test_an_assay_shows_only_beyond_three_margins(tmp_path, write_run, gain, noise):
    """More rank is surely worth nothing, surely something but less than three times the margin, or nobody knows."""
    pair(tmp_path, write_run, CLOSE)
    for seed in range(6):
        write_run(tmp_path, "lora", seed, 2, metric__test=0.7 - gain + 0.01 * seed + noise * (seed % 2 - 0.5))
    found = report.load(tmp_path)
    assert [assay.shows for assay in found.family.assays[0]] == [False]
    told = "whether this task responds to rank is undecided"
    if noise < 0.01:
        told = "this task does not respond to rank by three margins"
    assert told in report.assay_lines(found)[0]
    assert found.family.verdicts[0][0].kind == "undecided"


def test_pruning_the_most_important_first_is_an_assay(tmp_path, write_run):
    for seed in range(6):
        level = 0.7 + 0.01 * seed
        write_run(tmp_path, "lora", seed, metric__test=level)
        write_run(tmp_path, "adalora", seed, config={"allocator": "global_top"}, metric__test=level + CLOSE[seed])
        write_run(
            tmp_path, "adalora", seed, config={"allocator": "global_bottom"}, metric__test=level - 0.1 - CLOSE[seed]
        )
    found = family(tables(read_runs(tmp_path)))
    assert [(assay.label, assay.shows) for assay in found.assays[0]] == [
        ("adalora 12 → 8, allocator global_top − adalora 12 → 8, allocator global_bottom", True)
    ]
    assert {verdict.text for verdict in found.verdicts[0]} == {"equivalent", "lora better"}


def test_an_assay_has_the_sign_of_its_label_where_lower_is_better(tmp_path, write_run):
    """The claim read "r16 − r1 -0.0338" and the assay below it "lora 16 − lora 1 +0.0338"."""
    for seed in range(6):
        for rank, loss in ((2, 1.5), (8, 1.2)):
            level = loss + 0.001 * seed + 0.0001 * rank * (seed % 2)
            write_run(tmp_path, "lora", seed, rank, metric__test=level, metric__higher_is_better=False)
    found = report.load(tmp_path)
    ((assay,),) = found.family.assays
    assert (assay.label, assay.shows, assay.of_rank) == ("lora 8 − lora 2", True, True)
    assert assay.estimate.mean == pytest.approx(-0.3, abs=0.001)
    assert "lora 8 − lora 2 -0.29" in report.assay_lines(found)[0]


def test_only_more_rank_tells_whether_a_task_responds_to_rank(tmp_path, write_run):
    """Pruning the most important triplets first showed, and the page said that the task responds to rank."""
    for seed in range(6):
        level = 0.7 + 0.01 * seed
        write_run(tmp_path, "lora", seed, 2, metric__test=level - CLOSE[seed])
        write_run(tmp_path, "lora", seed, metric__test=level)
        for allocator, loss in (("global_top", 0.0), ("global_bottom", 0.1)):
            write_run(tmp_path, "adalora", seed, config={"allocator": allocator}, metric__test=level - loss)
    found = report.load(tmp_path)
    of_rank, control = found.family.assays[0]
    assert (of_rank.of_rank, of_rank.shows, control.of_rank, control.shows) == (True, False, False, True)
    first, second = report.assay_lines(found)
    assert "does not respond to rank" in first
    assert "nothing is called equivalent" not in first, "the control shows that a difference can be seen"
    assert "the assay shows" in second
    sure = dict(found.front.answers)["How sure is that?"]
    assert "responds to rank" not in sure
    assert "The positive control shows a difference; that more rank helps was not shown." in sure


def test_a_few_equal_differences_decide_nothing(tmp_path, write_run):
    """Three times +0.01 on a hundred test rows had p = 0 at any correction."""
    pair(tmp_path, write_run, [0.01] * 3)
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert (verdict.text, verdict.interval, verdict.p) == ("cannot be decided at this n", None, 1.0)
    pair(tmp_path / "more", write_run, [0.01] * 6)
    assert judge(tmp_path / "more")["adalora 12 → 8"].text == "adalora better"


def comparison(label, differences):
    scores = np.array(differences, dtype=np.float64)
    return verdicts.Comparison(label, "lora 8", (label, "lora"), scores, np.zeros_like(scores))


def test_a_clear_difference_below_the_margin_is_equivalent_with_an_assay_and_better_without():
    close = [comparison("a", [0.001, 0.002, 0.001, 0.003, 0.002, 0.001])]
    assert [v.text for v in verdicts.judge(close, 0.005, True, responds=True)] == ["equivalent"]
    assert [v.text for v in verdicts.judge(close, 0.005, True)] == ["a better"]


def test_all_comparisons_of_a_page_share_the_level(tmp_path, write_run):
    """Clear enough alone (p .036), and not among four comparisons on two tasks."""
    mixed = [0.020, 0.022, -0.004, 0.021, -0.001, 0.023]
    pair(tmp_path / "a", write_run, mixed)
    assert judge(tmp_path / "a")["adalora 12 → 8"].kind == "better"
    for task in ("cola", "sst2"):
        pair(tmp_path / "b" / task, write_run, mixed, config={"task": task}, task=task)
        for seed in range(6):
            write_run(tmp_path / "b" / task, "sora", seed, config={"task": task}, task=task,
                      metric__test=0.6 + 0.03 * seed)  # fmt: skip
    found = family(tables(read_runs(tmp_path / "b")))
    for judged in found.verdicts:
        verdict = judged[0]
        assert verdict.level == 0.05 / 4
        assert verdict.p == pytest.approx(4 * reference.ttest_1samp(mixed, 0.0).pvalue)
        assert verdict.kind == "undecided"
        assert verdict.interval == pytest.approx(reference.ttest_1samp(mixed, 0.0).confidence_interval(1 - 0.05 / 4))


@given(
    st.lists(st.floats(-0.05, 0.05).map(lambda v: round(v, 4)), min_size=0, max_size=9),
    st.sampled_from([None, 0.005, 0.02]),
    st.integers(1, 15),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_no_row_shows_an_interval_that_contradicts_its_verdict(d, margin, size, responds, higher):
    (verdict,) = verdicts.judge([comparison("a", d)], margin, higher, 0.05 / size, responds)
    if verdict.interval is None:
        assert verdict.kind == "impossible"
        return
    low, high = verdict.interval
    excludes, within = low > 0 or high < 0, margin is not None and -margin < low <= high < margin
    assert (verdict.kind == "equivalent") == (within and responds)
    assert (verdict.kind == "better") == (excludes and not (within and responds))
    if abs(verdict.p - 0.05) > 1e-9:
        assert excludes == (verdict.p < 0.05)
    if verdict.kind == "better":
        assert verdict.winner == ("a" if (low > 0) == higher else "lora")


def write_methods(out, write_run, differences, **changes):
    """LoRA and a method for each list of differences, paired by seed."""
    for seed in range(len(next(iter(differences.values())))):
        write_run(out, "lora", seed, metric__test=0.7 + 0.01 * seed)
        for method, values in differences.items():
            write_run(out, method, seed, metric__test=0.7 + 0.01 * seed + values[seed], **changes)


FIVE = {"adalora": [0.010, 0.022, 0.004, 0.018, 0.006], "sora": [0.002, -0.004, 0.003, 0.0, -0.001],
        "eva": [-0.003, 0.004, 0.001, -0.002, 0.002], "dylora": [0.001, 0.0, -0.004, 0.003, 0.001]}  # fmt: skip


def test_five_seeds_pool_the_spread_of_all_methods(tmp_path, write_run):
    write_methods(tmp_path, write_run, FIVE)
    found = judge(tmp_path)
    scores = np.array([np.zeros(5), *FIVE.values()]).T + 0.01 * np.arange(5)[:, None]
    spread, freedom = stats.block_spread(scores)
    verdict = found["adalora 12 → 8"]
    assert (verdict.pooled, verdict.estimate.freedom) == (True, freedom) == (True, 16)
    own = {method: float(np.std(values, ddof=1)) for method, values in FIVE.items()}
    assert own["sora"] < spread < own["adalora"]
    assert verdict.estimate.spread == pytest.approx(own["adalora"])
    assert found["sora 12 → 8"].estimate.spread == pytest.approx(spread)
    assert verdict.text == "adalora better"
    alone = reference.ttest_1samp(FIVE["adalora"], 0.0)
    assert alone.pvalue > 0.05 / 4  # by its own spread it would not have been decided


def test_six_seeds_and_missing_seeds_use_their_own_spread(tmp_path, write_run):
    write_methods(tmp_path / "a", write_run, {method: [*values, 0.01] for method, values in FIVE.items()})
    assert {verdict.pooled for verdict in judge(tmp_path / "a").values()} == {False}
    pair(tmp_path / "b", write_run, CLEAR[:5])
    assert judge(tmp_path / "b")["adalora 12 → 8"].pooled is False  # two methods have nothing to pool


MAJORITY = 0.5


def write_collapses(out, write_run, gone=3, seeds=8, more=0):
    """AdaLoRA half a point above LoRA in every run that learns; the first `gone` end at the majority class, and `more`
    further ones diverge."""
    for seed in range(seeds + more):
        level = 0.7 + 0.002 * (seed % 3)
        write_run(out, "lora", seed, metric__test=level, metric__majority=MAJORITY)
        if seed < seeds:
            value = MAJORITY if seed < gone else level + 0.005 + 0.0005 * (seed % 2)
            write_run(out, "adalora", seed, metric__test=value, metric__majority=MAJORITY)
        else:
            folder = write_run(out, "adalora", seed)
            (folder / "summary.json").unlink()
            (folder / "status.json").write_text('{"state": "diverged", "error": "The loss is NaN."}')


def test_collapse_is_counted_and_kept_apart_from_the_difference(tmp_path, write_run):
    write_collapses(tmp_path, write_run)
    verdict = judge(tmp_path)["adalora 12 → 8"]
    ours, theirs = verdict.comparison.rows
    assert (ours.failures, theirs.failures) == ((3, 8), (0, 8))
    assert verdict.kind == "undecided"  # over all seeds the difference is large and uncertain
    assert verdict.difference < -0.05
    assert verdict.learned.mean == pytest.approx(0.0053, abs=1e-4)
    assert verdict.learned.pairs == 5
    cells = dict(zip(verdicts.COLLAPSE_HEADER, verdicts.collapse_cells(verdict), strict=True))
    assert cells["collapsed"] == "3 of 8 against 0 of 8"
    assert cells["Fisher's p"] == "0.2"
    assert cells["difference where both learned"].startswith("+0.0053 [+")


@pytest.mark.parametrize(("gone", "text"), [(8, "lora better"), (6, "cannot be decided at this n")])
def test_where_hardly_a_pair_learned_only_collapse_decides(tmp_path, write_run, gone, text):
    """Eight of eight against none (p < .001), and two pairs left over: their difference says nothing."""
    write_collapses(tmp_path, write_run, gone=gone)
    if gone == 6:  # LoRA collapses in as many runs, in others
        for seed in range(6):
            (folder,) = tmp_path.glob(f"lora-*-s{seed}")
            summary = json.loads((folder / "summary.json").read_text())
            summary["metric"]["test"] = MAJORITY if seed % 2 else 0.7
            (folder / "summary.json").write_text(json.dumps(summary))
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert (verdict.text, verdict.interval) == (text, None)
    assert verdict.difference < -0.05
    assert verdict.p == pytest.approx(stats.fisher_p((8, 8), (0, 8)) if gone == 8 else 1.0)


def test_a_run_that_diverged_counts_as_collapsed(tmp_path, write_run):
    write_collapses(tmp_path, write_run, gone=0, more=4)
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert verdict.comparison.rows[0].failures == (4, 12)
    assert verdict.pairs == 8
    assert verdicts.collapse_cells(verdict)[1] == "4 of 12 against 0 of 12"
    assert "4 of 12 against 0 of 12" in report.as_text(report.load(tmp_path))


def test_where_all_learned_there_is_no_table_of_collapse(tmp_path, write_run):
    write_collapses(tmp_path, write_run, gone=0)
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert (verdict.learned, verdicts.collapse_cells(verdict)) == (None, [])


def test_collapsed_runs_do_not_enter_a_pooled_spread(tmp_path, write_run):
    write_methods(tmp_path, write_run, FIVE)
    for seed in range(5):
        value = MAJORITY if seed == 0 else 0.7
        write_run(tmp_path, "para", seed, metric__test=value, metric__majority=MAJORITY)
    assert {verdict.pooled for verdict in judge(tmp_path).values()} == {False}


def test_the_last_checkpoint_decides_and_the_best_is_exploratory(tmp_path, write_run):
    for seed, gain in enumerate(CLEAR):
        write_run(tmp_path, "lora", seed, metric__test=0.9, metric__test_last=0.7 + 0.01 * seed)
        write_run(tmp_path, "adalora", seed, metric__test=0.8, metric__test_last=0.7 + 0.01 * seed + gain)
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert (verdict.text, verdict.difference) == ("adalora better", pytest.approx(0.0205))
    (table,) = tables(read_runs(tmp_path))
    titles = {grid.title: grid for grid in format_table.further_tables(table, [verdict])}
    (best,) = [grid for title, grid in titles.items() if "other checkpoint (best on dev)" in title]
    assert best.rows[0][1] == "-0.1000"
    assert "verdict" not in best.header
    (judged_by_best,) = family(tables(read_runs(tmp_path, "best"))).verdicts
    assert judged_by_best[0].text == "lora better"


def test_only_common_seeds_are_paired(tmp_path, write_run):
    pair(tmp_path, write_run, CLEAR)
    write_run(tmp_path, "lora", 7, metric__test=0.1)
    write_run(tmp_path, "adalora", 8, metric__test=0.9)
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert (verdict.pairs, verdict.difference) == (6, pytest.approx(0.0205))


def test_no_common_seed_is_no_comparison(tmp_path, write_run):
    write_run(tmp_path, "lora", 0)
    write_run(tmp_path, "full", 1)
    assert judge(tmp_path) == {}


def test_without_lora_the_first_row_is_the_reference(tmp_path, write_run):
    for seed, gain in enumerate(CLEAR):
        write_run(tmp_path, "full", seed, metric__test=0.7 + 0.01 * seed)
        write_run(tmp_path, "adalora", seed, metric__test=0.7 + 0.01 * seed + gain)
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert (verdict.comparison.against, verdict.text) == ("full", "adalora better")


def test_the_trials_of_a_search_are_not_comparisons_of_their_own(tmp_path, write_run):
    pair(tmp_path, write_run, CLEAR)
    for seed in range(6):
        for lr, last in ((0.02, 0.1), (0.05, 0.2)):
            write_run(tmp_path, "adalora", seed, config={"train.lr": lr}, metric__last=last, metric__test=0.5)
    (verdict,) = judge(tmp_path).values()
    assert verdict.comparison.label == "adalora 12 → 8, lr 0.01"
    assert (verdict.text, verdict.level) == ("adalora better", 0.05)


def test_another_setting_is_a_comparison_of_its_own(tmp_path, write_run):
    pair(tmp_path, write_run, CLEAR)
    for seed in range(6):
        write_run(tmp_path, "adalora", seed, config={"train.max_grad_norm": 0.5})
    assert len(judge(tmp_path)) == 2


PIECES = ("adarank.allocators.global_top", "adarank.allocators.uniform")


def write_arms(out, write_run, task="cola", seeds=8, gain=0.03, ranks=(8,), rates=(0.01,), arms=False, steps=100):
    """LoRA, the uniform control half of `gain` above it, AdaLoRA `gain` above it; arms: as a study names them."""
    for seed in range(seeds):
        for rank in ranks:
            level = 0.6 + 0.01 * seed
            named = {"arm": f"lora@{rank}"} if arms else {}
            config = {"task": task, "train.steps": steps}
            write_run(out, "lora", seed, rank, config=config, task=task, metric__test=level, **named)
            for place, target in enumerate(PIECES):
                named = {"arm": f"{('adalora', 'uniform')[place]}@{rank}"} if arms else {}
                for rate in rates:
                    config = {**config, "allocator._target_": target, "train.lr": rate}
                    value = level + (gain if place == 0 else gain / 2) + 0.0003 * (seed % 3)
                    write_run(out, "adalora", seed, rank, config=config, task=task, metric__test=value,
                              metric__last=value + (0.01 if rate == 0.01 else 0), **named)  # fmt: skip
    return out


def test_adaptive_against_the_same_rank_everywhere_is_exploratory(tmp_path, write_run):
    (table,) = tables(read_runs(write_arms(tmp_path, write_run, ranks=(2, 8))))
    compared = verdicts.against_uniform(table)
    assert [c.label for c in compared] == [f"adalora {i} → {r}, allocator global_top" for i, r in ((3, 2), (12, 8))]
    assert [c.against for c in compared] == [f"adalora {i} → {r}, allocator uniform" for i, r in ((3, 2), (12, 8))]
    assert [c.differences.mean() for c in compared] == pytest.approx([0.015, 0.015])
    (grid,) = [g for g in format_table.further_tables(table, []) if g.title.startswith(verdicts.UNIFORM_TITLE)]
    assert len(grid.rows) == 2
    assert "verdict" not in grid.header


def test_a_control_differs_in_the_allocator_alone(tmp_path, write_run):
    """AdaLoRA without its penalty was compared with the uniform control that had one."""
    write_arms(tmp_path, write_run, gain=0.03)
    for seed in range(4):
        config = {"task": "cola", "allocator._target_": PIECES[0], "penalty._target_": "none", "train.lr": 0.02}
        write_run(tmp_path, "adalora", seed, 8, config=config, task="cola", metric__test=0.9 + 0.001 * seed)
    (table,) = tables(read_runs(tmp_path))
    assert len(table.tuned) == 4
    (comparison,) = verdicts.against_uniform(table)
    assert comparison.differences.mean() == pytest.approx(0.015)


def test_of_arms_that_differ_in_the_rate_the_one_at_the_controls_is_compared(tmp_path, write_run):
    """AdaLoRA at LoRA's rate, which hardly learns, was compared with the uniform control at AdaLoRA's own."""
    write_arms(tmp_path, write_run, gain=0.03, arms=True)
    for seed in range(4):
        config = {"task": "cola", "allocator._target_": PIECES[0], "train.lr": 0.002}
        value = 0.3 + 0.001 * seed
        write_run(tmp_path, "adalora", seed, 8, config=config, task="cola", metric__test=value, arm="adalora_slow@8")
    (table,) = tables(read_runs(tmp_path))
    assert {row.arm for row in table.tuned} == {"lora@8", "adalora@8", "uniform@8", "adalora_slow@8"}
    (comparison,) = verdicts.against_uniform(table)
    assert comparison.rows[0].arm == "adalora@8"
    others = tuple(row for row in table.rows if row.arm != "adalora@8")
    (comparison,) = verdicts.against_uniform(replace(table, rows=others))
    assert comparison.rows[0].arm == "adalora_slow@8", "there is no arm at the control's rate"


def test_lora_twice_at_one_rank_is_no_assay(tmp_path, write_run):
    """LoRA at two scales showed "the response to rank"."""
    for seed in range(6):
        for alpha, gain in ((1.0, 0.0), (2.0, 0.1)):
            config = {"adapter.alpha": alpha}
            write_run(tmp_path, "lora", seed, 2, config=config, metric__test=0.6 + gain + 0.001 * (seed % 3))
    found = verdicts.family(tables(read_runs(tmp_path)))
    assert found.assays == [[]]


def test_without_a_control_there_is_nothing_to_say(quickstart):
    (table,) = tables(read_runs(quickstart))
    assert verdicts.against_uniform(table) == []
    assert set(table.kinds.values()) == {"full", "lora", "adalora"}


def test_a_verdict_on_lora_names_the_kind_that_is_better(tmp_path, write_run):
    assert {v.text for v in judge(write_arms(tmp_path, write_run)).values()} == {
        "adalora, allocator global_top better",
        "adalora, allocator uniform better",
    }


def test_each_has_a_search_of_its_own(tmp_path, write_run):
    (table,) = tables(read_runs(write_arms(tmp_path, write_run, seeds=2, rates=(0.005, 0.01))))
    found = {search.name: (sorted(search.tried), len(search.chosen.scores)) for search in searches(table)}
    assert found == {
        "lora 8": ([0.002], 2),
        "adalora 12 → 8, allocator global_top": ([0.005, 0.01], 2),
        "adalora 12 → 8, allocator uniform": ([0.005, 0.01], 2),
    }
    assert [kind_and_ranks(table, row) for row in table.tuned] == list(found)


CLAIMS = {
    "seeds": 8,
    "margins": {"cola": 0.004},
    "contrasts": [
        {"name": "where the rank goes", "of": "adalora", "against": "uniform", "tasks": ["cola"], "ranks": [2, 8]},
        {"name": "not run", "of": "adalora", "against": "full", "tasks": ["cola"], "ranks": [2]},
    ],
    "assay": {"of": "lora@8", "against": "lora@2"},
}


def test_declared_claims_are_judged_and_nothing_else(tmp_path, write_run):
    claims.write(tmp_path, claims.read(CLAIMS), "study", 0)
    write_arms(tmp_path, write_run, ranks=(2, 8), arms=True)
    found = report.load(tmp_path)
    (judged,) = found.family.verdicts
    assert [(v.comparison.name, v.text, v.level, v.margin) for v in judged] == [
        (f"where the rank goes, r = {rank}", "adalora, allocator global_top better", 0.05 / 3, 0.004) for rank in (2, 8)
    ]
    assert [claim.contrast.name for claim in found.family.missing] == ["not run"]
    assert [(assay.label, assay.shows) for assay in found.family.assays[0]] == [("lora 8 − lora 2", False)]
    text = report.as_text(found)
    assert "by the study study (hash" in text
    assert "Declared, but without a finished run of both arms: not run on cola at budget 2." in text
    assert "this task does not respond to rank" in text
    assert f"Against LoRA ({format_table.EXPLORATORY})" in " ".join(text.split())


def test_a_claim_is_judged_when_its_seeds_are_run_or_by_its_look(tmp_path, write_run):
    """Eight seeds of ten planned: no verdict and no interval; after a look at six, that look's, at its level."""
    declared = claims.write(tmp_path, claims.read({**CLAIMS, "seeds": 10, "looks": [6]}), "study", 0)
    write_arms(tmp_path, write_run, ranks=(2, 8), arms=True)
    judged = report.load(tmp_path).family.verdicts[0]
    assert {(v.text, v.interval) for v in judged} == {("undecided (8 of 10 planned seeds have run)", None)}
    rows = [{"of": f"adalora@{r}", "against": f"uniform@{r}", "seeds": 6, "level": 0.001} for r in (2, 8)]
    content = {"hash": declared.hash, "tasks": {"cola": [{"seeds": 6, "arms": [], "claims": rows}]}}
    (tmp_path / "looks.json").write_text(json.dumps(content))
    judged = report.load(tmp_path).family.verdicts[0]
    assert {(v.pairs, v.level, v.kind) for v in judged} == {(6, 0.001, "better")}
    (tmp_path / "looks.json").write_text(json.dumps({**content, "hash": "of earlier claims"}))
    assert {v.kind for v in report.load(tmp_path).family.verdicts[0]} == {"undecided"}
    (tmp_path / "looks.json").write_text("[]")
    with pytest.raises(FolderError, match=r"looks\.json cannot be used"):
        report.load(tmp_path)


def test_seeds_beyond_those_planned_do_not_count(tmp_path, write_run):
    """Six planned seeds were undecided; six more runs in the folder made the claim "better", still as declared."""
    claims.write(tmp_path, claims.read({**CLAIMS, "seeds": 6}), "study", 0)
    write_arms(tmp_path, write_run, ranks=(2, 8), arms=True)
    found = report.load(tmp_path).family
    assert {verdict.pairs for verdict in found.verdicts[0]} == {6}
    assert {assay.estimate.pairs for assay in found.assays[0]} == {6}


def test_the_assay_is_judged_when_its_seeds_are_run_or_by_its_look(tmp_path, write_run):
    declared = claims.write(tmp_path, claims.read({**CLAIMS, "seeds": 10, "looks": [6]}), "study", 0)
    write_arms(tmp_path, write_run, ranks=(2, 8), arms=True)
    ((assay,),) = report.load(tmp_path).family.assays
    assert (assay.interval, assay.shows, assay.falls_short) == (None, False, False)
    row = {"name": claims.ASSAY, "of": "lora@8", "against": "lora@2", "seeds": 6, "level": 0.01}
    content = {"hash": declared.hash, "tasks": {"cola": [{"seeds": 6, "arms": [], "claims": [row]}]}}
    (tmp_path / "looks.json").write_text(json.dumps(content))
    ((assay,),) = report.load(tmp_path).family.assays
    assert assay.estimate.pairs == 6
    assert assay.interval == pytest.approx(stats.interval(assay.estimate, 0.01))


def test_the_assay_s_look_is_not_that_of_a_claim_on_the_same_arms(tmp_path, write_run):
    """The assay's level, which is not divided by the number of claims, replaced the claim's."""
    declared = claims.write(tmp_path, claims.read({**CLAIMS, "seeds": 10, "looks": [6]}), "study", 0)
    write_arms(tmp_path, write_run, ranks=(2, 8), arms=True)
    arms = {"of": "adalora@2", "against": "uniform@2", "seeds": 6}
    rows = [{"name": "where the rank goes", **arms, "level": 0.001}, {"name": claims.ASSAY, **arms, "level": 0.05}]
    content = {"hash": declared.hash, "tasks": {"cola": [{"seeds": 6, "arms": [], "claims": rows}]}}
    (tmp_path / "looks.json").write_text(json.dumps(content))
    assert report.load(tmp_path).family.verdicts[0][0].level == 0.001
    contrast = {**CLAIMS["contrasts"][0], "name": claims.ASSAY}
    with pytest.raises(claims.ClaimsError, match=r"names other than that of the assay \(got assay\)"):
        claims.read({**CLAIMS, "contrasts": [contrast]})


def test_a_claim_is_judged_at_the_chosen_rate_or_refused(tmp_path, write_run):
    """Runs that were left at an earlier rate, worse by .05, were judged in place of those at the chosen one."""
    claims.write(tmp_path, claims.read(CLAIMS), "study", 0)
    write_arms(tmp_path, write_run, ranks=(2, 8), arms=True)
    for seed in range(8):
        config = {"task": "cola", "allocator._target_": PIECES[0], "train.lr": 0.02}
        value = 0.55 + 0.01 * seed
        write_run(tmp_path, "adalora", seed, 2, config=config, task="cola", metric__test=value, arm="adalora@2")
    with pytest.raises(
        FolderError, match=r"Runs of arm adalora@2 must differ only in their seeds \(got adalora-.* and"
    ):
        report.load(tmp_path)
    (tmp_path / "rates.json").write_text(json.dumps({"rotten_tomatoes": {}, "cola": {"adalora@2": {"rate": 0.01}}}))
    judged = report.load(tmp_path).family.verdicts[0]
    assert [v.text for v in judged] == ["adalora, allocator global_top better"] * 2


def test_two_tasks_of_a_study_on_the_same_data_are_judged_apart(tmp_path, write_run):
    """The claim on the small task was judged by the runs of the large one."""
    contrast = {**CLAIMS["contrasts"][0], "tasks": ["small", "large"], "ranks": [8]}
    asked = {**CLAIMS, "contrasts": [contrast], "margins": {"small": 0.004, "large": 0.002}, "family": "table"}
    claims.write(tmp_path, claims.read(asked), "study", 0)
    for task, gain, steps in (("small", 0.03, 100), ("large", -0.03, 200)):
        write_arms(tmp_path / task, write_run, gain=gain, arms=True, steps=steps)
    found = report.load(tmp_path)
    judged = {table.task: (v.text, v.margin) for table, (v,) in zip(found.tables, found.family.verdicts, strict=True)}
    assert judged == {
        "small": ("adalora, allocator global_top better", 0.004),
        "large": ("adalora, allocator uniform better", 0.002),
    }
    assert found.family.missing == []
    text = " ".join(report.as_text(found).split())
    assert "The intervals of each task hold together with 95% confidence" in text
    assert "all of this table hold together in 95%" in text


def test_a_corrected_p_is_multiplied_by_the_number_of_claims_whatever_alpha_is(tmp_path, write_run):
    claims.write(tmp_path, claims.read({**CLAIMS, "alpha": 0.1}), "study", 0)
    for seed in range(8):
        for target, arm, more in zip(
            PIECES, ("adalora@2", "uniform@2"), (0.01 * (-1) ** (seed % 4 == 0), 0.0), strict=True
        ):
            config = {"task": "cola", "allocator._target_": target}
            write_run(tmp_path, "adalora", seed, 2, config=config, task="cola", metric__test=0.7 + more, arm=arm)
    (verdict,) = report.load(tmp_path).family.verdicts[0]
    assert 0.01 < verdict.p < 0.9
    assert verdict.p == pytest.approx(3 * stats.p_value(verdict.estimate))


def test_a_rate_that_diverged_or_has_one_lucky_seed_is_not_the_tuned_one(tmp_path, write_run):
    for seed in range(4):
        write_run(tmp_path, "lora", seed, metric__last=0.8)
        write_run(tmp_path, "adalora", seed, metric__last=0.8)
        folder = write_run(tmp_path, "adalora", seed, config={"train.lr": 0.1}, metric__last=0.9)
        if seed:
            (folder / "status.json").write_text(json.dumps({"state": "diverged"}))
    write_run(tmp_path, "adalora", 0, config={"train.lr": 0.03}, metric__last=0.95)
    (table,) = tables(read_runs(tmp_path))
    assert {row.method: row.settings["train.lr"] for row in table.tuned} == {"lora": "0.002", "adalora": "0.01"}
    assert {search.chosen for search in searches(table)} == set(table.tuned)


def test_pairs_beside_diverged_runs_are_those_where_both_learned(tmp_path, write_run):
    pair(tmp_path, write_run, CLEAR)
    folder = write_run(tmp_path, "adalora", 99)
    (folder / "status.json").write_text(json.dumps({"state": "diverged"}))
    (verdict,) = judge(tmp_path).values()
    cells = dict(zip(verdicts.COLLAPSE_HEADER, verdicts.collapse_cells(verdict), strict=True))
    assert cells["pairs where both learned"] == str(verdict.pairs)
    assert cells["difference where both learned"] == cells["difference over all"]


def test_rates_at_the_edge_of_a_study_s_grid_are_told_first(tmp_path, write_run):
    pair(tmp_path, write_run, CLEAR)
    rates = {"cola": {"lora@8": {"rate": 0.005, "at_the_edge": True}, "full": {"rate": 1e-4, "at_the_edge": False}}}
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    text = report.as_text(report.load(tmp_path))
    assert "cola, lora@8: the best learning rate, 0.005, lies at the edge of its grid." in text
    assert "cola, full" not in text


def test_changed_claims_are_shown(tmp_path, write_run):
    claims.write(tmp_path, claims.read(CLAIMS), "study", 0)
    claims.write(tmp_path, claims.read({**CLAIMS, "margins": {"cola": 0.02}}), "study", 5)
    write_arms(tmp_path, write_run, ranks=(2,), arms=True)
    found = report.load(tmp_path)
    assert found.family.verdicts[0][0].margin == 0.02
    assert "The claims were changed" in report.as_text(found)
    assert "after 5 runs" in report.as_text(found)


def test_damaged_claims_are_refused_in_a_sentence(tmp_path, write_run, capsys):
    pair(tmp_path, write_run, CLEAR)
    (tmp_path / "claims.json").write_text("{")
    assert report.main([str(tmp_path)]) == 2
    assert "claims.json cannot be used" in capsys.readouterr().err


def write_tasks(out, write_run, gains, seeds=6, **changes):
    generator = np.random.default_rng(0)
    for place, (task, gain) in enumerate(gains.items()):
        for seed in range(seeds):
            level = 0.4 + 0.1 * place + 0.01 * seed
            write_run(out, "lora", seed, config={"task": task}, task=task, metric__test=level, **changes)
            better = level + gain + float(generator.normal(0, 0.01))
            write_run(out, "adalora", seed, config={"task": task}, task=task, metric__test=better, **changes)


def test_over_tasks_standardised_differences_are_averaged(tmp_path, write_run):
    write_tasks(tmp_path, write_run, {"cola": 0.02, "sst2": 0.02, "rte": -0.03})
    found = report.load(tmp_path)
    (over,) = across_tasks(found.tables)
    assert over.title == "minilm_l6, targets all, test, over 3 tasks: cola, rte, sst2"
    ((name, effect, each, units, middle),) = over.rows
    assert (name, middle) == ("adalora 12 → 8 − LoRA", None)
    assert units.shape == (18,)
    by_task = {table.task: judged[0].effect for table, judged in zip(found.tables, found.family.verdicts, strict=True)}
    assert each == pytest.approx([by_task[task] for task in over.tasks])
    assert effect.i2 > 0.5
    assert "over 3 tasks" in report.as_text(found)


def test_over_tasks_lower_is_better_turns_the_sign(tmp_path, write_run):
    write_tasks(tmp_path, write_run, {"cola": 0.02, "e2e": 0.02}, metric__higher_is_better=False)
    (row,) = across_tasks(tables(read_runs(tmp_path)))[0].rows
    assert all(g < 0 for g in row.g)
    assert row.pairs.mean() < 0


def test_five_tasks_have_an_interquartile_mean(tmp_path, write_run):
    write_tasks(tmp_path, write_run, dict.fromkeys(("cola", "sst2", "rte", "mrpc", "wnli"), 0.02), seeds=4)
    found = tables(read_runs(tmp_path))
    (row,) = across_tasks(found)[0].rows
    value, (low, high) = row.middle
    assert row.pairs.size == 20
    assert value == pytest.approx(reference.trim_mean(row.pairs, 0.25))
    assert low < value < high
    (grid,) = format_table.across_tables(found)
    assert "interquartile mean, in SDs" in grid.header


def test_one_task_is_not_averaged(tmp_path, write_run):
    write_tasks(tmp_path, write_run, {"cola": 0.02})
    assert across_tasks(tables(read_runs(tmp_path))) == []
