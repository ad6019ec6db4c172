"""A fault campaign: random sequences of what people do to an adapted model, checked against a slow reference after
each.

    python tests/test_campaign.py --minutes 60 --first 1000     # as many seeds as fit, with a line for each failure

After every operation logits (training's and evaluation's), ranks and masks are the reference's. An operation that does
not go together with what came before raises a sentence and changes nothing.
"""

import argparse
import copy
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adarank
from adarank.adapters.lowrank import adapters_of
from adarank.errors import SettingError
from tests import test_savers as savers

LAYERS = ("first", "second", "third")
RANK, GAMMA, LR, DECAY, BETAS, EPS = 3, 0.1, 0.02, 0.01, (0.9, 0.999), 1e-8
BEGIN, HOLD, TOTAL, INTERVAL = 2, 4, 16, 2  # of the schedule: t_i, t_f, total, interval
SEEDS, TOGETHER = 200, 20


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.tanh(self.norm(self.first(x)))
        return self.head(torch.tanh(self.third(torch.tanh(self.second(h)))))


def base():
    torch.manual_seed(0)
    return Net().double()


def batch(step):
    draw = torch.Generator().manual_seed(step)
    return torch.randn(7, 6, dtype=torch.float64, generator=draw), torch.randint(0, 3, (7,), generator=draw)


class Reference:
    """AdaLoRA over `Net` from its formulas: dense weights, autograd for everything, loops over modules and triplets."""

    def __init__(self, model, names, budget, compacts):
        self.fixed = {n: t.clone() for n, t in base().state_dict().items()}
        self.trained = {"head.weight": model.head.weight, "head.bias": model.head.bias}
        self.trained |= {f"{n}.{part}": getattr(getattr(model, n), part) for n in names for part in ("Q", "lam", "P")}
        self.trained = {n: t.detach().clone().requires_grad_(True) for n, t in self.trained.items()}
        self.moments = {n: [torch.zeros_like(t), torch.zeros_like(t)] for n, t in self.trained.items()}
        self.averages = {n: [torch.zeros_like(t), torch.zeros_like(t)] for n, t in self.trained.items()}
        self.masks = {n: torch.ones(RANK, dtype=torch.bool) for n in names}
        self.names, self.budget, self.compacts = names, budget, compacts
        self.step = 0
        self.settled = False

    def weight(self, name, masked):
        weight = self.fixed[f"{name}.weight"]
        if name not in self.names:
            return weight
        Q, lam, P = (self.trained[f"{name}.{part}"] for part in ("Q", "lam", "P"))
        for i in range(len(lam)):
            if self.masks[name][i] or not masked:
                weight = weight + 2.0 * lam[i] * torch.outer(P[i], Q[i])
        return weight

    def logits(self, x, training=False):
        """training: statistics of the batch, and pruned triplets take part."""

        def layer(name, h):
            return h @ self.weight(name, masked=not training).T + self.fixed[f"{name}.bias"]

        h = layer("first", x)
        mean, var = h.mean(0), h.var(0, unbiased=False)
        if training:
            for name, value in (("mean", mean), ("var", h.var(0))):
                self.fixed[f"norm.running_{name}"] = 0.9 * self.fixed[f"norm.running_{name}"] + 0.1 * value.detach()
        else:
            mean, var = self.fixed["norm.running_mean"], self.fixed["norm.running_var"]
        h = (h - mean) / (var + 1e-5).sqrt() * self.fixed["norm.weight"] + self.fixed["norm.bias"]
        h = torch.tanh(layer("third", torch.tanh(layer("second", torch.tanh(h)))))
        return h @ self.trained["head.weight"].T + self.trained["head.bias"]

    def train(self):
        x, y = batch(self.step)
        loss = F.cross_entropy(self.logits(x, training=True), y)
        for name in self.names:
            for part in ("Q", "P"):
                A = self.trained[f"{name}.{part}"]
                if len(A):
                    distance = torch.linalg.norm(A @ A.T - torch.eye(len(A), dtype=A.dtype))
                    loss = loss + GAMMA / (2 * len(self.names)) * distance
        keys = [n for n, t in self.trained.items() if t.numel()]
        gradients = dict(zip(keys, torch.autograd.grad(loss, [self.trained[n] for n in keys]), strict=True))
        with torch.no_grad():
            for name, gradient in gradients.items():
                self.adamw(name, gradient)
            if self.step < TOTAL - HOLD:
                for name, gradient in gradients.items():
                    mean, spread = self.averages[name]
                    now = (self.trained[name] * gradient).abs()
                    mean.mul_(0.85).add_(0.15 * now)
                    spread.mul_(0.85).add_(0.15 * (now - mean).abs())
            if self.step > BEGIN and (self.step % INTERVAL == 0 or self.step > TOTAL - HOLD):
                self.allocate()
        self.step += 1

    def adamw(self, name, gradient):
        first, second = self.moments[name]
        first.mul_(BETAS[0]).add_((1 - BETAS[0]) * gradient)
        second.mul_(BETAS[1]).add_((1 - BETAS[1]) * gradient**2)
        t = self.step + 1
        value = self.trained[name]
        value.mul_(1 - LR * DECAY)
        value.sub_(LR * (first / (1 - BETAS[0] ** t)) / ((second / (1 - BETAS[1] ** t)).sqrt() + EPS))

    def allocate(self):
        if not self.settled:
            start, span = RANK * len(self.names), TOTAL - BEGIN - HOLD
            done = min((self.step - BEGIN) / span, 1.0)
            budget = int(self.budget + (start - self.budget) * (1 - done) ** 3)
            scores = []
            for name in self.names:
                s = {part: torch.mul(*self.averages[f"{name}.{part}"]) for part in ("Q", "lam", "P")}
                scores += [
                    (-(s["lam"][i] + s["Q"][i].mean() + s["P"][i].mean()).item(), name, i) for i in range(len(s["lam"]))
                ]
            kept = {(name, i) for _, name, i in sorted(scores, key=lambda entry: entry[0])[:budget]}
            self.masks = {
                n: torch.tensor([(n, i) in kept for i in range(len(m))], dtype=torch.bool)
                for n, m in self.masks.items()
            }
            self.settled = self.step >= TOTAL - HOLD
        for name in self.names:
            self.trained[f"{name}.lam"][~self.masks[name]] = 0.0
        if self.settled and self.compacts:
            self.compact()

    @torch.no_grad()
    def compact(self):
        for name in self.names:
            mask = self.masks[name]
            for part in ("Q", "lam", "P"):
                key = f"{name}.{part}"
                self.trained[key] = self.trained[key].detach()[mask].requires_grad_(True)
                self.moments[key] = [t[mask] for t in self.moments[key]]
                self.averages[key] = [t[mask] for t in self.averages[key]]
            self.masks[name] = mask[mask]


