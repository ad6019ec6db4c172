"""Text generation by a causal language model from a prompt; only the response's tokens count in the loss.

A row is [start tokens] prompt response [end token], truncated to the task's length, with label −100 on all but the
response and its end. Conversations use the tokenizer's chat template instead (`chat_templates`), and all their
assistant turns count. Every reference of a prompt is a separate row; evaluation answers each prompt once and compares
the answer with all of its references.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from adarank.errors import SettingError
from adarank.harness.config.spec import TrainConfig
from adarank.harness.data import cache
from adarank.harness.data.batches import evaluation_order, lengths, without_full_mask
from adarank.harness.data.losses import IGNORED, chunked_token_losses, computes_in_chunks, cross_entropy
from adarank.harness.data.metrics import texts as text_metrics
from adarank.harness.data.task_types.chat_templates import labelled, prompt_tokens, template_of, turn_end
from adarank.harness.data.tasks.base import Prompts, Task
from adarank.harness.device import autocast
from adarank.harness.run import parallel
from adarank.harness.run.distributed import world
from adarank.runs.predictions import Columns

AUTO = "AutoModelForCausalLM"
PROCESSOR = "AutoTokenizer"
FRESH_HEAD = False
ONE_PASS = None


def check(config: Any, model: str) -> None:
    from transformers.models.auto import modeling_auto as auto

    arch = config.model_type
    bidirectional = arch in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if arch not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or bidirectional or config.is_encoder_decoder:
        raise SettingError(
            f"{model} must be a causal language model, because this task generates text (got the architecture {arch}); "
            "choose a decoder such as model=smollm2_135m or model=tiny_llama, or a task with labels"
        )


def outputs(task: Task) -> int:
    return 0


@dataclass(frozen=True)
class Encoded:
    """A split as tokens.

    input_ids, labels: one list per pair of a text and a reference; prompts, references: those that evaluation answers,
    [] if it answers none; end: the token that ends an answer; parts: `Prompts.part` of the `prompts`.
    """

    input_ids: list[list[int]]
    labels: list[list[int]]
    prompts: list[list[int]]
    references: list[list[str]]
    tokenizer: Any
    end: int
    max_new_tokens: int
    beams: int = 1
    parts: list[str] | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def pad(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each pair, int64 [pairs]."""
        return lengths(self.input_ids)

    @cached_property
    def counted(self) -> np.ndarray:
        """Tokens of each pair that count in the loss, int64 [pairs]."""
        return np.array([len(row) - row.count(IGNORED) for row in self.labels])


def answered(task: Task, split: str) -> int | None:
    """The number of a split's texts that evaluation answers, None for all."""
    evaluated = split == "test" or (split == "dev" and task.metrics[0] != "loss")
    return task.options["generate_rows"] if evaluated else 0


def encode(task: Task, split: str, tokenizer: Any) -> Encoded:
    """The encoded rows; prompts that have the form of conversations use the tokenizer's chat template if there is one.

    Raises SettingError if a prompt fills the task's length, a conversation has no token that counts, the template
    cannot write it, or evaluation needs more tokens than the model reads.
    """
    rows: Prompts = getattr(task, split)
    templated = task.options.get("template") == "chat" or bool(tokenizer.chat_template)
    read = _conversations if rows.turns is not None and templated else _texts
    count, new = answered(task, split), task.options["max_new_tokens"]
    tokens, prompts, end = read(task, split, tokenizer, count)
    most = max([*map(len, tokens["input_ids"]), *(len(ids) + new for ids in prompts)])
    if most > tokenizer.model_max_length:
        raise SettingError(
            f"task.max_tokens={task.max_length} and task.max_new_tokens={new}: {split} needs up to {most} tokens, but "
            f"the model reads at most {tokenizer.model_max_length}; lower them or choose another model"
        )
    references, parts = rows.references[:count], rows.part and rows.part[:count]
    return Encoded(tokens["input_ids"], tokens["labels"], prompts, references, tokenizer, end, new, parts=parts)


def _texts(task: Task, split: str, tokenizer: Any, count: int | None) -> tuple[cache.Tokens, list[list[int]], int]:
    """(tokens and labels of all pairs, the first `count` prompts, the end token) of plain texts."""
    rows: Prompts = getattr(task, split)
    before, end = special_tokens(tokenizer)
    prompts = [before + ids for ids in tokenizer(rows.prompt, add_special_tokens=False)["input_ids"]]
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    if len(prompts[longest]) >= task.max_length:
        raise SettingError(
            f"task.max_tokens must exceed {len(prompts[longest])}, the number of tokens of prompt {longest + 1} of "
            f"{split}, to leave some for the response (got {task.max_length}; the prompt begins "
            f"{rows.prompt[longest][:40]!r})"
        )
    rows_key = {"rows": f"{task.fingerprint} {split}", "max_length": task.max_length, "kind": task.task_type}
    key = cache.key(tokenizer, **rows_key, specials=[before, end])  # the end token is not the backend's
    tokens = cache.read(key)
    if tokens is None:
        tokens = _pairs(rows, prompts, end, task.max_length, tokenizer)
        cache.write(key, tokens)
    return tokens, prompts[:count], end


