"""Trainers derived from transformers.Trainer, unchanged: sentence-transformers' and TRL's (SFT, DPO, GRPO)."""

import pytest
import torch
from torch.nn import functional as F

import adarank
from adarank.harness.models import byte_tokenizer
from adarank.integrations import RankTrainerMixin
from tests.integrations.test_trainer import FINAL, LR, SIZES, STEPS, arguments, ranked, same, transformers, weights
from tests.representatives import representatives

SENTENCES = ["a good film", "dull", "what a play", "never again", "warm and wise", "flat", "a joy", "too long"]
datasets = pytest.importorskip("datasets")


def sentence_model(folder):
    """A tiny random BERT over bytes, mean pooled."""
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    sizes = SIZES | {"vocab_size": len(tokenizer), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return SentenceTransformer(str(folder), device="cpu")


def sentences(folder, resume=None, **options):
    """Train with SentenceTransformerTrainer on pairs; returns (model, controller, trainer)."""
    st = pytest.importorskip("sentence_transformers")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

    class SentenceRankTrainer(RankTrainerMixin, st.SentenceTransformerTrainer):
        pass

    model = sentence_model(folder / "model")
    controller = ranked(model, train=())
    args = arguments(folder / "run", kind=st.SentenceTransformerTrainingArguments, **options)
    rows = datasets.Dataset.from_dict({"anchor": SENTENCES, "positive": SENTENCES[::-1]})
    loss = losses.MultipleNegativesRankingLoss(model)
    trainer = SentenceRankTrainer(model, args, train_dataset=rows, eval_dataset=rows, loss=loss, controller=controller)
    trainer.train(resume)
    return model, controller, trainer


def llama():
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": len(byte_tokenizer()), "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, pad_token_id=0, eos_token_id=3))


def instructions(folder, resume=None, targets=("q_proj", "v_proj"), **options):
    """Train with SFTTrainer on prompts and completions; returns (model, controller, trainer)."""
    trl = pytest.importorskip("trl")

    class SFTRankTrainer(RankTrainerMixin, trl.SFTTrainer):
        pass

    model, tokenizer = llama(), byte_tokenizer()
    tokenizer.eos_token = "[SEP]"
    controller = ranked(model, targets=targets, train=())
    rows = datasets.Dataset.from_dict({"prompt": SENTENCES, "completion": SENTENCES[::-1]})
    args = arguments(folder / "run", kind=trl.SFTConfig, **options)
    trainer = SFTRankTrainer(
        model, args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer, controller=controller
    )
    trainer.train(resume)
    return model, controller, trainer


def loop(model, controller, loss):
    """A plain loop with all rows in every batch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
    controller.attach(optimizer)
    scheduler = transformers.get_scheduler("linear", optimizer, 0, STEPS)
    model.train()
    for _ in range(STEPS):
        loss().backward()
        controller.after_backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def contrastive(model):
    """Multiple negatives ranking, written out: cosines × 20, each anchor's own positive on the diagonal."""

    def loss():
        a, b = (
            F.normalize(model(model.preprocess(side))["sentence_embedding"], dim=1)
            for side in (SENTENCES, SENTENCES[::-1])
        )
        return F.cross_entropy(20 * a @ b.t(), torch.arange(len(SENTENCES)))

    return loss


def completions(model, batch):
    """Cross-entropy of the completions' tokens, the mean over all of them."""

    def loss():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)

    return loss


def test_sentence_transformers_trainer_is_a_plain_loop(tmp_path):
    model, controller, _ = sentences(tmp_path, per_device_train_batch_size=8)
    other = sentence_model(tmp_path / "other")
    expected = ranked(other, train=())
    loop(other, expected, contrastive(other))
    assert controller.step == STEPS
    assert adarank.ranks(model) == adarank.ranks(other)
    same(weights(model), weights(other), atol=1e-6)  # another order of rows within the batch


@pytest.mark.slow
def test_trl_s_sft_trainer_is_a_plain_loop(tmp_path):
    model, controller, trainer = instructions(tmp_path, per_device_train_batch_size=8, bf16=False)
    other = llama()
    expected = ranked(other, targets=("q_proj", "v_proj"), train=())
    batch = next(iter(trainer.get_train_dataloader()))
    loop(other, expected, completions(other, batch))
    assert controller.step == STEPS
    assert adarank.ranks(model) == adarank.ranks(other)
    same(weights(model), weights(other), atol=1e-6)


