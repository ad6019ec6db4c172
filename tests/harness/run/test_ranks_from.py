"""ranks_from: reading a run's ranks, permuting them, and runs made of them."""

import json
import math
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adarank.errors import SettingError
from adarank.harness.run.ranks_from import fixed_ranks, read_rank_map
from tests.experiments.test_run import inside, summaries
from tests.representatives import representatives

NAMES = ["layer.0.query", "layer.0.ffn", "layer.1.query", "layer.1.ffn", "layer.2.query", "layer.2.ffn"]
RANKS = dict(zip(NAMES, [3, 0, 5, 7, 1, 2], strict=True))
LIMITS = dict.fromkeys(NAMES, 8)


def write(folder, status="finished", **rank):
    folder.mkdir(exist_ok=True)
    found = {"initial": 6, "budget": 3, "budget_triplets": 18, "final": RANKS, **rank}
    (folder / "summary.json").write_text(json.dumps({"status": status, "rank": found}))
    return str(folder)


def rank_map(source, limits, shuffle="none", seed=0):
    return fixed_ranks(read_rank_map(source), limits, shuffle, seed)


def test_it_is_the_run_s_own_map(tmp_path):
    source = write(tmp_path / "run")
    assert rank_map(source, LIMITS) == RANKS
    assert list(rank_map(source, dict(reversed(LIMITS.items())))) == NAMES[::-1]  # in the order of the targets
    assert read_rank_map(source) == (3, 6, RANKS)


@pytest.mark.parametrize("seed", range(5))
def test_a_permutation_keeps_the_ranks_and_is_seeded(tmp_path, seed):
    source = write(tmp_path / "run")
    free = rank_map(source, LIMITS, "all", seed)
    within = rank_map(source, LIMITS, "within_family", seed)
    for found in (free, within):
        assert Counter(found.values()) == Counter(RANKS.values())
        assert list(found) == NAMES
    for kind in ("query", "ffn"):
        members = [name for name in NAMES if name.endswith(kind)]
        assert Counter(within[n] for n in members) == Counter(RANKS[n] for n in members)
    assert rank_map(source, LIMITS, "all", seed) == free
    assert len({tuple(rank_map(source, LIMITS, "all", s).values()) for s in range(20)}) > 10


def test_reversed_gives_the_highest_rank_to_the_module_that_had_the_lowest(tmp_path):
    source = write(tmp_path / "run")
    found = rank_map(source, LIMITS, "reversed")
    assert found == dict(zip(NAMES, [2, 7, 1, 0, 5, 3], strict=True))  # of 3, 0, 5, 7, 1, 2
    tight = rank_map(source, {**LIMITS, "layer.0.ffn": 4, "layer.1.ffn": 7}, "reversed")
    assert tight == {**found, "layer.0.ffn": 3, "layer.2.query": 7, "layer.2.ffn": 5, "layer.0.query": 2}
    equal = write(tmp_path / "equal", final=dict(zip(NAMES, [1, 1, 1, 1, 1, 6], strict=True)))
    six = {next(n for n, r in rank_map(equal, LIMITS, "reversed", seed).items() if r == 6) for seed in range(30)}
    assert six == set(NAMES[:5]), "ties are drawn"


@given(st.lists(st.integers(0, 5), min_size=2, max_size=7), st.data())
def test_a_permuted_rank_fits_its_matrix(tmp_path_factory, ranks, data):
    limits = [data.draw(st.integers(r, 6)) for r in ranks]
    names = [f"layer.{i}.fc" for i in range(len(ranks))]
    source = write(tmp_path_factory.mktemp("r") / "run", final=dict(zip(names, ranks, strict=True)))
    found = rank_map(source, dict(zip(names, limits, strict=True)), "all", data.draw(st.integers(0, 9)))
    assert Counter(found.values()) == Counter(ranks)
    assert all(found[name] <= limit for name, limit in zip(names, limits, strict=True))


def test_every_permutation_that_fits_is_equally_likely(tmp_path):
    names = ["layer.0.a", "layer.1.a", "layer.2.a", "layer.3.a"]
    source = write(tmp_path / "run", final=dict(zip(names, [4, 3, 1, 0], strict=True)))
    limits = dict(zip(names, [4, 4, 3, 2], strict=True))
    fit = [p for p in permutations([4, 3, 1, 0]) if all(r <= v for r, v in zip(p, limits.values(), strict=True))]
    draws = 2000
    seen = Counter(tuple(rank_map(source, limits, "all", seed).values()) for seed in range(draws))
    assert set(seen) == set(fit)
    expected = draws / len(fit)
    assert max(abs(n - expected) for n in seen.values()) < 5 * math.sqrt(expected)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: str(p / "nowhere"), "nowhere holds no summary.json that can be read"),
        (lambda p: write(p / "a", status="diverged"), "a holds one that diverged"),
        (
            lambda p: (write(p / "b"), (p / "b/summary.json").write_text("{"))[0] or str(p / "b"),
            "b holds no summary.json that can be read",
        ),
        (
            lambda p: write(p / "c", final={**RANKS, "layer.9.query": 1}),
            "1 modules differ: layer.9.query, for one, is not a target here",
        ),
        (
            lambda p: write(p / "d", final={n: r for n, r in RANKS.items() if n != NAMES[0]}),
            "1 modules differ: layer.0.query, for one, had no adapter there",
        ),
        (
            lambda p: write(p / "e", final={**RANKS, NAMES[0]: 9}),
            "ranks_from gives layer.0.query the rank 9, but its matrix allows at most 8",
        ),
        (lambda p: write(p / "f", budget=None), "f holds one without"),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path, make, says):
    with pytest.raises(SettingError) as error:
        rank_map(make(tmp_path), LIMITS)
    assert says in str(error.value)
    assert str(error.value).startswith("ranks_from ")
    assert "\n" not in str(error.value)


