"""The cross-entropy of a causal language model without ever holding all logits [tokens, vocabulary] at once.

The model's own forward pass runs up to its output matrix (its head), which returns losses instead of logits: for every
chunk of tokens it computes the logits and their cross-entropy, and keeps only the latter. Memory therefore grows with
the number of tokens and with the vocabulary, but not with their product, and DDP, FSDP2 and hooks see an ordinary
forward pass. A model that changes its logits after the head would change the losses instead, so `why_whole` detects
such models and excludes them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from adarank.harness.device import at_least_fp32, autocast

IGNORED = -100  # the label of a token that does not count
LOGITS_PER_CHUNK = 2**25  # 128 MiB in fp32
LOGITS_AUTO = 2**28  # above this many logits per forward pass, train.chunked_loss=auto computes them in chunks
CHECKED_TOKENS = 64  # of each of the two rows with which a model is tested
# The names in configs of the factors and caps of models that change their logits after the head.
CHANGED_LOGITS = (
    "final_logit_softcapping", "logits_scaling", "logit_scale", "logits_soft_cap", "output_logit_soft_cap",
    "logits_mup_width_multiplier", "lm_head_multiplier",
)  # fmt: skip
Head = Callable[[Tensor], Tensor]  # hidden states [tokens, width] -> logits [tokens, vocabulary]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of every token, in fp32 (fp64 for fp64 logits), shaped like `labels`; 0 for an ignored one.

    logits: [rows, tokens, vocabulary]; labels: int64 [rows, tokens]. torch also takes logits as [rows, vocabulary,
    tokens], but on a CPU without AVX-512 it sums them there several times slower and less exactly.
    """
    flat = at_least_fp32(logits).flatten(0, 1)
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="none").view_as(labels)


def chunked_cross_entropy(head: Head, hidden: Tensor, labels: Tensor, chunk: int, frozen: bool = False) -> Tensor:
    """The cross-entropy of every token, [tokens], in fp32 (fp64 for fp64 inputs), computed `chunk` tokens at a time.

    hidden: [tokens, width]; labels: int64 [tokens], none of them ignored; frozen: whether no parameter of the head is
    trained. If so, the forward pass computes the gradient with respect to `hidden` while a chunk's logits are in
    memory; otherwise the backward pass recomputes each chunk's logits. Neither supports second derivatives.
    """
    if frozen and hidden.requires_grad and torch.is_grad_enabled():
        losses: Tensor = _FrozenHead.apply(hidden, head, labels, chunk)  # type: ignore[no-untyped-call]
        return losses
    found = []
    for h, label in zip(hidden.split(chunk), labels.split(chunk), strict=True):
        if torch.is_grad_enabled():
            found.append(checkpoint(_losses, head, h, label, use_reentrant=False))
        else:
            found.append(_losses(head, h, label))
    return torch.cat(found)


def _losses(head: Head, hidden: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(at_least_fp32(head(hidden)), labels, reduction="none")


class _FrozenHead(torch.autograd.Function):
    """`chunked_cross_entropy` for a frozen head: the forward pass computes ∂ loss_t / ∂ hidden_t [tokens, width] of
    every token t, and the backward pass scales it. A token's loss depends only on its own hidden state."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, labels: Tensor, chunk: int) -> Tensor:
        gradients = torch.empty_like(hidden)
        found = []
        for h, label, gradient in zip(hidden.split(chunk), labels.split(chunk), gradients.split(chunk), strict=True):
            with torch.enable_grad():
                inputs = h.detach().requires_grad_()
                losses = _losses(head, inputs, label)
            gradient.copy_(torch.autograd.grad(losses, inputs, torch.ones_like(losses))[0])
            found.append(losses.detach())
        ctx.save_for_backward(gradients)
        return torch.cat(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (gradients,) = ctx.saved_tensors
        return gradients * grad.to(gradients.dtype).unsqueeze(1), None, None, None


@contextmanager
def replaced_head(model: Any, function: Callable[[Head, Tensor], Tensor]) -> Iterator[None]:
    """Inside the `with`, the model's output matrix, adapted or not, returns function(its forward method, x) instead of
    its logits. A model that names no output matrix is not changed."""
    head = getattr(model, "module", model).get_output_embeddings()
    if head is None:
        yield
        return
    forward, patched = head.forward, "forward" in vars(head)  # by a hook of accelerate, say
    head.forward = lambda x: function(forward, x)
    try:
        yield
    finally:
        if patched:
            head.forward = forward
        else:
            del head.forward


def enable_chunks(model: Any) -> None:
    """Make `generate` compute this model's losses in chunks from now on."""
    model.computes_losses_in_chunks = True


def computes_in_chunks(model: Any) -> bool:
    """Whether `enable_chunks` was called for the model, which may since have been wrapped in DDP."""
    return getattr(getattr(model, "module", model), "computes_losses_in_chunks", False)


def chunked_token_losses(model: Any, inputs: Mapping[str, Tensor], labels: Tensor, chunk: int | None = None) -> Tensor:
    """The cross-entropy of every position's prediction, [rows, tokens], 0 for ignored positions.

    model: a causal language model, perhaps in DDP; inputs: its arguments; labels: the token to predict at each
    position, int64 [rows, tokens], or IGNORED; ignored positions skip the head. chunk: tokens per chunk, by default as
    many as have LOGITS_PER_CHUNK logits.
    """
    plain = getattr(model, "module", model)
    frozen = not any(p.requires_grad for p in plain.get_output_embeddings().parameters())
    tokens = chunk or max(1, LOGITS_PER_CHUNK // plain.config.get_text_config().vocab_size)

    def losses(head: Head, hidden: Tensor) -> Tensor:
        counted = labels != IGNORED
        found = hidden.new_zeros(labels.shape, dtype=torch.promote_types(hidden.dtype, torch.float32))
        kept = hidden[counted]
        if len(kept):
            return found.masked_scatter(counted, chunked_cross_entropy(head, kept, labels[counted], tokens, frozen))
        return found + 0 * hidden.sum(-1).to(found.dtype)  # so that the graph for backward() is never empty

    with replaced_head(model, losses):
        found: Tensor = model(**inputs, use_cache=False).logits
    return found


@torch.no_grad()
def why_whole(model: Any, longest: int, precision: str, device: torch.device) -> str | None:
    """Why the model's logits cannot be computed in chunks, as the end of a sentence; None if they can.

    longest: tokens of the longest row. The config must not contain a factor or cap for logits, and the losses of two
    rows of random tokens must equal those from whole logits.
    """
    config = model.config.get_text_config()
    for name in CHANGED_LOGITS:
        if getattr(config, name, None) not in (None, 0, 1):
            return f"it changes its logits after its head ({name}={getattr(config, name)})"
    if model.get_output_embeddings() is None:
        return "it names no output matrix"
    generator = torch.Generator().manual_seed(0)
    size = (2, min(longest, CHECKED_TOKENS))
    ids = torch.randint(config.vocab_size, size, generator=generator).to(device)
    inputs, labels = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids.roll(-1, 1)
    training = model.training
    model.eval()
    try:
        with autocast(precision, device):
            expected = cross_entropy(model(**inputs, use_cache=False).logits, labels)
            found = chunked_token_losses(model, inputs, labels, chunk=CHECKED_TOKENS // 3)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return "its forward pass needs all logits at once"
    finally:
        model.train(training)
    tolerance = 1e-2 if precision == "bf16" else 1e-5
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
        return "it changes its logits after its head"
    return None
