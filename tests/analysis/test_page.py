"""The first screen: what it says of verdicts, costs and ranks, checked against the runs that were written."""

import json
import re

import numpy as np
import pytest

from analysis import claims, page, report
from analysis.plots.rank_map import has_map
from tests.analysis.conftest import map_settings

BASE = 0.7
GAINS = {  # by method, over LoRA: clearly better, clearly worse, the same but for noise that decides nothing
    "adalora": lambda seed: 0.02 + 0.001 * seed,
    "sora": lambda seed: -0.03 + 0.001 * (-1) ** seed,
    "full": lambda seed: 0.03 * (-1) ** seed,
}


def sweep(out, write_run, seeds=8, task="rotten_tomatoes", **changes):
    for seed in range(seeds):
        level = BASE + 0.01 * seed
        shared = {"task": task, "config": {"task": task}, **changes}
        write_run(out, "lora", seed, metric__test=level, memory__peak_mib=800.0, **shared)
        for method, gain in GAINS.items():
            write_run(out, method, seed, metric__test=level + gain(seed), memory__peak_mib=880.0, **shared)
    return out


def front_of(out):
    found = report.load(out)
    return page.front(found.runs, found.tables, found.family, found.declared)


@pytest.fixture
def front(tmp_path, write_run):
    return front_of(sweep(tmp_path, write_run))


def test_the_facts_say_what_was_compared(front):
    facts = dict(front.facts)
    assert facts["model"] == "minilm_l6"
    assert facts["task"] == "rotten_tomatoes"
    assert facts["targets"] == "all"
    assert facts["methods"] == "full, lora, adalora and sora"
    assert facts["seeds"] == "8"
    assert facts["judged by"] == "accuracy on test, last checkpoint"
    assert facts["runs"] == "32 finished"
    assert "Not declared beforehand" in front.standing
    assert front.warnings == ()


def test_decided_comparisons_come_first_and_say_everything_about_themselves(front):
    assert [card.kind for card in front.cards] == ["better", "better", "undecided"]
    assert {card.text for card in front.cards[:2]} == {"adalora better", "lora better"}
    (card,) = [card for card in front.cards if card.text == "adalora better"]
    assert (card.of, card.against, card.place) == ("adalora 12 → 8", "lora 8", 1)
    assert card.difference == "+0.0235"
    assert re.fullmatch(r"\[\+0\.02\d\d, \+0\.02\d\d\]", card.interval)
    pairs, rates, costs = card.details
    assert pairs == "8 pairs of seeds, p < 0.001"
    assert rates == "learning rates 0.01 and 0.002"
    assert costs == "1.24× step time, 1.10× memory"  # 620 ms against 500, 880 MiB against 800
    assert {run.seed for run in card.runs} == set(range(8))
    assert (front.lines, front.left) == ((), 0)


def test_costs_of_different_devices_are_not_compared(tmp_path, write_run):
    for seed in range(4):
        write_run(tmp_path, "lora", seed, device="a")
        write_run(tmp_path, "adalora", seed, device="b")
    front = front_of(tmp_path)
    assert not any("×" in detail for detail in front.cards[0].details)
    assert dict(front.answers)["What does it cost?"].startswith("Not comparable")
    (cell,) = [row[2][0] for row in front.matrix.rows if row[0].startswith("adalora")]
    assert cell.cost == ""


def test_runs_that_did_not_learn_are_counted_on_the_card(tmp_path, write_run):
    for seed in range(6):
        write_run(tmp_path, "lora", seed, metric__test=0.8, metric__majority=0.5)
        write_run(tmp_path, "adalora", seed, metric__test=0.5 if seed < 2 else 0.81, metric__majority=0.5)
    front = front_of(tmp_path)
    (card,) = front.cards
    assert "2 of 12 runs did not learn." in dict(front.answers)["How sure is that?"]
    assert card.details[-1] == "did not learn: 2 of 6 against 0 of 6 (Fisher's p 0.455)"


