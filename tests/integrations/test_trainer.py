"""Inside transformers.Trainer: the same run as a plain loop, checkpoints, refusals, subclasses."""

import pytest
import torch
from torch.nn import functional as F

import adarank
from adarank.adapters.lowrank import adapters_of
from adarank.integrations import RankTrainerMixin

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
transformers.logging.set_verbosity_error()

STEPS, ROWS, BATCH, START, FINAL = 12, 30, 4, 4, 2
LR, GAMMA = 2e-2, 0.5


class RankTrainer(RankTrainerMixin, transformers.Trainer):
    pass


class Rows(torch.utils.data.Dataset):
    """Token rows with labels; remembers the order in which they were asked for."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(1, 50, (ROWS, 6), generator=generator)
        self.labels = torch.randint(0, 2, (ROWS,), generator=generator)
        self.order = []

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        self.order.append(i)
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 50}


def bert(dropout=0.0):
    torch.manual_seed(0)
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, **drops))


def ranked(model, targets=("query", "value"), train=("classifier",), total=STEPS, **options):
    """The adapters and controller of `model`: 4 -> 2 triplets a module, each with an orthogonality penalty."""
    torch.manual_seed(1)
    adapters = adarank.adapt(model, "svd", rank=START, targets=list(targets), train=list(train))
    n = len(adapters)
    return adarank.RankController(
        adapters,
        score=adarank.scores.adalora(),
        schedule=adarank.schedules.cubic(initial=START * n, final=FINAL * n, t_i=2, t_f=4, total=total, interval=1),
        penalty=adarank.penalties.orthogonality(gamma=GAMMA),
        **options,
    )


def arguments(folder, kind=transformers.TrainingArguments, **options):
    given = {
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LR,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 0.5,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
        "seed": 1,
    }
    return kind(str(folder), **given | options)


def run(folder, trainer=RankTrainer, model=None, controller=None, resume=None, before=None, call=None, **options):
    """Train; returns (model, controller, trainer, rows)."""
    model = bert() if model is None else model
    controller = ranked(model) if controller is None else controller
    rows = Rows()
    options = arguments(folder, **options)
    made = trainer(model, options, train_dataset=rows, eval_dataset=rows, controller=controller, **(call or {}))
    if before is not None:
        before(made)
    made.train(resume_from_checkpoint=resume)
    return model, controller, made, rows


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(one, other, atol=0.0):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def summed(outputs, labels, num_items_in_batch=None):
    """A loss of one's own, normalised over the whole accumulation."""
    return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def plain(order, accumulation, loss, autocast=False, **options):
    """The loop a user would write, on rows in this order: micro-batches of BATCH, the epoch's last one shorter."""
    model = bert()
    controller = ranked(model, **options)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0, fused=True)
    controller.attach(optimizer)
    scheduler = transformers.get_scheduler("linear", optimizer, 0, STEPS)
    model.train()
    rows = Rows()
    epochs = [order[at : at + ROWS] for at in range(0, len(order), ROWS)]
    for epoch in epochs:
        batches = [epoch[at : at + BATCH] for at in range(0, ROWS, BATCH)]
        for at in range(0, len(batches), accumulation):
            if controller.step == STEPS:
                return model, controller
            group = batches[at : at + accumulation]
            for batch in group:
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    logits = model(input_ids=rows.ids[batch]).logits
                    part = loss(logits, rows.labels[batch], sum(map(len, group)))
                part.backward()
            controller.after_backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return model, controller


def cross_entropy(logits, labels, n):
    return F.cross_entropy(logits, labels, reduction="sum") / n


def smoothed(logits, labels, n):
    return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1) / n