def _pairs(
    rows: Prompts, prompts: Sequence[list[int]], end: int, max_length: int, tokenizer: Any
) -> dict[str, list[list[int]]]:
    texts = [text for references in rows.references for text in references]
    owners = [i for i, references in enumerate(rows.references) for _ in references]
    responses = tokenizer(texts, add_special_tokens=False)["input_ids"]
    pairs: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for i, response in zip(owners, responses, strict=True):
        pairs["input_ids"].append([*prompts[i], *response, end][:max_length])
        pairs["labels"].append([*[IGNORED] * len(prompts[i]), *response, end][:max_length])
    return pairs


def _conversations(
    task: Task, split: str, tokenizer: Any, count: int | None
) -> tuple[cache.Tokens, list[list[int]], int]:
    """Like `_texts`, but with the chat template. An answer ends with the special token that the template writes after
    it, or else with the tokenizer's own end token."""
    rows: Prompts = getattr(task, split)
    turns, template = rows.turns or [], template_of(tokenizer)
    end = turn_end(tokenizer, template, turns[0], f"row 1 of {split}")
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    rows_key = {"rows": f"{task.fingerprint} {split}", "max_length": task.max_length, "kind": "chat"}
    key = cache.key(tokenizer, **rows_key, template=template, specials=specials)
    tokens = cache.read(key)
    if tokens is None:
        tokens = _labelled(task, split, tokenizer, template)
        cache.write(key, tokens)
    prompts = [prompt_tokens(tokenizer, template, each) for each in turns[:count]]
    return tokens, prompts, special_tokens(tokenizer)[1] if end is None else end


def _labelled(task: Task, split: str, tokenizer: Any, template: str) -> cache.Tokens:
    """The truncated tokens and labels of every conversation. Raises SettingError if a conversation has no token that
    counts."""
    rows: Prompts = getattr(task, split)
    pairs: cache.Tokens = {"input_ids": [], "labels": []}
    last, row_of_last = -1, 0  # the latest position of a first token that counts, and its row
    for row, (turns, references) in enumerate(zip(rows.turns or [], rows.references, strict=True), 1):
        for text in references:
            whole = [*turns, {"role": "assistant", "content": text}]
            ids, labels = labelled(tokenizer, template, whole, f"row {row} of {split}")
            first = next((place for place, label in enumerate(labels) if label != IGNORED), None)
            if first is None:
                raise SettingError(
                    f"the chat template marks no token of row {row} of {split} as the assistant's, so that none would "
                    f"count (the row begins {turns[0]['content'][:40]!r})"
                )
            last, row_of_last = max((last, row_of_last), (first, row), key=lambda pair: pair[0])
            pairs["input_ids"].append(ids[: task.max_length])
            pairs["labels"].append(labels[: task.max_length])
    if last >= task.max_length:
        begins = rows.turns[row_of_last - 1][0]["content"][:40] if rows.turns else ""
        raise SettingError(
            f"task.max_tokens must exceed {last}, the tokens before the first that counts in row {row_of_last} "
            f"of {split} (got {task.max_length}; the row begins {begins!r})"
        )
    return pairs


def special_tokens(tokenizer: Any) -> tuple[list[int], int]:
    """(tokens that the tokeniser puts before a text, the token that ends a response: end token or separator)."""
    whole, plain = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if end is None:
        raise SettingError(
            f"the model's tokeniser ({type(tokenizer).__name__}) has no end token, so a response could not end; "
            "choose a model whose tokeniser has an eos_token"
        )
    return list(whole[:start]), int(end)


