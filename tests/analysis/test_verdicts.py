import numpy as np
import pytest
from scipy import stats as reference

from analysis import format_table, report, stats, verdicts
from analysis.load import read_runs
from analysis.tables import kind_and_ranks, searches, tables
from analysis.verdicts import across_tasks, against_lora, verdict_cells


def judge(out):
    (table,) = tables(read_runs(out))
    return {verdict.comparison.label: verdict for verdict in against_lora(table)}


def pair(out, write_run, gains, method="adalora", base=0.7, **changes):
    """LoRA and `method`, one seed for each gain."""
    for seed, gain in enumerate(gains):
        write_run(out, "lora", seed, metric__test=base + 0.01 * seed, **changes)
        write_run(out, method, seed, metric__test=base + 0.01 * seed + gain, **changes)


CLEAR = [0.020, 0.022, 0.018, 0.021, 0.019, 0.023]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_seeds_decide_nothing_however_clear(tmp_path, write_run, n):
    pair(tmp_path, write_run, CLEAR[:n])
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert verdict.text == f"cannot be decided with {n} pairs"
    assert verdict.attainable == 2 / 2**n
    assert verdict.pairs == n


def test_identical_scores_of_few_seeds_are_not_called_equivalent(tmp_path, write_run):
    pair(tmp_path, write_run, [0.0, 0.0, 0.0])
    assert judge(tmp_path)["adalora 12 → 8"].text == "cannot be decided with 3 pairs"


def test_six_clear_pairs_decide(tmp_path, write_run):
    pair(tmp_path, write_run, CLEAR)
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert verdict.text == "adalora better"
    assert verdict.difference == pytest.approx(0.0205)
    assert verdict.p == verdict.holm == verdict.attainable == verdict.wilcoxon == 2 / 2**6
    low, high = verdict.interval
    assert 0.018 < low < 0.0205 < high < 0.023
    u = reference.mannwhitneyu(verdict.comparison.scores[:, 0], verdict.comparison.others[:, 0]).statistic
    assert verdict.improvement == pytest.approx(u / 36)
    assert verdict.equal == pytest.approx(reference.ttest_1samp(CLEAR, 0.005, alternative="less").pvalue)
    assert verdict.effect > 5
    assert verdict.detectable < 0.005
    shown = dict(zip(verdicts.HEADER, verdict_cells(verdict), strict=True))
    assert shown["comparison"] == "adalora 12 → 8 − lora 8"
    assert shown["difference"] == "+0.0205"
    assert (shown["p (Holm)"], shown["attainable"], shown["pairs"]) == ("0.0312", "0.0312", "6")


def test_lora_can_be_the_better_one(tmp_path, write_run):
    pair(tmp_path, write_run, [-gain for gain in CLEAR], method="sora")
    assert judge(tmp_path)["sora 12 → 8"].text == "lora better"


def test_where_lower_is_better_the_sign_turns_and_nothing_is_equivalent(tmp_path, write_run):
    pair(tmp_path / "a", write_run, CLEAR, metric__higher_is_better=False)
    verdict = judge(tmp_path / "a")["adalora 12 → 8"]
    assert verdict.text == "lora better"
    assert verdict.difference == pytest.approx(0.0205)
    scores = verdict.comparison.scores, verdict.comparison.others
    assert verdict.improvement == stats.probability_of_improvement(*reversed(scores)) < 0.5
    pair(tmp_path / "b", write_run, [0.0] * 6, metric__higher_is_better=False)
    assert judge(tmp_path / "b")["adalora 12 → 8"].text == "cannot be decided with 6 pairs"


def test_small_differences_are_equivalent_by_tost(tmp_path, write_run):
    pair(tmp_path, write_run, [0.001, -0.001, 0.002, 0.0, -0.002, 0.001])
    assert judge(tmp_path)["adalora 12 → 8"].text == "equivalent"


def test_noise_is_neither_better_nor_equivalent(tmp_path, write_run):
    pair(tmp_path, write_run, [0.02, -0.015, 0.01, -0.02, 0.012, 0.005])
    assert judge(tmp_path)["adalora 12 → 8"].text == "cannot be decided with 6 pairs"


def test_no_margin_off_the_unit_scale(tmp_path, write_run):
    pair(tmp_path, write_run, [0.001, -0.001, 0.002, 0.0, -0.002, 0.001], base=70.0)
    assert judge(tmp_path)["adalora 12 → 8"].text == "cannot be decided with 6 pairs"


def test_holm_counts_all_comparisons_of_the_table(tmp_path, write_run):
    pair(tmp_path, write_run, CLEAR)
    for seed in range(6):  # with two comparisons 2/2**6 · 2 is above 5%
        write_run(tmp_path, "sora", seed, metric__test=0.6 + 0.03 * seed)
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert verdict.text == "cannot be decided with 6 pairs"
    assert (verdict.p, verdict.holm, verdict.attainable) == (0.03125, 0.0625, 0.0625)
    assert verdict_cells(verdict)[4] == "0.0312 (0.0625)"