class World:
    """The model that the operations act on, beside its reference. Every operation is a method without arguments."""

    def __init__(self, seed, folder):
        self.random = random.Random(seed)
        self.folder = folder
        self.names = sorted(self.random.sample(LAYERS, self.random.randint(1, 3)), key=LAYERS.index)
        self.budget = self.random.randint(1, RANK * len(self.names))
        self.compaction = self.random.choice(["off", "off", "final"])
        self.merged = False
        self.compacted = False
        self.use(*self.adapted(seed))
        self.reference = Reference(self.model, self.names, self.budget, self.compaction == "final")

    def adapted(self, seed):
        model = base()
        torch.manual_seed(seed)
        return model, adarank.adapt(model, rank=RANK, targets=list(self.names), train=["head"])

    def use(self, model, adapters):
        self.model, self.adapters, self.wrapped = model, adapters, model
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY
        )
        start = sum(a.rank for a in adapters.values())
        self.controller = adarank.RankController(
            adapters,
            score=adarank.scores.adalora(),
            schedule=adarank.schedules.cubic(start, min(self.budget, start), BEGIN, HOLD, TOTAL, INTERVAL),
            penalty=adarank.penalties.orthogonality(GAMMA),
            compaction=self.compaction,
        ).attach(self.optimizer)

    def train(self):
        for _ in range(self.random.randint(1, 6)):
            x, y = batch(self.reference.step)
            F.cross_entropy(self.wrapped.train()(x), y).backward()
            self.controller.after_backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=self.random.random() < 0.5)
            self.reference.train()
            self.compacted |= self.compaction == "final" and self.reference.settled

    def compact(self):
        adarank.compact(self.wrapped, self.optimizer)
        self.reference.compact()
        self.compacted = True

    def move(self):
        """As to another device: every tensor gets new memory."""
        self.model._apply(lambda tensor: tensor.clone())

    def wrap(self):
        compiled = torch.compile(self.model, backend="eager")
        self.wrapped = self.random.choice([self.model, compiled, nn.DataParallel(self.model)])

    def merge(self):
        adarank.merge(self.wrapped)
        self.merged = True

    def unmerge(self):
        adarank.unmerge(self.wrapped)
        self.merged = False

    def resume(self):
        """Into a fresh process, by a way of saving that keeps everything, and training continues."""
        keeps_module = (savers.by_torch_module, savers.by_deepcopy, savers.by_pickle)
        states = (savers.by_torch_state_dict, savers.by_safetensors_file, savers.by_safetensors_model)
        states += (savers.by_distributed_checkpoint,)
        save = self.random.choice(states if self.compacted else states + keeps_module)
        optimizer_state = copy.deepcopy(self.optimizer.state_dict())
        before = (self.model, self.optimizer)
        self.use(*self.adapted(seed=-1))
        self.optimizer.load_state_dict(optimizer_state)
        loaded = save(*before, self.folder, self.model)
        if loaded is not self.model:
            self.use(loaded, adapters_of(loaded))
            self.optimizer.load_state_dict(optimizer_state)

    def reload(self):
        """The finished adapter, on a fresh base."""
        adarank.save_adapter(self.wrapped, self.folder / "adapter")
        other = base()
        adarank.load_adapter(other, self.folder / "adapter", strict=True)
        self.check_evaluation(other)
        assert adarank.ranks(other) == adarank.ranks(self.wrapped)

    def export(self):
        """A LoRA of PEFT has no place for BatchNorm's statistics."""
        adarank.to_peft(self.wrapped, self.folder / "peft")

    def disable(self):
        x, _ = batch(1000)
        plain = base().eval()
        plain.head.load_state_dict(self.model.head.state_dict())
        with adarank.disabled(self.wrapped), torch.no_grad():
            torch.testing.assert_close(self.wrapped.eval()(x), plain(x), rtol=0, atol=1e-9)

    def adapt_again(self):
        adarank.adapt(self.wrapped, rank=2, targets=list(self.names))

    def load_again(self):
        adarank.load_adapter(self.wrapped, self.folder / "adapter")

    def attach_again(self):
        self.controller.attach(self.optimizer)

    def load_another_state(self):
        self.optimizer.load_state_dict(torch.optim.AdamW(self.optimizer.param_groups[0]["params"]).state_dict())

    def step_without_after_backward(self):
        self.optimizer.step()

    def check_evaluation(self, model):
        x, _ = batch(1000)
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(x), self.reference.logits(x).detach(), rtol=0, atol=1e-9)

    def check(self):
        self.check_evaluation(self.wrapped)
        masks = {} if self.merged else {name: a.mask for name, a in adapters_of(self.model).items()}
        for name, mask in masks.items():
            assert torch.equal(mask, self.reference.masks[name]), name
        if not self.merged:
            assert adarank.ranks(self.wrapped) == {n: int(m.sum()) for n, m in self.reference.masks.items()}

    def state(self):
        """Everything that a refused operation must leave alone."""
        tensors = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        trains = {name: p.requires_grad for name, p in self.model.named_parameters()}
        state = copy.deepcopy(self.optimizer.state_dict()["state"])
        return tensors, trains, [type(m) for m in self.model.modules()], state, self.controller.step