def collate(rows: Encoded, numbers: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels, each [batch, longest], padded on the right."""
    ids, labels = ([torch.tensor(lists[i]) for i in numbers] for lists in (rows.input_ids, rows.labels))
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=rows.pad),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def units(rows: Encoded, numbers: np.ndarray) -> int:
    return int(rows.counted[numbers].sum())


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean cross-entropy per token of the responses."""
    return token_losses(model, batch).sum() / (batch["labels"] != IGNORED).sum()


def token_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The cross-entropy of every token but the first of each row, [batch, longest − 1], 0 if the token does not count.

    batch: see `collate`, or packed by `adarank.harness.data.packing`. A model marked by `losses.enable_chunks` computes
    its logits in chunks.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    labels = batch["labels"][:, 1:]
    if "position_ids" in batch:  # packed: the last token of a row does not predict the first of the next
        labels = labels.masked_fill(batch["position_ids"][:, 1:] == 0, IGNORED)
    labels = F.pad(labels, (0, 1), value=IGNORED)  # the last token predicts nothing
    if computes_in_chunks(model):
        found = chunked_token_losses(model, inputs, labels)
    else:
        found = cross_entropy(model(**inputs, use_cache=False).logits, labels)
    return found[:, :-1]


def evaluate(
    model: nn.Module,
    rows: Encoded,
    names: Sequence[str],
    config: TrainConfig,
    device: torch.device,
    *,
    per_row: Callable[[Columns], None] | None = None,
) -> dict[str, float]:
    def texts() -> list[str]:
        tokens = answers(model, rows.prompts, rows.end, rows.pad, rows.max_new_tokens, config, device)
        return [rows.tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]

    return evaluate_texts(model, rows, names, config, device, token_losses, texts, per_row)


@torch.no_grad()
def evaluate_texts(
    model: nn.Module,
    rows: Encoded,
    names: Sequence[str],
    config: TrainConfig,
    device: torch.device,
    losses: Callable[[nn.Module, Mapping[str, Tensor]], Tensor],
    texts: Callable[[], list[str]],
    per_row: Callable[[Columns], None] | None = None,
) -> dict[str, float]:
    """The loss (the mean over all tokens that count; its exp is the perplexity), and the other metrics if texts are
    answered. losses: see `token_losses`; texts: generates the answers; per_row: receives for every pair of a text and a
    reference the mean loss over the tokens that count, as `score`, float32. Pruned triplets are excluded (λ ⊙ mask)."""
    model.eval()
    sizes = rows.lengths

    def row_losses(numbers: np.ndarray) -> Tensor:
        with autocast(config.precision, device):
            return losses(model, without_full_mask(collate(rows, numbers, device), sizes[numbers])).sum(1)

    order = evaluation_order(sizes, 2 * config.batch_size)
    sums = parallel.gather_batches(order, row_losses).double()
    values = {"loss": sums.sum().item() / int(rows.counted.sum())}
    if per_row is not None:
        means = sums.cpu().numpy()[np.argsort(np.concatenate(order))] / rows.counted
        per_row({"score": means.astype(np.float32)})
    if rows.prompts:
        values |= text_metrics.compute([m for m in names if m != "loss"], texts(), rows.references, rows.parts)
    model.train()
    return values


@torch.no_grad()
def answers(
    model: Any,
    prompts: Sequence[list[int]],
    end: int,
    pad: int,
    max_new_tokens: int,
    config: TrainConfig,
    device: torch.device,
) -> list[list[int]]:
    """The tokens that follow each prompt, decoded greedily until `end` or `max_new_tokens`, in the prompts' order.

    Batches hold 2 · batch_size prompts of similar length, padded on the left, whatever the number of processes.
    """
    order = evaluation_order(lengths(prompts), 2 * config.batch_size)

    def inputs(numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        return left_padded([prompts[i] for i in numbers], pad, device)

    with greedy(model, eos_token_id=end, pad_token_id=pad):
        tokens = decode(model, order, inputs, max_new_tokens, end, config, max_new_tokens=max_new_tokens)
    return [row[: row.index(end)] if end in row else row for row in tokens.tolist()]


@torch.no_grad()
def decode(
    model: Any,
    order: Sequence[np.ndarray],
    inputs: Callable[[np.ndarray], tuple[Tensor, Tensor]],
    width: int,
    fill: int,
    config: TrainConfig,
    **settings: Any,
) -> Tensor:
    """The tokens that model.generate writes for every text, in the texts' order, padded with `fill`, [texts, width].

    order: the texts' numbers by batch; inputs(numbers) -> (input_ids, attention_mask) of a batch; settings: arguments
    of model.generate. A decoder's own prompt is omitted.
    """

    def batch_tokens(numbers: np.ndarray) -> Tensor:
        ids, mask = inputs(numbers)
        whole = world() > 1 and config.shard != "none"  # sharded weights need every process until the end
        with autocast(config.precision, ids.device):
            out = model.generate(input_ids=ids, attention_mask=mask, synced_gpus=whole, **settings)
        out = out if model.config.is_encoder_decoder else out[:, ids.shape[1] :]
        return F.pad(out, (0, width - out.shape[1]), value=fill)

    return parallel.gather_batches(order, batch_tokens)[np.argsort(np.concatenate(order))]


def left_padded(prompts: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(input_ids, attention_mask), each [prompts, longest]: every prompt ends where generation continues."""
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(row)) + row for row in prompts]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@contextmanager
def greedy(model: Any, **settings: Any) -> Iterator[None]:
    """Inside the `with`, model.generate decodes greedily with only these settings and ignores the checkpoint's own
    generation settings (sampling, penalties)."""
    from transformers import GenerationConfig

    original = model.generation_config
    model.generation_config = GenerationConfig(**{"do_sample": False, "num_beams": 1, **settings})
    try:
        yield
    finally:
        model.generation_config = original