def comparison(label, differences):
    scores = np.array(differences)[:, None]
    return verdicts.Comparison(label, "lora 8", (label, "lora"), scores, np.zeros_like(scores))


def test_equivalence_and_what_could_be_detected_are_corrected_for_all_comparisons():
    """Eight pairs, close enough to be equivalent alone (p 0.03) and not among three."""
    close = [0.0065, -0.002, 0.004, 0.0, 0.0055, -0.001, 0.0045, 0.0005]
    p = max(
        reference.ttest_1samp(close, bound, alternative=way).pvalue
        for bound, way in ((-0.005, "greater"), (0.005, "less"))
    )
    assert 0.05 / 3 < p < 0.05
    (alone,) = verdicts.judge([comparison("a", close)], 0.005, higher_is_better=True)
    assert (alone.text, alone.equal) == ("equivalent", pytest.approx(p))
    assert alone.detectable == stats.minimum_detectable(close, 0.05)
    among = verdicts.judge([comparison(label, close) for label in "abc"], 0.005, higher_is_better=True)
    for verdict in among:
        assert verdict.attainable < 0.05  # it is the correction that decides nothing
        assert (verdict.text, verdict.equal) == ("cannot be decided with 8 pairs", pytest.approx(3 * p))
        assert verdict.detectable == stats.minimum_detectable(close, 0.05 / 3) > alone.detectable


def test_a_difference_is_decided_by_its_corrected_p():
    """Eight pairs, two of them against it: p = 8/2**8."""
    mixed = [0.020, 0.022, 0.018, 0.021, 0.019, 0.023, -0.001, -0.002]
    (alone,) = verdicts.judge([comparison("a", mixed)], None, higher_is_better=True)
    assert (alone.text, alone.holm, alone.equal) == ("a better", 8 / 2**8, None)
    for verdict in verdicts.judge([comparison(label, mixed) for label in "abc"], None, higher_is_better=True):
        assert verdict.attainable < 0.05 < verdict.holm == 3 * alone.p
        assert verdict.text == "cannot be decided with 8 pairs"


def test_a_clear_difference_below_the_margin_is_equivalent():
    (verdict,) = verdicts.judge(
        [comparison("a", [0.001, 0.002, 0.001, 0.003, 0.002, 0.001])], 0.005, higher_is_better=True
    )
    assert verdict.holm < 0.05
    assert verdict.text == "equivalent"


def test_only_common_seeds_are_paired(tmp_path, write_run):
    pair(tmp_path, write_run, CLEAR)
    write_run(tmp_path, "lora", 7, metric__test=0.1)
    write_run(tmp_path, "adalora", 8, metric__test=0.9)
    verdict = judge(tmp_path)["adalora 12 → 8"]
    assert (verdict.pairs, verdict.difference) == (6, pytest.approx(0.0205))


def test_no_common_seed(tmp_path, write_run):
    write_run(tmp_path, "lora", 0)
    write_run(tmp_path, "full", 1)
    verdict = judge(tmp_path)["full"]
    assert verdict.text == "cannot be decided with 0 pairs"
    assert (verdict.difference, verdict.interval, verdict.p, verdict.effect) == (None, None, 1.0, None)
    assert "nan" not in " ".join(verdict_cells(verdict)).lower()


def test_the_trials_of_a_search_are_not_comparisons_of_their_own(tmp_path, write_run):
    pair(tmp_path, write_run, CLEAR)
    for seed in range(6):
        for lr, best in ((0.02, 0.1), (0.05, 0.2)):
            write_run(tmp_path, "adalora", seed, config={"train.lr": lr}, metric__best=best, metric__test=0.5)
    (verdict,) = judge(tmp_path).values()
    assert verdict.comparison.label == "adalora 12 → 8, lr 0.01"
    assert (verdict.text, verdict.holm) == ("adalora better", 0.03125)


def test_another_setting_is_a_comparison_of_its_own(tmp_path, write_run):
    pair(tmp_path, write_run, CLEAR)
    for seed in range(6):
        write_run(tmp_path, "adalora", seed, config={"train.max_grad_norm": 0.5})
    assert len(judge(tmp_path)) == 2


PIECES = ("adarank.allocators.global_top", "adarank.allocators.uniform")


def write_arms(out, write_run, task="cola", seeds=8, gain=0.03, ranks=(8,), rates=(0.01,)):
    """LoRA, the uniform control half of `gain` above it, AdaLoRA `gain` above it."""
    for seed in range(seeds):
        for rank in ranks:
            level = 0.6 + 0.01 * seed
            write_run(out, "lora", seed, rank, config={"task": task}, task=task, metric__test=level)
            for place, target in enumerate(PIECES):
                for rate in rates:
                    config = {"task": task, "allocator._target_": target, "train.lr": rate}
                    value = level + (gain if place == 0 else gain / 2) + 0.0003 * (seed % 3)
                    write_run(out, "adalora", seed, rank, config=config, task=task, metric__test=value,
                              metric__best=value + (0.01 if rate == 0.01 else 0))  # fmt: skip
    return out


