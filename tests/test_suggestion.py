"""suggest_ranks: the ranks of the init, the exact budget, and what PEFT's LoraConfig makes of them."""

import pytest
import torch

import adarank
from adarank import SettingError
from adarank.commands.suggest import peft_config
from adarank.inits import eva
from adarank.suggestion import SuggestedRanks, methods, suggest_ranks
from tests.inits.conftest import Classifier, some_batches
from tests.integrations.models import bert, gpt2, llama

pytestmark = pytest.mark.filterwarnings("ignore:init=eva")
TOKENS = {"input_ids": torch.tensor([[2, 7, 9, 4, 11], [5, 3, 8, 6, 1]])}


def classifier():
    torch.manual_seed(0)
    return Classifier()


def test_the_methods_are_the_inits_that_move_ranks():
    assert {"eva", "gora"} <= set(methods())
    assert "pissa" not in methods()


@pytest.mark.parametrize("method", methods())
def test_the_ranks_are_those_with_which_training_here_would_start(method):
    """The same numbers as the init's in `adapt`, for every linear of the blocks; the model stays as it is."""
    model, batches = classifier(), some_batches(6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = suggest_ranks(model, batches, budget=5, method=method, steps=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    init = getattr(adarank.inits, method)(steps=4)
    adapters = adarank.adapt(classifier(), "lora", rank=5, init=init, batches=batches)
    assert found == {name: adapter.rank for name, adapter in adapters.items()}
    assert list(found) == adarank.targets.block_linears(model)
    assert sum(found.values()) == 5 * len(found)
    assert len(set(found.values())) > 1
    assert set(found.rank_pattern.values()) == set(found.values()) - {0}


def test_a_configured_init_and_targets_are_taken():
    found = suggest_ranks(classifier(), some_batches(4), 2, eva(steps=3, rho=1.0), targets=["up"])
    assert set(found.values()) == {2}  # rho = 1 leaves no room
    assert all(name.endswith("up") for name in found)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"budget": 0}, r"^budget must be a whole number from 1 to 12 \(got 0\), because net\.layers"),
        ({"budget": 13}, r"^budget must be a whole number from 1 to 12 \(got 13\)"),
        ({"method": "pissa"}, r"^method must be one of eva, .*gora.* \(got 'pissa'\)$"),
        ({"method": adarank.inits.pissa()}, r"^method must be an init that moves ranks between modules"),
        ({"targets": ["nothing"]}, r"^targets='nothing' matches no module"),
        ({"batches": []}, r"^init=eva uses data, but batches is empty"),
        ({"batches": [{"x": torch.randn(4, 8)}], "method": "gora"}, r"^init=gora needs gradients: .* has no loss"),
    ],
)
def test_bad_arguments_are_refused(options, why):
    with pytest.raises(SettingError, match=why):
        suggest_ranks(**{"model": classifier(), "batches": some_batches(2), "budget": 2, **options})


def uneven(model):
    """Ranks 0, 1, 2, … in turn."""
    return SuggestedRanks({name: i % 5 for i, name in enumerate(adarank.targets.block_linears(model))})


@pytest.mark.parametrize("build", [llama, gpt2, bert])
def test_peft_gives_every_module_its_rank_and_one_scale(build):
    """Also what engines that read lora_alpha / r alone would compute, such as vLLM."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = build()
    ranks = uneven(model)
    head = [name for name in ("classifier", "score") if hasattr(model, name)]
    config = peft_config(model, ranks, 2, head)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{k: v for k, v in config.items() if k != "peft_type"}))
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A")
    }
    assert {name: module.r["default"] for name, module in layers.items()} == {n: r for n, r in ranks.items() if r}
    assert {name: len(module.lora_A["default"].weight) for name, module in layers.items()} == {
        name: rank for name, rank in ranks.items() if rank
    }
    scales = {module.scaling["default"] for module in layers.values()}
    assert scales == {config["lora_alpha"] / config["r"]} == {2.0}
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad and "lora_" not in name}
    assert all("modules_to_save" in name for name in trained)
    assert bool(trained) == bool(head)

    labels = {"labels": TOKENS["input_ids"] if build is llama else torch.tensor([0, 2])}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    adapted(**TOKENS, **labels).loss.backward()
    optimizer.step()
    assert all(module.lora_B["default"].weight.abs().sum() > 0 for module in layers.values())


def test_a_name_that_is_the_ending_of_another_does_not_stand_for_both():
    """PEFT, which compares the keys with the endings of names, gave block.proj the rank of proj."""
    peft = pytest.importorskip("peft")
    model = torch.nn.ModuleDict({"proj": torch.nn.Linear(4, 4), "block": torch.nn.ModuleDict()})
    model["block"]["proj"] = torch.nn.Linear(4, 4)
    ranks = SuggestedRanks({"proj": 3, "block.proj": 2})
    assert list(ranks.rank_pattern) == ["^proj", r"block\.proj"]
    config = peft.LoraConfig(rank_pattern=ranks.rank_pattern, target_modules=ranks.target_modules)
    adapted = peft.get_peft_model(model, config).base_model.model
    assert {name: adapted.get_submodule(name).r["default"] for name in ranks} == ranks


def test_a_module_of_rank_0_that_peft_would_adapt_all_the_same_is_refused():
    model = torch.nn.ModuleDict({"query": torch.nn.Linear(4, 4), "block": torch.nn.ModuleDict()})
    model["block"]["query"] = torch.nn.Linear(4, 4)
    with pytest.raises(SettingError, match=r"^PEFT would confuse block\.query with query"):
        peft_config(model, SuggestedRanks({"query": 2, "block.query": 0}), 1)