def test_a_method_that_learns_more_often_is_the_better_one_without_an_interval(tmp_path, write_run):
    for seed in range(8):
        write_run(tmp_path, "lora", seed, metric__test=0.5, metric__majority=0.5)
        write_run(tmp_path, "adalora", seed, metric__test=0.7 + 0.01 * seed, metric__majority=0.5)
    front = front_of(tmp_path)
    (card,) = front.cards
    assert (card.text, card.interval) == ("adalora better", "(no interval)")
    assert card.details[0] == "8 pairs of seeds, decided by how many runs learned"
    assert dict(front.answers)["Which method is better?"] == "adalora 12 → 8 is better than lora 8."


def test_the_answers_are_sentences(front):
    answers = dict(front.answers)
    better = answers["Which method is better?"]
    assert "adalora 12 → 8 is better than lora 8" in better
    assert "lora 8 is better than sora 12 → 8" in better
    assert better.endswith("Of 3 comparisons, 1 is not decided.")
    sure = answers["How sure is that?"]
    assert sure.startswith("All 3 intervals hold together with 95% confidence, from 8 pairs of seeds.")
    assert "nothing is called equivalent" in sure
    assert re.search(r"about [\d,]+ more seeds", sure)
    costs = (
        "Step time and memory relative to lora: full 1.40× and 1.10×; adalora 1.24× and 1.10×; sora 1.24× and 1.10×."
    )
    assert answers["What does it cost?"] == costs
    assert "mean ranks" in answers["Where did the rank go?"]
    assert all(answer.endswith(".") for answer in answers.values())


def test_without_comparisons_the_page_says_so(tmp_path, write_run):
    write_run(tmp_path, "lora", 0)
    front = front_of(tmp_path)
    answers = dict(front.answers)
    assert (
        answers["Which method is better?"] == "There is nothing to compare, because no two configurations share seeds."
    )
    assert answers["Where did the rank go?"] == "No method chose the ranks of its modules."
    assert (front.cards, front.lines, front.maps) == ((), (), None)
    assert len(front.matrix.rows) == 1


def test_two_seeds_decide_nothing(quickstart):
    front = front_of(quickstart)
    assert {card.text for card in front.cards} == {"cannot be decided at this n"}
    answers = dict(front.answers)
    assert answers["Which method is better?"] == "Not decided: none of 2 comparisons shows that one method is better."
    assert answers["How sure is that?"].startswith("Too few pairs of seeds for an interval")


def test_a_lower_loss_is_better(tmp_path, write_run):
    for seed in range(6):
        write_run(tmp_path, "lora", seed, metric__test=2 + 0.1 * seed, metric__higher_is_better=False)
        write_run(tmp_path, "adalora", seed, metric__test=1.9 + 0.101 * seed, metric__higher_is_better=False)
    front = front_of(tmp_path)
    assert dict(front.answers)["Which method is better?"] == "adalora 12 → 8 is better than lora 8."
    (cell,) = [row[2][0] for row in front.matrix.rows if row[0].startswith("adalora")]
    assert cell.marks == (("▲", "better than lora 8"),)


def test_beyond_six_decided_cards_a_comparison_is_a_line_and_then_a_row_of_the_tables(tmp_path, write_run):
    for seed in range(6):
        write_run(tmp_path, "lora", seed, metric__test=BASE + 0.01 * seed)
        for i in range(30):
            gain = 0.05 + 0.0001 * (i + seed)
            write_run(tmp_path, f"method{i}", seed, metric__test=BASE + 0.01 * seed + gain)
    front = front_of(tmp_path)
    assert (len(front.cards), len(front.lines), front.left) == (page.CARDS, page.LISTED, 30 - page.CARDS - page.LISTED)
    assert {card.kind for card in front.cards} == {"better"}
    assert dict(front.answers)["Which method is better?"].count(" is better than ") == page.NAMED