def log_probabilities(model, ids, mask, counted):
    """Σ log p of the counted tokens of every row, written out, and how many there are, [rows] each."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    found = logits.log_softmax(-1).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
    return (found * counted[:, 1:]).sum(1), counted[:, 1:].sum(1)


def replayed(batches, loss):
    """The loss of one recorded batch after another, for `loop`."""
    remaining = iter(batches)
    return lambda: loss(next(remaining))


@pytest.mark.slow
def test_trl_s_dpo_trainer_is_a_plain_loop(tmp_path):
    """−log σ(β·(log-ratio of chosen − log-ratio of rejected)) to the base without adapters, on the same rows."""
    trl = pytest.importorskip("trl")
    batches = []

    class DPORankTrainer(RankTrainerMixin, trl.DPOTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            batches.append(inputs)
            return super().training_step(model, inputs, *args, **kwargs)

    model, tokenizer = llama(), byte_tokenizer()
    tokenizer.eos_token = "[SEP]"
    controller = ranked(model, targets=("q_proj", "v_proj"), train=())
    columns = {"prompt": SENTENCES, "chosen": SENTENCES[::-1], "rejected": SENTENCES[2:] + SENTENCES[:2]}
    args = arguments(tmp_path / "run", kind=trl.DPOConfig, per_device_train_batch_size=4, bf16=False, beta=0.5)
    DPORankTrainer(
        model,
        llama(),
        args,
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=tokenizer,
        controller=controller,
    ).train()

    other, base = llama(), llama()
    expected = ranked(other, targets=("q_proj", "v_proj"), train=())

    def dpo(batch):
        rows = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
        with torch.no_grad():
            reference = log_probabilities(base, *rows)[0]
        chosen, rejected = (log_probabilities(other, *rows)[0] - reference).chunk(2)
        return -F.logsigmoid(0.5 * (chosen - rejected)).mean()

    loop(other, expected, replayed(batches, dpo))
    assert len(batches) == controller.step == STEPS
    assert adarank.ranks(model) == adarank.ranks(other)
    same(weights(model), weights(other), atol=1e-5)


@pytest.mark.slow
def test_a_reference_model_that_follows_the_policy_is_refused(tmp_path):
    trl = pytest.importorskip("trl")

    class DPORankTrainer(RankTrainerMixin, trl.DPOTrainer):
        pass

    model, tokenizer = llama(), byte_tokenizer()
    tokenizer.eos_token = "[SEP]"
    controller = ranked(model, targets=("q_proj",), train=())
    rows = datasets.Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    args = arguments(tmp_path / "run", kind=trl.DPOConfig, bf16=False, sync_ref_model=True)
    with pytest.raises(adarank.SettingError, match=r"^sync_ref_model must be False with adapters \(got True\)"):
        DPORankTrainer(model, llama(), args, train_dataset=rows, processing_class=tokenizer, controller=controller)


@pytest.mark.slow
def test_trl_s_grpo_trainer_is_a_plain_loop(tmp_path):
    """On the completions that were sampled in training, with rewards and advantages computed from their tokens."""
    trl = pytest.importorskip("trl")
    batches, group = [], 4

    class GRPORankTrainer(RankTrainerMixin, trl.GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            batches.append(super()._generate_and_score_completions(inputs))
            return dict(batches[-1])

    def share_of_even_tokens(completion_ids, **_):
        return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]

    model, tokenizer = llama(), byte_tokenizer()
    tokenizer.eos_token = "[SEP]"
    controller = ranked(model, targets=("q_proj", "v_proj"), train=())
    short = {"max_completion_length": 6, "num_generations": group, "loss_type": "grpo", "beta": 0.0}
    args = arguments(tmp_path / "run", kind=trl.GRPOConfig, per_device_train_batch_size=8, bf16=False, **short)
    GRPORankTrainer(
        model,
        share_of_even_tokens,
        args,
        train_dataset=datasets.Dataset.from_dict({"prompt": SENTENCES}),
        processing_class=tokenizer,
        controller=controller,
    ).train()

    other = llama()
    expected = ranked(other, targets=("q_proj", "v_proj"), train=())

    def grpo(batch):
        ids, counted = batch["completion_ids"], batch["completion_mask"]
        even = ((ids % 2 == 0) * counted).sum(1) / counted.sum(1)
        rewards = even.view(-1, group)
        advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        both = torch.cat([batch["prompt_ids"], ids], 1), torch.cat([batch["prompt_mask"], counted], 1)
        found, tokens = log_probabilities(other, *both, torch.cat([0 * batch["prompt_mask"], counted], 1))
        return -(advantages.flatten() * found / tokens).mean()  # the gradient at a ratio of 1 to the sampling model

    loop(other, expected, replayed(batches, grpo))
    assert len(batches) == controller.step == STEPS
    assert adarank.ranks(model) == adarank.ranks(other)
    same(weights(model), weights(other), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("train", representatives([sentences, instructions], 1))
def test_checkpoints_resume_and_the_best_one_returns(tmp_path, train):
    saving = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, **saving}
    whole, *_ = train(tmp_path / "a", **options)
    checkpoint = str(tmp_path / "a" / "run" / "checkpoint-4")
    again, controller, _ = train(tmp_path / "b", resume=checkpoint, **options)
    assert controller.step == STEPS
    assert sum(adarank.ranks(again).values()) == FINAL * 4
    same(weights(whole), weights(again))

    best, _, trainer = train(
        tmp_path / "c", load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True, **options
    )  # the worst loss: the first checkpoint's
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    found = trainer.evaluate()["eval_loss"]
    logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert found == pytest.approx(logged[0], rel=1e-6)
    assert logged[0] != pytest.approx(logged[-2], rel=1e-4)
    assert sum(adarank.ranks(best).values()) > FINAL * 4  # pruning had not ended there


@pytest.mark.slow
def test_adapters_that_a_fused_head_passes_by_are_named(tmp_path):
    with pytest.warns(UserWarning, match="did not reach the adapters of lm_head; .* leave them out of the targets"):
        instructions(tmp_path, targets=("q_proj", "lm_head"))
