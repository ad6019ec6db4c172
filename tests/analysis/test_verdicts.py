import pytest
from scipy import stats as reference

from analysis import verdicts as room
from analysis.load import read_runs
from analysis.tables import tables
from analysis.verdicts import verdicts


def judge(out):
    (table,) = tables(read_runs(out))
    return {verdict.comparison.label: verdict for verdict in verdicts(table)}


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
    shown = dict(zip(room.HEADER, room.cells(verdict), strict=True))
    assert shown["comparison"] == "adalora 12 → 8 − lora 8"
    assert shown["difference"] == "+0.0205"
    assert (shown["p (Holm)"], shown["attainable"], shown["pairs"]) == ("0.0312", "0.0312", "6")


def test_lora_can_be_the_better_one(tmp_path, write_run):
    pair(tmp_path, write_run, [-gain for gain in CLEAR], method="sora")
    assert judge(tmp_path)["sora 12 → 8"].text == "lora better"


def test_where_lower_is_better_the_sign_turns_and_nothing_is_equivalent(tmp_path, write_run):
    pair(tmp_path / "a", write_run, CLEAR, metric__higher_is_better=False)
    assert judge(tmp_path / "a")["adalora 12 → 8"].text == "lora better"
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
    assert room.cells(verdict)[4] == "0.0312 (0.0625)"


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
    assert "nan" not in " ".join(room.cells(verdict)).lower()


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
        write_run(tmp_path, "adalora", seed, config={"train.clip": 0.5})
    assert len(judge(tmp_path)) == 2