def test_adaptive_against_the_same_rank_everywhere(tmp_path, write_run):
    (table,) = tables(read_runs(write_arms(tmp_path, write_run, ranks=(2, 8))))
    judged = verdicts.against_uniform(table)
    assert [v.comparison.label for v in judged] == [
        f"adalora {i} → {r}, allocator global_top" for i, r in ((3, 2), (12, 8))
    ]
    assert [v.comparison.against for v in judged] == [
        f"adalora {i} → {r}, allocator uniform" for i, r in ((3, 2), (12, 8))
    ]
    assert [v.difference for v in judged] == pytest.approx([0.015, 0.015])
    assert {v.text for v in judged} == {"adalora, allocator global_top better"}
    (grid,) = [grid for grid in format_table.further_tables(table) if grid.title == verdicts.UNIFORM_TITLE]
    assert len(grid.rows) == 2


def test_without_a_control_there_is_nothing_to_say(quickstart):
    (table,) = tables(read_runs(quickstart))
    assert verdicts.against_uniform(table) == []
    assert set(table.kinds.values()) == {"full", "lora", "adalora"}


def test_a_verdict_on_lora_names_the_kind_that_is_better(tmp_path, write_run):
    (table,) = tables(read_runs(write_arms(tmp_path, write_run)))
    assert {v.text for v in against_lora(table)} == {
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


def test_over_tasks_each_is_compared_with_itself(tmp_path, write_run):
    for task, gain in (("cola", 0.04), ("sst2", 0.02)):
        write_arms(tmp_path, write_run, task, seeds=4, gain=gain)
    (over,) = across_tasks(tables(read_runs(tmp_path)))
    assert {verdict.comparison.against for verdict in over.verdicts} == {"lora 8"}
    assert {verdict.comparison.label: (verdict.difference, verdict.text) for verdict in over.verdicts} == {
        "adalora 12 → 8, allocator global_top": (pytest.approx(0.03, abs=1e-3), "adalora, allocator global_top better"),
        "adalora 12 → 8, allocator uniform": (pytest.approx(0.015, abs=1e-3), "adalora, allocator uniform better"),
    }


def write_tasks(out, write_run, tasks, seeds, gain=0.02, **changes):
    for place, task in enumerate(tasks):
        for seed in range(seeds):
            level = 0.6 + 0.1 * place + 0.01 * seed
            write_run(out, "lora", seed, config={"task": task}, task=task, metric__test=level, **changes)
            better = level + gain + 0.001 * seed
            write_run(out, "adalora", seed, config={"task": task}, task=task, metric__test=better, **changes)


@pytest.mark.usefixtures("no_pictures")
def test_six_pairs_from_two_tasks_decide_what_three_of_each_cannot(tmp_path, write_run):
    write_tasks(tmp_path, write_run, ("cola", "sst2"), 3)
    found = tables(read_runs(tmp_path))
    (over,) = across_tasks(found)
    (verdict,) = over.verdicts
    assert over.title == "minilm_l6, targets all, test, over 2 tasks: cola, sst2"
    assert (verdict.text, verdict.pairs) == ("adalora better", 6)
    assert verdict.difference == pytest.approx(0.021)
    assert verdict.comparison.label == "adalora 12 → 8"
    assert verdict.comparison.differences.shape == (3, 2)
    runs, found = report.load(tmp_path)
    assert over.title in report.write_report(tmp_path, runs, found).read_text()
    assert over.title in report.as_text(runs, found)


def test_over_tasks_close_scores_are_equivalent(tmp_path, write_run):
    write_tasks(tmp_path, write_run, ("cola", "sst2"), 3, gain=0.0)
    (over,) = across_tasks(tables(read_runs(tmp_path)))
    assert [verdict.text for verdict in over.verdicts] == ["equivalent"]


def test_a_seed_that_one_task_lacks_leaves_its_pair_out(tmp_path, write_run):
    write_tasks(tmp_path, write_run, ("cola",), 3)
    write_tasks(tmp_path, write_run, ("sst2",), 2)
    (over,) = across_tasks(tables(read_runs(tmp_path)))
    assert over.verdicts[0].pairs == 5
    assert np.isnan(over.verdicts[0].comparison.differences).sum() == 1


def test_one_task_or_metrics_that_cannot_be_averaged_are_left_alone(tmp_path, write_run):
    write_tasks(tmp_path / "a", write_run, ("cola",), 2)
    assert across_tasks(tables(read_runs(tmp_path / "a"))) == []
    write_tasks(tmp_path / "b", write_run, ("cola", "e2e"), 2, metric__higher_is_better=False)
    assert across_tasks(tables(read_runs(tmp_path / "b"))) == []