def test_the_matrix_has_every_method_on_every_task_with_its_mark_and_cost(tmp_path, write_run):
    sweep(tmp_path, write_run)
    for seed in range(8):
        write_run(tmp_path, "lora", seed, config={"task": "sst2"}, task="sst2", metric__test=0.9)
    matrix = front_of(tmp_path).matrix
    assert matrix.columns == ((1, "rotten_tomatoes"), (2, "sst2"))
    rows = {name: cells for name, _, cells, _ in matrix.rows}
    assert list(rows) == ["full", "lora 8", "adalora 12 → 8", "sora 12 → 8"]
    assert [sign for sign, _ in rows["adalora 12 → 8"][0].marks] == ["▲"]
    assert [sign for sign, _ in rows["sora 12 → 8"][0].marks] == ["▼"]
    assert [sign for sign, _ in rows["full"][0].marks] == ["?"]
    assert rows["lora 8"][0].marks == ()
    assert rows["adalora 12 → 8"][0].cost == "1.24×, 1.10×"
    assert rows["lora 8"][0].cost == "504 ms, 800 MiB"  # the median over the seeds
    assert rows["lora 8"][0].score == "0.7350"
    assert rows["lora 8"][0].interval.startswith("0.7350 ± ")
    assert rows["adalora 12 → 8"][1] is None
    assert rows["lora 8"][1].score == "0.9000"


def test_of_many_configurations_the_decided_and_the_best_on_dev_come_first_in_the_matrix(tmp_path, write_run):
    for seed in range(6):
        write_run(tmp_path, "lora", seed, metric__test=BASE + 0.01 * seed, metric__last=0.5)
        for i in range(14):
            gain = -0.05 + 0.0001 * seed if i == 13 else 0.03 * (-1) ** seed
            write_run(
                tmp_path, f"m{i}", seed, metric__test=BASE + 0.01 * seed + gain, metric__last=0.6 + 0.01 * (i % 13)
            )
    names = [row[0] for row in front_of(tmp_path).matrix.rows]
    assert names[:3] == ["m13 12 → 8", "m12 12 → 8", "m11 12 → 8"]
    assert names[-1] == "lora 8"


def test_only_maps_that_a_method_chose_are_drawn(tmp_path, write_run):
    for seed in (0, 1):
        source = write_run(tmp_path, "adalora", seed)
        for allocator in ("uniform", "random"):
            write_run(tmp_path, "adalora", seed, config={"allocator._target_": f"adarank.allocators.{allocator}"})
        write_run(tmp_path, "adalora", seed, config=map_settings(source, "all"))
        write_run(tmp_path, "adalora", seed, config=map_settings(source))
        write_run(tmp_path, "lora", seed)
    (table,) = report.load(tmp_path).tables
    assert len(table.rows) == 6
    (row,) = filter(has_map, table.rows)
    assert not row.is_rank_map
    maps = front_of(tmp_path).maps
    assert len(maps.maps) == 1
    assert maps.differences == ()


def test_maps_share_one_scale_and_their_difference_is_taken_cell_by_cell(tmp_path, write_run):
    for seed in (0, 1):
        write_run(tmp_path, "adalora", seed)
        write_run(tmp_path, "sora", seed + 2)  # the seed decides the ranks of these runs
    found = report.load(tmp_path)
    (table,) = found.tables
    maps = page.rank_maps(found.tables, ["task"], [page.row_names(table)])
    assert [each.label for each in maps] == ["adalora 12 → 8", "sora 12 → 8"]
    assert maps[0].kinds == ("query", "key", "value", "attention.output", "intermediate", "output")
    assert maps[0].blocks == tuple("012345")
    for each, row in zip(maps, table.rows, strict=True):
        ranks = {
            (kind, block): each.ranks[i, j] for i, kind in enumerate(each.kinds) for j, block in enumerate(each.blocks)
        }
        assert ranks["query", "3"] == row.ranks["bert.encoder.layer.3.attention.self.query"]
        assert ranks["output", "5"] == row.ranks["bert.encoder.layer.5.output.dense"]
    drawn = front_of(tmp_path).maps
    assert drawn.top == max(np.nanmax(each.ranks) for each in maps)
    assert drawn.top_difference == np.abs(maps[0].ranks - maps[1].ranks).max()
    assert [each.caption for each in drawn.differences] == ["adalora 12 → 8 − sora 12 → 8"]


