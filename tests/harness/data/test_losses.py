"""The cross-entropy in chunks against Transformers' whole logits: loss, gradients, what the head is given, what is
kept."""

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adarank
from adarank.harness.data.losses import (
    IGNORED,
    chunked_cross_entropy,
    chunked_token_losses,
    computes_in_chunks,
    cross_entropy,
    enable_chunks,
    replaced_head,
    why_whole,
)
from adarank.harness.data.task_types import generate
from adarank.harness.device import autocast
from tests.harness.data.causal_models import FAMILIES, VOCABULARY, build
from tests.harness.data.test_packing import gradients, padded
from tests.representatives import representatives

CPU = torch.device("cpu")


def prepared(kind, dtype):
    """A model whose head is trained, frozen, adapted, tied and trained, or tied and frozen under an adapter."""
    model = build("gpt2" if kind.startswith("tied") else "llama").to(dtype)
    if kind in ("frozen", "adapted", "tied frozen"):
        targets = {"frozen": ["q_proj"], "adapted": ["q_proj", "lm_head"], "tied frozen": ["c_proj"]}[kind]
        adapters = adarank.adapt(model, "svd", rank=3, targets=targets)
        for adapter in adapters.values():
            adapter.lam.data.normal_()
    return model


@pytest.mark.parametrize("kind", ["trained", "frozen", "adapted", "tied", "tied frozen"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_loss_and_gradients_are_those_of_whole_logits(kind, dtype, tolerance, monkeypatch):
    monkeypatch.setattr("adarank.harness.data.losses.LOGITS_PER_CHUNK", 5 * VOCABULARY)
    model, batch = prepared(kind, dtype), padded()
    labels = batch["labels"]
    # as Transformers computes it
    expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    theirs = gradients(model, expected)
    enable_chunks(model)
    found = generate.loss(model, batch)
    ours = gradients(model, found)
    assert found.dtype == dtype
    assert found.item() == pytest.approx(expected.item(), abs=max(tolerance, 1e-6))  # Transformers' own loss is in fp32
    assert ours.keys() == theirs.keys()
    assert ours
    for name, gradient in theirs.items():
        assert (gradient - ours[name]).abs().max() <= max(tolerance, 1e-7 if dtype == torch.float64 else 0), name


@pytest.mark.parametrize("frozen", [False, True])
def test_every_token_s_own_gradient_against_plain_autograd(frozen):
    """Tokens weigh differently in the sum, as they do where a batch is one of several."""
    torch.manual_seed(0)
    head = nn.Linear(8, 31).double().requires_grad_(not frozen)
    hidden, labels = torch.randn(10, 8, dtype=torch.float64, requires_grad=True), torch.randint(31, (10,))
    weights = torch.rand(10, dtype=torch.float64)
    found = chunked_cross_entropy(head, hidden, labels, 3, frozen)
    logits = hidden @ head.weight.T + head.bias
    expected = logits.logsumexp(1) - logits[torch.arange(10), labels]
    torch.testing.assert_close(found, expected)
    wanted = [hidden] if frozen else [hidden, head.weight, head.bias]
    torch.testing.assert_close(
        torch.autograd.grad((weights * found).sum(), wanted), torch.autograd.grad((weights * expected).sum(), wanted)
    )


@pytest.mark.parametrize("kind", ["trained", "frozen"])
def test_under_autocast_it_differs_by_rounding_alone(kind):
    model, batch = prepared(kind, torch.float32), padded()
    with autocast("bf16", CPU):
        expected = generate.loss(model, batch)
    theirs = gradients(model, expected)
    enable_chunks(model)
    with autocast("bf16", CPU):
        found = generate.loss(model, batch)
    ours = gradients(model, found)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), abs=1e-3)
    size = max(gradient.abs().max() for gradient in theirs.values())
    assert all((gradient - ours[name]).abs().max() <= 0.02 * size for name, gradient in theirs.items())


def test_dropout_in_front_of_an_adapted_head_is_the_same_when_a_chunk_is_computed_again():
    torch.manual_seed(0)
    head = nn.Linear(8, 31)
    hidden, labels = torch.randn(6, 8, requires_grad=True), torch.randint(31, (6,))
    drawn = []

    def dropping(x):
        mask = torch.rand(x.shape) < 0.5
        drawn.append(mask)
        return head(x * mask)

    loss = chunked_cross_entropy(dropping, hidden, labels, 3)
    (found,) = torch.autograd.grad(loss.sum(), hidden)
    kept = torch.cat(drawn[:2])
    (expected,) = torch.autograd.grad(F.cross_entropy(head(hidden * kept), labels, reduction="sum"), hidden)
    torch.testing.assert_close(found, expected)


class Recording(nn.Linear):
    """A head that notes how many tokens it is given."""

    def forward(self, x):
        self.given.append(tuple(x.shape[:-1]))
        return super().forward(x)