@pytest.mark.parametrize(
    ("accumulation", "options", "call", "loss"),
    [
        (1, {}, {}, cross_entropy),
        (3, {}, {"compute_loss_func": summed}, cross_entropy),
        (2, {"label_smoothing_factor": 0.1}, {}, smoothed),
        (2, {"bf16": True}, {"compute_loss_func": summed}, cross_entropy),
    ],
    ids=["plain", "accumulation and a loss of one's own", "label smoothing", "bf16"],
)
def test_the_trainer_gives_the_weights_and_ranks_of_a_plain_loop(tmp_path, accumulation, options, call, loss):
    options = {"gradient_accumulation_steps": accumulation, **options}
    model, controller, _, rows = run(tmp_path, call=call, **options)
    other, expected = plain(rows.order, accumulation, loss, autocast=options.get("bf16", False))
    assert controller.step == expected.step == STEPS
    assert adarank.ranks(model) == adarank.ranks(other)
    assert sum(adarank.ranks(model).values()) == FINAL * 4
    assert len(set(adarank.ranks(model).values())) > 1  # the budget did move
    same(weights(model), weights(other), atol=1e-6)


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 5, "gradient_accumulation_steps": 2}
    whole, a, *_ = run(tmp_path / "a", model=bert(dropout=0.1), **options)
    again, b, *_ = run(tmp_path / "b", model=bert(dropout=0.1), resume=tmp_path / "a" / "checkpoint-5", **options)
    assert a.step == b.step == STEPS
    same(weights(whole), weights(again))
    assert a.last_allocation.ranks == b.last_allocation.ranks
    same(a.buffers, b.buffers)


def test_a_checkpoint_without_optimiser_state_is_not_resumed_from(tmp_path):
    run(tmp_path, save_strategy="steps", save_steps=5, save_only_model=True)
    with pytest.raises(RuntimeError, match=r"at step 5, its RankController at 0; .*save_only_model=False"):
        run(tmp_path, resume=tmp_path / "checkpoint-5")


def test_the_best_checkpoint_comes_back_with_its_mask(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}

    class Scored(RankTrainer):
        """Step 6, where pruning is under way, scores best; the logits it was scored on are kept."""

        def evaluate(self, *args, **kwargs):
            seen.setdefault(self.state.global_step, (logits(self.model), adarank.ranks(self.model)))
            found = super().evaluate(*args, **kwargs) | {"eval_wanted": float(self.state.global_step == 6)}
            return found

    def logits(model):
        model.eval()
        with torch.no_grad():
            return model(input_ids=Rows().ids).logits

    seen = {}
    model, _, trainer, _ = run(
        tmp_path, trainer=Scored, load_best_model_at_end=True, metric_for_best_model="wanted", **options
    )
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-6")
    torch.testing.assert_close(logits(model), seen[6][0], rtol=0, atol=0)
    assert adarank.ranks(model) == seen[6][1] != seen[12][1]


def test_final_compaction_is_a_plain_loop_s_too(tmp_path):
    model = bert()
    _, controller, trainer, rows = run(tmp_path, model=model, controller=ranked(model, compaction="final"))
    other, expected = plain(rows.order, 1, cross_entropy, compaction="final")
    same(weights(model), weights(other), atol=1e-6)
    assert adarank.ranks(model) == adarank.ranks(other)
    assert {n: a.rank for n, a in adapters_of(model).items()} == controller.last_allocation.ranks
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("options", "resume", "reason"),
    [
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
            None,
            "load_best_model_at_end=True",
        ),
        ({}, "checkpoint-1", "to resume, the Trainer loads the model before"),
    ],
)
def test_compaction_is_refused_where_the_trainer_would_miss_it(tmp_path, options, resume, reason):
    model = bert()
    with pytest.raises(adarank.SettingError, match=f"compaction='final' makes new Parameters, and {reason}"):
        run(tmp_path, model=model, controller=ranked(model, compaction="final"), resume=resume, **options)


class Distributed(transformers.TrainingArguments):
    """As torchrun's second of two processes would have it; nothing is started."""

    world_size = 2


