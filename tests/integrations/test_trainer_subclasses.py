"""Trainers derived from transformers.Trainer, unchanged: sentence-transformers' and TRL's."""

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