def test_the_head_is_given_counted_tokens_alone_chunk_by_chunk(monkeypatch):
    monkeypatch.setattr("adarank.harness.data.losses.LOGITS_PER_CHUNK", 5 * VOCABULARY)
    model, batch = build("llama").requires_grad_(False), padded()
    head = Recording(32, VOCABULARY, bias=False)
    head.given = []
    model.set_output_embeddings(head)
    enable_chunks(model)
    with torch.no_grad():
        generate.loss(model, batch)
    count = int((batch["labels"][:, 1:] != -100).sum())
    assert head.given == [(5,)] * (count // 5) + [(count % 5,)] * (count % 5 > 0)


def test_no_counted_token_has_no_loss_and_no_gradient():
    model, batch = build("llama"), padded()
    labels = torch.full_like(batch["labels"], -100)
    losses = chunked_token_losses(model, {"input_ids": batch["input_ids"]}, labels)
    assert losses.eq(0).all()
    assert all(not gradient.any() for gradient in gradients(model, losses.sum()).values())


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_as_large_as_the_logits_is_kept(frozen):
    """Of 512 tokens and a vocabulary of 4,096, in chunks of 16: bytes that autograd holds between the passes."""
    head, hidden = nn.Linear(16, 4096).requires_grad_(not frozen), torch.randn(512, 16, requires_grad=True)
    labels, alive = torch.randint(4096, (512,)), weakref.WeakSet()

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor
            alive.add(self)

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        loss = chunked_cross_entropy(head, hidden, labels, 16, frozen)
        sizes = {k.tensor.untyped_storage().data_ptr(): k.tensor.untyped_storage().nbytes() for k in alive}
        loss.sum().backward()
    assert 0 < sum(sizes.values()) < 512 * 4096 * 4 / 20


def test_the_head_is_itself_again_whatever_happens():
    model = build("llama")
    before = dict(vars(model.lm_head))
    with replaced_head(model, lambda head, x: x):
        assert model(torch.tensor([[1, 2]])).logits.shape == (1, 2, 32)
    with pytest.raises(IndexError), replaced_head(model, lambda head, x: x):
        model(torch.tensor([[VOCABULARY]]))
    assert vars(model.lm_head) == before
    assert model(torch.tensor([[1, 2]])).logits.shape == (1, 2, VOCABULARY)
    patched = model.lm_head.forward = lambda x: x  # as accelerate's hooks do
    with replaced_head(model, lambda head, x: 2 * head(x)):
        pass
    assert model.lm_head.forward is patched


CHANGED = {"gemma2": "final_logit_softcapping", "granite": "logits_scaling", "cohere": "logit_scale"}


@pytest.mark.parametrize("family", representatives(FAMILIES, ("llama", "gpt2", "gemma2", "granite")))
def test_models_that_change_their_logits_are_found(family):
    why = why_whole(build(family), 64, "fp32", CPU)
    assert why is None if family not in CHANGED else CHANGED[family] in why


def test_a_large_vocabulary_is_summed_exactly():
    """Summed as [rows, vocabulary, tokens], torch loses 8e-5 nats here without AVX-512; on SmolLM2's logits it lost 2e-4,
    so that `why_whole` refused chunks in fp32."""
    torch.manual_seed(0)
    logits = (5 * torch.randn(2, 16, 49_152)).requires_grad_()
    labels = torch.randint(49_152, (2, 16)).index_fill(1, torch.tensor([3, 15]), IGNORED)
    found = cross_entropy(logits, labels)
    exact = F.cross_entropy(logits.double().transpose(1, 2), labels, reduction="none")
    assert (found.dtype, found.shape) == (torch.float32, labels.shape)
    assert (found - exact).abs().max() < 3e-5
    assert not found[:, [3, 15]].any()
    ours, theirs = (torch.autograd.grad(losses.sum(), logits)[0] for losses in (found, exact))
    assert (ours - theirs).abs().max() < 1e-5


def test_a_change_of_logits_that_no_setting_names_is_found():
    from transformers import LlamaConfig, LlamaForCausalLM

    class Scaled(LlamaForCausalLM):
        def forward(self, *arguments, **named):
            found = super().forward(*arguments, **named)
            found.logits = 1.1 * found.logits
            return found

    class Masked(LlamaForCausalLM):
        def forward(self, *arguments, **named):
            found = super().forward(*arguments, **named)
            found.logits[..., VOCABULARY - 1] = 0.0
            return found

    config = build("llama").config
    assert isinstance(config, LlamaConfig)
    assert why_whole(Scaled(config), 64, "fp32", CPU) == "it changes its logits after its head"
    assert why_whole(Masked(config), 64, "fp32", CPU) == "its forward pass needs all logits at once"


def test_evaluation_asks_for_chunks_as_well(monkeypatch):
    model, batch = build("llama").eval(), padded()
    with torch.no_grad():
        expected = generate.token_losses(model, batch)
        enable_chunks(model)
        assert computes_in_chunks(model)
        with monkeypatch.context() as changed:
            changed.setattr("adarank.harness.data.losses.LOGITS_PER_CHUNK", 1)
            torch.testing.assert_close(generate.token_losses(model, batch), expected)


def test_a_frozen_head_in_4_bits():
    pytest.importorskip("bitsandbytes")
    from adarank.harness.quantize import nf4

    model = build("llama").requires_grad_(False)
    nf4(model=model, device=CPU, precision="fp32")
    head = model.model.layers[0].mlp.gate_proj  # the lm_head itself stays as it is
    assert type(head).__name__ == "Linear4bit"
    hidden, labels = torch.randn(7, 32, requires_grad=True), torch.randint(48, (7,))
    found = chunked_cross_entropy(head, hidden, labels, 3, frozen=True)
    expected = F.cross_entropy(head(hidden), labels, reduction="none")
    torch.testing.assert_close(found, expected)
    theirs, ours = (torch.autograd.grad(loss.sum(), hidden) for loss in (expected, found))
    torch.testing.assert_close(ours, theirs)