def test_compaction_is_refused_under_data_parallelism(tmp_path):
    model = bert()
    args = Distributed(str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(adarank.SettingError, match="DistributedDataParallel knows the old Parameters alone"):
        RankTrainer(model, args, controller=ranked(model, compaction="progressive"))


class TwoGpus(transformers.TrainingArguments):
    n_gpu = 2


def test_data_parallel_in_one_process_is_refused(tmp_path):
    model = bert()
    with pytest.raises(adarank.SettingError, match=r"nn\.DataParallel replaces .* valid: one device"):
        RankTrainer(model, TwoGpus(str(tmp_path), use_cpu=True, report_to=[]), controller=ranked(model))


@pytest.mark.parametrize("name", ["is_deepspeed_enabled", "is_fsdp_enabled"])
def test_deepspeed_and_fsdp_are_refused(tmp_path, name):
    class Sharded(RankTrainerMixin, transformers.Trainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            setattr(self, name, True)

        def _move_model_to_device(self, *_):
            pass

    model = bert()
    with pytest.raises(adarank.SettingError, match="(DeepSpeed|FSDP) replaces the adapters' parameters"):
        Sharded(model, arguments(tmp_path), controller=ranked(model))


def test_a_trainer_without_the_mixin_stops_at_the_first_step(tmp_path):
    model = bert()
    controller = ranked(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    controller.attach(optimizer)
    trainer = transformers.Trainer(model, arguments(tmp_path), train_dataset=Rows(), optimizers=(optimizer, None))
    with pytest.raises(RuntimeError, match=r"optimizer.step\(\) came without controller.after_backward"):
        trainer.train()
    # the same optimiser is welcome in a trainer that has it
    trainer = RankTrainer(
        model, arguments(tmp_path), train_dataset=Rows(), optimizers=(optimizer, None), controller=controller
    )
    trainer.train()
    assert controller.step == STEPS
    with pytest.raises(TypeError, match="controller"):
        RankTrainer(model, arguments(tmp_path), train_dataset=Rows())


@pytest.mark.parametrize("options", [{"max_steps": STEPS - 1}, {"max_steps": -1, "num_train_epochs": 2}])
def test_a_schedule_of_another_length_is_refused_before_the_first_step(tmp_path, options):
    steps = options["max_steps"] if options["max_steps"] > 0 else 2 * 8
    message = f"schedule.total={STEPS}, but the Trainer takes {steps} optimiser steps; valid: total={steps}"
    model = bert()
    before = weights(model)
    with pytest.raises(adarank.SettingError, match=message):
        run(tmp_path, model=model, **options)
    assert all(torch.equal(before[k.replace(".base", "")], v) for k, v in model.state_dict().items() if ".base" in k)


def test_epochs_count_and_a_controller_without_a_schedule_fits_any_length(tmp_path):
    model = bert()
    _, controller, trainer, _ = run(
        tmp_path, model=model, controller=ranked(model, total=16), max_steps=-1, num_train_epochs=2
    )
    assert controller.step == trainer.state.global_step == 16
    model = bert()
    adapters = adarank.adapt(model, "svd", rank=START, targets=["query"])
    penalised = adarank.RankController(adapters, penalty=adarank.penalties.orthogonality(gamma=GAMMA))
    assert run(tmp_path, model=model, controller=penalised)[1].step == STEPS


def test_a_second_run_asks_for_a_controller_of_its_own(tmp_path):
    *_, trainer, _ = run(tmp_path)
    with pytest.raises(RuntimeError, match="Trainer is at step 0, its RankController at 12; .* a controller of its own"):
        trainer.train()


def test_a_model_made_anew_is_not_the_controller_s(tmp_path):
    controller = ranked(bert())
    trainer = RankTrainer(args=arguments(tmp_path), model_init=lambda: bert(), train_dataset=Rows(), controller=controller)
    with pytest.raises(RuntimeError, match=r"the optimiser lacks .*\.Q; build it after adarank\.adapt"):
        trainer.train()


class Scaled(RankTrainer):
    """accelerate's fp16 path on the CPU: a scaler, unscaling in its clipping; the forward pass stays fp32."""

    def create_optimizer(self, *args, **kwargs):
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args, **kwargs):  # the model is prepared by now, without autocast
        self.accelerator.native_amp = True
        self.accelerator.state._mixed_precision = "fp16"
        return super().create_scheduler(*args, **kwargs)


@pytest.fixture
def restored():
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_with_a_gradient_scaler_the_run_is_the_one_without(tmp_path, optim, restored):

    expected, a, *_ = run(tmp_path, optim=optim)
    scaled, b, trainer, _ = run(tmp_path, optim=optim, trainer=Scaled)
    assert trainer.accelerator.scaler.get_scale() == 2.0**10  # no overflow
    assert a.step == b.step == STEPS
    assert adarank.ranks(expected) == adarank.ranks(scaled)
    same(weights(expected), weights(scaled), atol=1e-6)


def test_an_overflow_does_not_end_the_run(tmp_path, restored):
    class Overflows(Scaled):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss * float("inf") if self.state.global_step == 3 else loss

    options = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 6}
    model, controller, trainer, _ = run(tmp_path, trainer=Overflows, **options)
    assert (trainer.state.global_step, controller.step) == (STEPS, STEPS - 1)
    assert sum(adarank.ranks(model).values()) == FINAL * 4
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())
    again, resumed, *_ = run(tmp_path, trainer=Overflows, resume=tmp_path / "checkpoint-6", **options)
    assert resumed.step == STEPS - 1
    same(weights(model), weights(again))