WITH_ADAPTERS = ("train", "compact", "move", "wrap", "merge", "resume", "reload", "disable")
MERGED = ("move", "wrap", "unmerge")
REFUSED = ("adapt_again", "load_again", "attach_again", "load_another_state", "step_without_after_backward")
REFUSED_WITH_ADAPTERS = (*REFUSED, "unmerge")
REFUSED_MERGED = (*REFUSED[2:], "merge", "reload", "disable", "compact", "export")


def run(seed):
    """One sequence. Raises AssertionError with the operations so far where the invariant does not hold."""
    done = []
    with tempfile.TemporaryDirectory() as folder:
        world = World(seed, Path(folder))
        world.check()
        for _ in range(world.random.randint(5, 20)):
            refused = world.random.random() < 0.2
            merged = world.merged
            choices = (
                (REFUSED_MERGED if merged else REFUSED_WITH_ADAPTERS)
                if refused
                else MERGED
                if merged
                else WITH_ADAPTERS
            )
            name = world.random.choice(choices)
            done.append(name)
            try:
                (refuse if refused else World.__dict__[name])(world, *([name] if refused else []))
                world.check()
            except Exception as error:
                raise AssertionError(
                    f"seed {seed}, after {', '.join(done)}: {type(error).__name__}: {error}"
                ) from error
    return done


def refuse(world, name):
    before = world.state()
    with pytest.raises((SettingError, RuntimeError), match=r"\w+ \w+"):
        getattr(world, name)()
    after = world.state()
    assert before[1:3] == after[1:3]
    assert before[4] == after[4]
    assert before[0].keys() == after[0].keys()
    for name, tensor in before[0].items():
        assert torch.equal(tensor, after[0][name]), name
    for key, entries in before[3].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(after[3][key][k])) for k, v in entries.items())


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(TOGETHER, SEEDS, TOGETHER))]
)
def test_a_sequence_leaves_the_model_right_or_is_refused(first):
    """The default suite runs a few sequences, `make test-slow` the rest of 200."""
    last = first + (TOGETHER if first else 5)
    operations = sum(len(run(seed)) for seed in range(first, last))
    print(f"seeds {first} to {last - 1}: {operations} operations")
    assert operations


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--first", type=int, default=1000, help="the first seed")
    options = parser.parse_args()
    end, seed, operations, failures = time.monotonic() + 60 * options.minutes, options.first, 0, 0
    torch.set_num_threads(1)
    while time.monotonic() < end:
        try:
            operations += len(run(seed))
        except AssertionError as error:
            failures += 1
            print(error, flush=True)
        seed += 1
    print(f"seeds {options.first} to {seed - 1}: {operations} operations, {failures} failed sequences")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