def test_a_run_without_ranks_is_refused(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"status": "finished", "rank": None}))
    with pytest.raises(SettingError, match="must be the run of a low-rank method"):
        read_rank_map(str(tmp_path))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An AdaLoRA run, with modules of rank 0: rank 1 on average."""
    out = tmp_path_factory.mktemp("source")
    inside("method=adalora", "rank=1", "init_rank=4", "seed=1", "tiny=true", "targets=qkv", f"out={out}")
    (name, summary), *_ = summaries(out).items()
    assert 0 in summary["rank"]["final"].values()
    return out / name, summary["rank"]


def mapped(source, out, *more, status=0):
    asked = ("method=adalora", f"ranks_from={source}", "seed=1", "tiny=true", "targets=qkv")
    return inside(*asked, *more, f"out={out}", status=status)


def test_a_map_is_retrained_from_the_first_step(source, tmp_path):
    folder, rank = source
    mapped(folder, tmp_path)
    mapped(folder, tmp_path, "ranks_shuffle=within_family")
    mapped(folder, tmp_path, "ranks_shuffle=all")
    found = summaries(tmp_path)
    assert len(found) == 3  # each a run of its own
    for summary in found.values():
        assert list(summary["rank"]["final"]) == list(rank["final"])  # in the model's order, rank 0 in its place
        assert summary["rank"]["budget_triplets"] == sum(rank["final"].values()) == 6
        assert summary["rank"]["budget"] == 1
        counts = summary["parameters"]
        assert counts["kept"] == counts["adapter"] == 6 * (128 + 128 + 1)  # nothing pruned, nothing to spare
        assert summary["scale"] == 2.0
    assert sum(s["rank"]["final"] == rank["final"] for s in found.values()) >= 1
    for name in found:
        config = (tmp_path / name / "config.yaml").read_text()
        assert "score: null" in config
        assert "schedule: null" in config
        assert "allocator: null" in config


@pytest.mark.slow
def test_the_map_s_content_names_the_run_not_its_path(source, tmp_path):
    folder, rank = source
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    (copy / "summary.json").write_text((folder / "summary.json").read_text())
    mapped(folder, tmp_path / "out")
    assert "finished already" in mapped(copy, tmp_path / "out").stdout
    summary = json.loads((copy / "summary.json").read_text())
    names = list(rank["final"])
    ranks = dict(zip(names, [*list(rank["final"].values())[1:], rank["final"][names[0]]], strict=True))
    summary["rank"]["final"] = ranks
    (copy / "summary.json").write_text(json.dumps(summary))
    mapped(copy, tmp_path / "out")
    assert len(summaries(tmp_path / "out")) == 2


def test_alpha_over_the_rank_that_the_run_had(source, tmp_path):
    mapped(source[0], tmp_path, "adapter.alpha=6")
    (summary,) = summaries(tmp_path).values()
    assert summary["scale"] == 6 / 4  # init_rank, as in the AdaLoRA run; not 6 / the map's rank of each module


@pytest.mark.parametrize(
    ("more", "says"),
    representatives([
        (("score=adalora",), "score has no effect with ranks_from, which fixes every rank; remove score="),
        (("schedule=cubic",), "schedule has no effect with ranks_from"),
        (("allocator=uniform",), "allocator has no effect with ranks_from"),
        (("init_rank=4",), "init_rank=4 has no effect with method=adalora: its rank is fixed"),
        (("init=eva",), "init=eva moves ranks between modules, but ranks_from fixes them; choose another init"),
        (("rank=2",), "rank must equal that of the run in ranks_from, 1, or be omitted (got 2)"),
        (("ranks_shuffle=rows",), "ranks_shuffle must be one of none, within_family, all, reversed (got rows)"),
        (("ranks_shuffle_seed=4",), "ranks_shuffle_seed=4 has no effect with method=adalora: ranks_shuffle=none draws"),
        (("targets=all",), "ranks_from must be a run with this model and these targets"),
    ], 4),
)  # fmt: skip
def test_what_does_not_go_with_a_map_is_refused_before_anything_is_written(source, tmp_path, more, says):
    asked = ["method=adalora", f"ranks_from={source[0]}", "tiny=true", f"out={tmp_path / 'o'}"]
    asked += [] if "targets=all" in more else ["targets=qkv"]
    done = inside(*asked, *more, status=2)
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_without_a_run_there_is_nothing_to_shuffle(tmp_path):
    done = inside("method=lora", "ranks_shuffle=all", "tiny=true", f"out={tmp_path / 'o'}", status=2)
    assert "ranks_shuffle=all has no effect with method=lora: ranks_from is null" in done.stderr
    done = inside("method=full", f"ranks_from={tmp_path}", "tiny=true", f"out={tmp_path / 'o'}", status=2)
    assert f"ranks_from={tmp_path} has no effect with method=full: it has no ranks" in done.stderr
