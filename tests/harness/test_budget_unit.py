"""budget.unit=parameters and the growth methods from the command line to the files of a run."""

import json
from itertools import pairwise

import pytest

from adarank.runs import allocations
from tests.experiments.test_run import inside, summaries
from tests.representatives import representatives


def records(folder):
    return allocations.read(folder / "allocations.jsonl")[0]


@pytest.mark.parametrize("allocator", representatives(["by_cost", "global_top", "by_family", "uniform", "random"], 1))
def test_parameters_are_never_exceeded_from_the_first_allocation_to_the_summary(allocator, tmp_path):
    inside(
        "method=adalora", f"allocator={allocator}", "budget.unit=parameters", "rank=2", "tiny=true", f"out={tmp_path}"
    )
    ((name, summary),) = summaries(tmp_path).items()
    lines = records(tmp_path / name)
    modules = json.loads((tmp_path / name / "adapter" / "adapter.json").read_text())["modules"]
    costs = {n: m["in_features"] + m["out_features"] + 1 for n, m in modules.items()}
    assert len(set(costs.values())) == 2
    for line in lines:
        spent = sum(rank * costs[n] for n, rank in line["ranks"].items())
        assert line["unit"] == "parameters"
        assert line["parameters"] == spent
        assert line["slack"] == line["budget"] - spent
        assert 0 <= line["slack"] < max(costs.values())
        assert line["kept"] == sum(line["ranks"].values())
    assert lines[-1]["budget"] == 2 * sum(costs.values())
    rank = summary["rank"]
    assert rank["final"] == lines[-1]["ranks"]
    assert rank["budget_triplets"] is None
    assert rank["budget"] == 2
    assert summary["parameters"]["kept"] == lines[-1]["parameters"]


def test_an_allocator_that_cannot_count_parameters_or_triplets_says_so(tmp_path):
    done = inside("method=adalora", "allocator=by_cost", "tiny=true", f"out={tmp_path / 'o'}", status=2)
    assert done.stderr == (
        "error: budget.unit must be parameters with this allocator, which counts parameters (got triplets)\n"
    )
    done = inside(
        "method=adalora",
        "allocator=threshold",
        "budget.unit=parameters",
        "tiny=true",
        f"out={tmp_path / 'o'}",
        status=2,
    )
    assert "which counts triplets" in done.stderr
    done = inside("method=adalora", "allocator.min_rank=9", "rank=8", "tiny=true", f"out={tmp_path / 'o'}", status=2)
    assert (
        "allocator.min_rank must be at most 8 (got 9, which takes 108 triplets over all modules, but the budget falls "
        "to 96)" in done.stderr
    )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("method", representatives(["increlora", "elalora", "flexlora"], 1))
def test_a_growth_method_keeps_its_budget_and_its_ranks_differ(method, tmp_path):
    inside(f"method={method}", "rank=3", "tiny=true", "train.steps=16", f"out={tmp_path}")
    ((name, summary),) = summaries(tmp_path).items()
    lines = records(tmp_path / name)
    assert all(line["kept"] == line["budget"] and line["slack"] == 0 for line in lines)
    if method == "increlora":
        budgets = [line["budget"] for line in lines]
        assert budgets == sorted(budgets)
        assert budgets[0] < budgets[-1]
        for before, after in pairwise(lines):
            assert all(after["ranks"][n] >= r for n, r in before["ranks"].items())
        assert summary["rank"]["initial"] == 1
    else:
        assert {line["budget"] for line in lines} == {36}
        assert min(min(line["ranks"].values()) for line in lines) >= 1
        assert summary["rank"]["initial"] == 3
    final = summary["rank"]["final"]
    assert sum(final.values()) == summary["rank"]["budget_triplets"] == 36
    assert len(set(final.values())) > 1
    assert summary["scale"] == 2.0