# Trainers derived from it, unchanged


SENTENCES = ["a good film", "dull", "what a play", "never again", "warm and wise", "flat", "a joy", "too long"]


def sentence_model(folder):
    """A sentence-transformers model: a tiny random BERT over bytes, mean pooled."""
    from sentence_transformers import SentenceTransformer

    from adarank.harness.models import byte_tokenizer

    torch.manual_seed(0)
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tokenizer = byte_tokenizer()
    transformers.BertModel(transformers.BertConfig(**SIZES | {"vocab_size": len(tokenizer)}, **drops)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return SentenceTransformer(str(folder), device="cpu")


def test_sentence_transformers_trainer(tmp_path):
    st = pytest.importorskip("sentence_transformers")
    datasets = pytest.importorskip("datasets")

    class SentenceRankTrainer(RankTrainerMixin, st.SentenceTransformerTrainer):
        pass

    model = sentence_model(tmp_path / "model")
    controller = ranked(model, train=())
    pairs = datasets.Dataset.from_dict({"anchor": SENTENCES, "positive": SENTENCES[::-1]})
    args = arguments(tmp_path / "run", kind=st.SentenceTransformerTrainingArguments, gradient_accumulation_steps=2)
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss = MultipleNegativesRankingLoss(model)
    SentenceRankTrainer(model, args, train_dataset=pairs, loss=loss, controller=controller).train()
    assert controller.step == STEPS
    assert sum(adarank.ranks(model).values()) == FINAL * 4


def test_trl_sft_trainer(tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from adarank.harness.models import byte_tokenizer

    class SFTRankTrainer(RankTrainerMixin, trl.SFTTrainer):
        pass

    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "[SEP]"
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": len(tokenizer), "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, pad_token_id=0, eos_token_id=3))
    controller = ranked(model, targets=("q_proj", "v_proj"), train=())
    rows = datasets.Dataset.from_dict({"prompt": SENTENCES, "completion": SENTENCES[::-1]})
    args = arguments(tmp_path, kind=trl.SFTConfig, gradient_accumulation_steps=2)
    SFTRankTrainer(model, args, train_dataset=rows, processing_class=tokenizer, controller=controller).train()
    assert controller.step == STEPS
    assert sum(adarank.ranks(model).values()) == FINAL * 4
