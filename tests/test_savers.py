"""Whoever saves a model with adapters and an attached controller saves all of it: state, ranks and what it computes."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel
from transformers import MixtralConfig, PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

import adarank
from adarank.adapters.bottleneck import bottlenecks
from tests.representatives import representatives

TARGETS = ["first", "second", "third"]


class Net(PreTrainedModel, PyTorchModelHubMixin):
    """first → norm → second → third → head; everything that saves models takes it."""

    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.norm(self.first(x)).tanh()
        return self.head(self.third(self.second(h).tanh()))


class Mixture(Net):
    """Two stacked experts in the place of `second` and `third`; each row takes both."""

    def __init__(self, config):
        super().__init__(config)
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_local_experts": 2}
        self.second = MixtralExperts(MixtralConfig(**sizes, experts_implementation="eager"))
        self.third = nn.Identity()
        for parameter in self.second.parameters():
            nn.init.normal_(parameter)

    def forward(self, x):
        h = self.norm(self.first(x)).tanh()
        both = torch.arange(2).expand(len(h), 2)
        return self.head(self.second(h, both, h[:, :2].softmax(1)))


def adapted(kind, seed):
    """(model, adapters), the same structure for every seed."""
    torch.manual_seed(seed)
    if kind == "experts":
        model = Mixture(PretrainedConfig())
        return model, adarank.adapt(model, rank=3, targets="experts", alpha=3.0 + seed, init="pissa", train=["head"])
    model = Net(PretrainedConfig())
    if kind == "bottleneck":
        return model, bottlenecks(model, ["second"], rank=2, targets=TARGETS, train=["head"])
    init = "pissa" if kind == "pissa" else "default"
    adapter = "lora" if kind in ("lora", "pissa") else "svd"
    return model, adarank.adapt(model, adapter, rank=4, targets=TARGETS, alpha=3.0 + seed, init=init, train=["head"])


def all_but_second(bank):
    """A score that leaves nothing of the second module once a third of the triplets has to go."""
    return (bank.module != 1) + torch.arange(bank.triplets) / 100


def trained(kind, stage, wrap):
    """(the wrapped model, its optimiser) after a few steps, with a controller attached where there are triplets."""
    model, adapters = adapted(kind, seed=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    controller = None
    if kind != "bottleneck":
        controller = adarank.RankController(
            adapters,
            score=adarank.scores.output() if stage == "new" else all_but_second,
            schedule=adarank.schedules.cubic(initial=12, final=8, t_i=1, t_f=2, total=6, interval=1),
            penalty=adarank.penalties.orthogonality() if kind == "svd" else None,
            pruned_triplets="trainable" if kind == "svd" else "masked",
            compaction={"compacted": "final", "compacting": "progressive"}.get(stage, "off"),
            compact_after=2,
        ).attach(optimizer)
    for step in range({"new": 2, "compacting": 4, "compacted": 6}[stage]):
        torch.manual_seed(step)
        wrap(model)(torch.randn(5, 6)).square().mean().backward()
        if controller is not None:
            controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
    return wrap(model), optimizer  # compaction makes new Parameters, so DDP has to be made again


def by_torch_module(model, optimizer, folder, fresh):
    torch.save(model, folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=False)


def by_torch_state_dict(model, optimizer, folder, fresh):
    torch.save(model.state_dict(), folder / "model.pt")
    fresh.load_state_dict(torch.load(folder / "model.pt"))
    return fresh


def by_safetensors_file(model, optimizer, folder, fresh):
    save_file(model.state_dict(), folder / "model.safetensors")
    fresh.load_state_dict(load_file(folder / "model.safetensors"))
    return fresh


def by_safetensors_model(model, optimizer, folder, fresh):
    save_model(model, folder / "model.safetensors")
    load_model(fresh, folder / "model.safetensors")
    return fresh


def by_save_pretrained(model, optimizer, folder, fresh):
    PreTrainedModel.save_pretrained(model, folder)
    fresh.load_state_dict(load_file(folder / "model.safetensors"))
    return fresh


def by_hub_mixin(model, optimizer, folder, fresh):
    model._save_pretrained(folder)
    return PyTorchModelHubMixin._load_as_safetensor(fresh, folder / "model.safetensors", "cpu", strict=True)


def by_trainer(model, optimizer, folder, fresh):
    Trainer(model=model, args=TrainingArguments(folder, report_to="none", use_cpu=True)).save_model()
    fresh.load_state_dict(load_file(folder / "model.safetensors"))
    return fresh


def by_accelerate_model(model, optimizer, folder, fresh):
    accelerator = Accelerator(cpu=True)
    accelerator.save_model(accelerator.prepare_model(model), folder)
    getattr(fresh, "module", fresh).load_state_dict(load_file(folder / "model.safetensors"))  # it saves DDP's module
    return fresh


def by_accelerate_state(model, optimizer, folder, fresh):
    saving, loading = Accelerator(cpu=True), Accelerator(cpu=True)
    saving.prepare(model, optimizer)
    saving.save_state(folder)
    loading.prepare_model(fresh)
    loading.load_state(folder)
    return fresh


def by_distributed_checkpoint(model, optimizer, folder, fresh):
    dcp.save({"model": model.state_dict()}, checkpoint_id=folder)
    other = copy.deepcopy(model)  # it reads into tensors of the saved shapes
    for tensor in other.state_dict().values():
        tensor.zero_()
    state = {"model": other.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    fresh.load_state_dict(state["model"])
    return fresh


def by_deepcopy(model, optimizer, folder, fresh):
    return copy.deepcopy(model)


def by_pickle(model, optimizer, folder, fresh):
    return pickle.loads(pickle.dumps(model))  # noqa: S301


SAVERS = [save for name, save in list(globals().items()) if name.startswith("by_")]
OF_THE_MODEL_ITSELF = (by_save_pretrained, by_hub_mixin, by_trainer)  # nobody calls them on a wrapped model
KINDS, STAGES = ("svd", "lora", "pissa", "bottleneck", "experts"), ("new", "compacting", "compacted")


@pytest.fixture(scope="module")
def one_process():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


def check(save, kind, stage, wrap, folder):
    model, optimizer = trained(kind, stage, wrap)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = save(model, optimizer, folder, wrap(adapted(kind, seed=1)[0]))
    state = loaded.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    pointers = [p.data_ptr() for p in loaded.parameters() if p.numel()]
    assert len(set(pointers)) == len(pointers)
    assert not set(pointers) & {p.data_ptr() for p in model.parameters() if p.numel()}
    x = torch.randn(3, 6)
    assert torch.equal(loaded.eval()(x), model.eval()(x))
    assert adarank.ranks(loaded) == adarank.ranks(model)


@pytest.mark.parametrize("stage", representatives(STAGES, ["new", "compacted"]))
@pytest.mark.parametrize("kind", representatives(KINDS, ["svd"]))
@pytest.mark.parametrize("save", SAVERS, ids=lambda save: save.__name__)
def test_it_holds_everything(save, kind, stage, tmp_path):
    check(save, kind, stage, lambda model: model, tmp_path)


WRAPPED = [save for save in SAVERS if save not in OF_THE_MODEL_ITSELF]


@pytest.mark.parametrize("stage", representatives(STAGES, ["compacting"]))
@pytest.mark.parametrize("kind", representatives(KINDS, ["svd"]))
@pytest.mark.parametrize("save", WRAPPED, ids=lambda save: save.__name__)
def test_of_a_compiled_model(save, kind, stage, tmp_path):
    check(save, kind, stage, partial(torch.compile, backend="eager"), tmp_path)


@pytest.mark.parametrize("stage", representatives(STAGES, ["new"]))
@pytest.mark.parametrize("kind", representatives(KINDS, ["svd"]))
@pytest.mark.parametrize("save", WRAPPED, ids=lambda save: save.__name__)
def test_of_a_model_in_ddp(save, kind, stage, tmp_path, one_process):
    check(save, kind, stage, DistributedDataParallel, tmp_path)


def test_an_optimiser_s_writes_reach_the_model_through_its_state_dict():
    """An average over a state dict (EMA) writes into it; the controller's flat buffer must not hide that."""
    model, optimizer = trained("svd", "new", lambda model: model)
    with torch.no_grad():
        model.state_dict()["first.Q"].fill_(2.0)
    assert (model.first.Q == 2).all()
    assert (optimizer.adarank_controller.bank.unflatten(optimizer.adarank_controller.bank.weight)["Q", 0] == 2).all()