def test_the_answer_names_the_kinds_with_most_and_least_rank(tmp_path, write_run):
    folder = write_run(tmp_path, "adalora", 0)
    summary = json.loads((folder / "summary.json").read_text())
    ranks = {"query": 9, "intermediate": 1}
    final = {
        name: ranks.get(name.split(".")[-2 if "intermediate" in name else -1], 5) for name in summary["rank"]["final"]
    }
    summary["rank"]["final"] = final
    (folder / "summary.json").write_text(json.dumps(summary))
    answer = dict(front_of(tmp_path).answers)["Where did the rank go?"]
    assert answer == "adalora 12 → 5 gives most to query and least to intermediate (mean ranks 9 and 1)."


@pytest.mark.parametrize(
    ("tables", "names"),
    [
        ([("m", "a", "all"), ("m", "b", "all")], ["a", "b"]),
        ([("m", "a", "all"), ("m", "a", "qv")], ["a, targets all", "a, targets qv"]),
        ([("m", "a", "all"), ("n", "a", "all")], ["a, m", "a, n"]),
    ],
)
def test_short_names_tell_tables_apart(tmp_path, write_run, tables, names):
    for model, task, targets in tables:
        write_run(tmp_path, "lora", 0, config={"m": model, "task": task, "targets": targets}, model=model, task=task,
                  targets=targets)  # fmt: skip
    assert page.short_names(report.load(tmp_path).tables) == names


def test_settings_are_those_that_differ_and_begin_with_the_first_comparison(tmp_path, write_run):
    sweep(tmp_path, write_run)
    found = report.load(tmp_path)
    data = page.settings(found.tables, found.family)
    assert data["names"] == ["full", "lora 8", "adalora 12 → 8", "sora 12 → 8"]
    assert data["settings"]["train.lr"] == ["0.0001", "0.002", "0.01", "0.001"]
    assert data["settings"]["rank"] == ["–", "8", "12 → 8", "12 → 8"]
    assert "train.steps" not in data["settings"]
    assert data["names"][data["first"][1]] == "lora 8"
    assert len(set(data["first"])) == 2


def declared(out, write_run, **changes):
    """A study of two arms on two tasks, of which one has runs."""
    content = {
        "seeds": 6, "margins": {"sst2": 0.01, "rte": 0.02}, "assay": {"of": "lora@8", "against": "lora@4"},
        "contrasts": [{"name": "map", "of": "adalora", "against": "lora", "tasks": ["sst2", "rte"], "ranks": [8]}],
    }  # fmt: skip
    claims.write(out, claims.read({**content, "margins": {"sst2": 0.5, "rte": 0.5}}), "little", 0)
    claims.write(out, claims.read(content | changes), "little", 3)
    for seed in range(6):
        for method, gain in (("lora", 0.0), ("adalora", 0.05 + 0.001 * seed)):
            write_run(out / "sst2", method, seed, arm=f"{method}@8", task="sst2", metric__test=0.7 + 0.01 * seed + gain)
    return front_of(out)


def test_declared_claims_their_changes_and_what_is_missing_stand_on_the_first_screen(tmp_path, write_run):
    front = declared(tmp_path, write_run)
    assert front.standing.startswith("Declared 2")
    assert "by the study little" in front.standing
    assert dict(front.facts)["seeds"] == "6 of 6 planned"
    changed, missing = front.warnings
    assert "after 3 runs" in changed
    assert missing == "Declared, but without a finished run of both arms: map on rte at budget 8."
    (card,) = front.cards
    assert (card.of, card.text) == ("map: adalora 12 → 8", "adalora better")


def test_names_are_listed_as_in_a_sentence():
    assert [page.listed("abc"[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert page.listed("abcde", 2) == "a, b and 3 more"


def test_a_page_of_one_table_draws_every_seed(tmp_path, write_run):
    for seed in (0, 1, 2):
        for method in ("full", "lora", "adalora"):
            write_run(tmp_path, method, seed)
    assert front_of(tmp_path).seeds.count("<circle") == 9
    write_run(tmp_path, "lora", 0, config={"task": "other"}, task="other")
    assert front_of(tmp_path).seeds == ""  # one axis does not hold the scores of two tasks
