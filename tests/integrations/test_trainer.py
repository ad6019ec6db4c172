"""Inside transformers.Trainer: the same run as a plain loop, checkpoints, refusals."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import adarank
from adarank.adapters.lowrank import adapters_of
from adarank.integrations import RankTrainerMixin
from adarank.integrations.trainer import TRAINED
from tests.representatives import representatives

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

    def inputs(self, rows):
        return {"input_ids": self.ids[rows]}


class Ragged(Rows):
    """Rows of one to six tokens, padded to the longest of a batch."""

    def __init__(self):
        super().__init__()
        self.lengths = [1 + i % 6 for i in range(ROWS)]

    def __getitem__(self, i):
        return {**super().__getitem__(i), "input_ids": self.ids[i, : self.lengths[i]]}

    def inputs(self, rows):
        longest = max(self.lengths[i] for i in rows)
        mask = torch.tensor([[at < self.lengths[i] for at in range(longest)] for i in rows]).long()
        return {"input_ids": self.ids[rows, :longest] * mask, "attention_mask": mask}


def padded(features):
    """A collator that knows nothing of the rows."""
    ids = [feature["input_ids"] for feature in features]
    return {
        "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
        "labels": torch.stack([feature["labels"] for feature in features]),
    }


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
    if options.get("pruned_triplets") == "frozen":  # 2 -> 3 triplets a module
        schedule = adarank.schedules.growing(FINAL * n, 3 * n, t_i=2, t_f=4, total=total)
    else:
        schedule = adarank.schedules.cubic(initial=START * n, final=FINAL * n, t_i=2, t_f=4, total=total, interval=1)
    return adarank.RankController(
        adapters,
        score=adarank.scores.adalora(),
        schedule=schedule,
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


def run(
    folder, trainer=RankTrainer, model=None, controller=None, resume=None, before=None, call=None, rows=None, **options
):
    """Train; returns (model, controller, trainer, rows)."""
    model = bert() if model is None else model
    controller = ranked(model) if controller is None else controller
    rows = rows or Rows()
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


def plain(order, accumulation, loss, autocast=False, rows=None, **options):
    """The loop a user would write, on rows in this order: micro-batches of BATCH, the epoch's last one shorter."""
    model = bert()
    controller = ranked(model, **options)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0, fused=True
    )
    controller.attach(optimizer)
    scheduler = transformers.get_scheduler("linear", optimizer, 0, STEPS)
    model.train()
    rows = rows or Rows()
    epochs = [order[at : at + ROWS] for at in range(0, len(order), ROWS)]
    for epoch in epochs:
        batches = [epoch[at : at + BATCH] for at in range(0, ROWS, BATCH)]
        for at in range(0, len(batches), accumulation):
            if controller.step == STEPS:
                return model, controller
            group = batches[at : at + accumulation]
            for batch in group:
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    logits = model(**rows.inputs(batch)).logits
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
    representatives(
        [
            (3, {}, {"compute_loss_func": summed}, cross_entropy),
            (2, {"label_smoothing_factor": 0.1}, {}, smoothed),
            (2, {"bf16": True}, {"compute_loss_func": summed}, cross_entropy),
            (1, {}, {}, cross_entropy),
        ],
        2,
    ),
    ids=["accumulation and a loss of one's own", "label smoothing", "bf16", "plain"],
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


def test_batches_grouped_by_length_are_a_plain_loop_s_on_the_same_rows(tmp_path):
    names = {field.name for field in fields(transformers.TrainingArguments)}
    grouped = (
        {"group_by_length": True} if "group_by_length" in names else {"train_sampling_strategy": "group_by_length"}
    )
    call = {"compute_loss_func": summed, "data_collator": padded}
    model, _, _, rows = run(tmp_path, call=call, rows=Ragged(), gradient_accumulation_steps=2, **grouped)
    order = rows.order[-3 * ROWS :]  # three epochs; before that the sampler has looked at every length
    for at in range(0, ROWS, 2 * BATCH):  # the sampler sorts each accumulation's rows, but for the first of them
        lengths = [rows.lengths[i] for i in order[at : min(at + 2 * BATCH, ROWS)]][1:]
        assert lengths == sorted(lengths, reverse=True)
    other, _ = plain(order, 2, cross_entropy, rows=Ragged())
    assert adarank.ranks(model) == adarank.ranks(other)
    same(weights(model), weights(other), atol=1e-6)


@pytest.mark.slow
def test_a_compiled_trainer_gives_the_weights_and_ranks_of_a_plain_loop(tmp_path, monkeypatch):
    """torch_compile=True with inductor on the CPU, which reorders sums."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # TrainingArguments sets it; it is undone with the test
    options = {"torch_compile": True, "gradient_accumulation_steps": 3}
    model, controller, made, rows = run(tmp_path, call={"compute_loss_func": summed}, **options)
    assert isinstance(made.model_wrapped, torch._dynamo.eval_frame.OptimizedModule)
    other, expected = plain(rows.order, 3, cross_entropy)
    assert controller.step == expected.step == STEPS
    assert adarank.ranks(model) == adarank.ranks(other)
    same(weights(model), weights(other), atol=1e-4)


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 5, "gradient_accumulation_steps": 2}
    whole, a, *_ = run(tmp_path / "a", model=bert(dropout=0.1), **options)
    again, b, *_ = run(tmp_path / "b", model=bert(dropout=0.1), resume=tmp_path / "a" / "checkpoint-5", **options)
    assert a.step == b.step == STEPS
    same(weights(whole), weights(again))
    assert a.last_allocation.ranks == b.last_allocation.ranks
    same(a.buffers, b.buffers)


@pytest.mark.slow
def test_a_resumed_run_whose_budget_grows_is_the_run_that_never_stopped(tmp_path):
    """The Trainer loads the model before it makes the optimiser, and the controller's initial mask then changed it."""
    options, runs = {"save_strategy": "steps", "save_steps": 8}, []
    for folder, resume in (("a", None), ("b", tmp_path / "a" / "checkpoint-8")):
        model = bert()
        controller = ranked(model, pruned_triplets="frozen", allocator=adarank.allocators.grow(1))
        run(tmp_path / folder, model=model, controller=controller, resume=resume, **options)
        runs.append((model, controller))
    same(weights(runs[0][0]), weights(runs[1][0]))
    assert runs[0][1].last_allocation.ranks == runs[1][1].last_allocation.ranks


def test_a_checkpoint_without_optimiser_state_is_not_resumed_from(tmp_path):
    run(tmp_path, save_strategy="steps", save_steps=5, save_only_model=True)
    with pytest.raises(RuntimeError, match=r"at step 5, but its RankController is at 0; .*save_only_model=False"):
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

    # not from the model file, whose names save_pretrained may change and the Trainer then misses with a warning alone
    (tmp_path / "checkpoint-6" / "model.safetensors").unlink()
    with torch.no_grad():
        for adapter in adapters_of(model).values():
            adapter.P.zero_()
    trainer._load_best_model()
    torch.testing.assert_close(logits(model), seen[6][0], rtol=0, atol=0)


@pytest.mark.slow
def test_final_compaction_is_a_plain_loop_s_too(tmp_path):
    model = bert()
    _, controller, trainer, rows = run(tmp_path, model=model, controller=ranked(model, compaction="final"))
    other, _ = plain(rows.order, 1, cross_entropy, compaction="final")
    same(weights(model), weights(other), atol=1e-6)
    assert adarank.ranks(model) == adarank.ranks(other)
    assert {n: a.rank for n, a in adapters_of(model).items()} == controller.last_allocation.ranks
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_checkpoints_of_other_trainers_and_adapters_are_not_loaded(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 5}
    run(tmp_path, **options)
    other = bert()
    with pytest.raises(RuntimeError, match=r"have different adapters: only one of them has bert"):
        run(tmp_path, model=other, controller=ranked(other, targets=["query"]), resume=tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-5" / TRAINED).unlink()
    with pytest.raises(FileNotFoundError, match="saved by a Trainer without RankTrainerMixin"):
        run(tmp_path, resume=tmp_path / "checkpoint-5")


def test_an_init_that_changed_the_base_comes_back_whole(tmp_path):
    """PiSSA's base is W − ΔW₀; a resumed run starts from W, and from other draws."""

    def pissa(seed):
        model = bert()
        torch.manual_seed(seed)
        adapters = adarank.adapt(model, "lora", rank=START, targets=["query"], train=["classifier"], init="pissa")
        return model, adarank.RankController(adapters)

    options = {"save_strategy": "steps", "save_steps": 5}
    (whole, a), (again, b) = pissa(1), pissa(2)
    with torch.no_grad():
        for adapter in adapters_of(again).values():
            adapter.Q.add_(1)
    run(tmp_path / "a", model=whole, controller=a, **options)
    run(tmp_path / "b", model=again, controller=b, resume=tmp_path / "a" / "checkpoint-5", **options)
    same(weights(whole), weights(again), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "resume", "reason"),
    [
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
            None,
            "load_best_model_at_end=True",
        ),
        ({}, "checkpoint-1", "when resuming, the Trainer loads the model before"),
    ],
)
def test_compaction_is_refused_where_the_trainer_would_miss_it(tmp_path, options, resume, reason):
    model = bert()
    with pytest.raises(adarank.SettingError, match=f"compaction='final' creates new Parameters, and {reason}"):
        run(tmp_path, model=model, controller=ranked(model, compaction="final"), resume=resume, **options)


class Distributed(transformers.TrainingArguments):
    """As torchrun's second of two processes would have it; nothing is started."""

    world_size = 2


def test_compaction_is_refused_under_data_parallelism(tmp_path):
    model = bert()
    args = Distributed(str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(adarank.SettingError, match="DistributedDataParallel keeps only the old Parameters"):
        RankTrainer(model, args, controller=ranked(model, compaction="progressive"))


class TwoGpus(transformers.TrainingArguments):
    n_gpu = 2


def test_data_parallel_in_one_process_is_refused(tmp_path):
    model = bert()
    with pytest.raises(adarank.SettingError, match=r"nn\.DataParallel replaces .* use one device"):
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
    with pytest.raises(adarank.SettingError, match=r"(DeepSpeed|FSDP) replaces the adapters' parameters"):
        Sharded(model, arguments(tmp_path), controller=ranked(model))


def test_a_trainer_without_the_mixin_stops_at_the_first_step(tmp_path):
    model = bert()
    controller = ranked(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    controller.attach(optimizer)
    trainer = transformers.Trainer(model, arguments(tmp_path), train_dataset=Rows(), optimizers=(optimizer, None))
    with pytest.raises(RuntimeError, match=r"optimizer.step\(\) was called without controller.after_backward"):
        trainer.train()
    # the same optimiser is welcome in a trainer that has it
    trainer = RankTrainer(
        model, arguments(tmp_path), train_dataset=Rows(), optimizers=(optimizer, None), controller=controller
    )
    trainer.train()
    assert controller.step == STEPS
    with pytest.raises(TypeError, match="controller"):
        RankTrainer(model, arguments(tmp_path), train_dataset=Rows())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"max_steps": STEPS - 1}, {"max_steps": -1, "num_train_epochs": 2}])
def test_a_schedule_of_another_length_is_refused_before_the_first_step(tmp_path, options):
    steps = options["max_steps"] if options["max_steps"] > 0 else 2 * 8
    message = rf"schedule.total must be {steps}, .* \(got {STEPS}\); set total={steps}"
    model = bert()
    before = weights(model)
    with pytest.raises(adarank.SettingError, match=message):
        run(tmp_path, model=model, **options)
    assert all(torch.equal(before[k.replace(".base", "")], v) for k, v in model.state_dict().items() if ".base" in k)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_second_run_asks_for_a_controller_of_its_own(tmp_path):
    *_, trainer, _ = run(tmp_path)
    with pytest.raises(
        RuntimeError,
        match=r"Trainer is at step 0, but its RankController is at 12; .* a new run needs a new controller",
    ):
        trainer.train()


def test_the_log_has_budget_and_mean_rank_and_the_final_ranks_are_printed(tmp_path, capsys):
    _, controller, trainer, _ = run(tmp_path, logging_strategy="steps", logging_steps=1)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == STEPS
    assert logged[0]["budget"] == START * 4
    assert logged[0]["mean_rank"] == START
    assert logged[-1]["budget"] == controller.last_allocation.budget == FINAL * 4
    assert logged[-1]["mean_rank"] == FINAL
    assert [entry["budget"] for entry in logged] == sorted((entry["budget"] for entry in logged), reverse=True)
    assert not any("budget" in entry for entry in trainer.state.log_history if "loss" not in entry)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Final ranks")]
    ranks = ", ".join(f"{name} {rank}" for name, rank in adarank.ranks(trainer.model).items())
    assert printed == [f"Final ranks (mean 2.00): {ranks}"]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [3, None])
def test_training_that_ends_before_the_final_budget_is_warned_of(tmp_path, stop, recwarn):
    class Stops(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop |= state.global_step == stop

    run(tmp_path, call={"callbacks": [Stops()]})
    message = (
        "training ended after 3 steps, before the final budget of 8 triplets, which the schedule reaches at step 9"
    )
    assert [str(w.message).startswith(message) for w in recwarn if "final budget" in str(w.message)] == [True] * bool(
        stop
    )


def test_a_search_for_the_batch_size_is_refused(tmp_path):
    with pytest.raises(
        adarank.SettingError, match=r"auto_find_batch_size must be False .* \(got True\): .* set per_dev"
    ):
        run(tmp_path, auto_find_batch_size=True)


@pytest.mark.slow
def test_an_adapter_that_is_frozen_comes_back_when_resuming(tmp_path):
    def frozen(seed):
        model = bert()
        controller = ranked(model)
        adapter = controller.bank.adapters[0].requires_grad_(False)
        with torch.no_grad():
            adapter.lam.fill_(seed)
        return model, controller

    options = {"save_strategy": "steps", "save_steps": 5}
    (whole, a), (again, b) = frozen(1.0), frozen(2.0)
    run(tmp_path / "a", model=whole, controller=a, **options)
    run(tmp_path / "b", model=again, controller=b, resume=tmp_path / "a" / "checkpoint-5", **options)
    same(weights(whole), weights(again))
    assert (b.bank.adapters[0].lam == 1).all()
    assert b.last_allocation.ranks == a.last_allocation.ranks


@pytest.mark.slow
def test_a_model_made_anew_is_not_the_controller_s(tmp_path):
    controller = ranked(bert())
    trainer = RankTrainer(
        args=arguments(tmp_path), model_init=lambda: bert(), train_dataset=Rows(), controller=controller
    )
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


@pytest.mark.parametrize("optim", representatives(["adamw_torch", "adamw_torch_fused"], 1))
def test_with_a_gradient_scaler_the_run_is_the_one_without(tmp_path, optim, restored):

    expected, a, *_ = run(tmp_path, optim=optim)
    scaled, b, trainer, _ = run(tmp_path, optim=optim, trainer=Scaled)
    assert trainer.accelerator.scaler.get_scale() == 2.0**10  # no overflow
    assert a.step == b.step == STEPS
    assert adarank.ranks(expected) == adarank.ranks(scaled)
    same(weights(expected), weights(scaled), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optim", "counted"), representatives([("adamw_torch", STEPS - 1), ("adamw_torch_fused", STEPS)], 1)
)
def test_an_overflow_does_not_end_the_run(tmp_path, optim, counted, restored):
    class Overflows(Scaled):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss * float("inf") if self.state.global_step == 3 else loss

    options = {"optim": optim, "save_strategy": "steps", "save_steps": 6}
    model, controller, trainer, _ = run(tmp_path, trainer=Overflows, **options)
    assert (trainer.state.global_step, controller.step) == (STEPS, counted)
    assert sum(adarank.ranks(model).values()) == FINAL * 4
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())
    again, resumed, *_ = run(tmp_path, trainer=Overflows, resume=tmp_path / "checkpoint-6", **options)
    assert resumed.step == counted
    same(weights(model), weights(again))


@pytest.mark.slow
def test_peft_s_adalora_keeps_its_starting_rank_in_the_trainer(tmp_path):
    """What the mixin is for: PEFT's allocation waits for a call that the Trainer never makes, and nothing says so."""
    peft = pytest.importorskip("peft")
    adalora = peft.AdaLoraConfig(
        init_r=START, target_r=FINAL, tinit=2, tfinal=4, deltaT=1, total_step=STEPS, target_modules=["query", "value"]
    )
    model = peft.get_peft_model(bert(), adalora)
    transformers.Trainer(model, arguments(tmp_path), train_dataset=Rows()).train()
    singular = [p for name, p in model.named_parameters() if "lora_E" in name]
    assert len(singular) == 4
    assert all(len(p) == START and (p != 0).all() for p in singular)
    assert model.peft_config["default"].rank_pattern is None


PROCESS = """
import sys, torch
from tests.integrations import test_trainer as t

t.ROWS = 16
model, controller, trainer, _ = t.run(sys.argv[1], call={"compute_loss_func": t.summed}, gradient_accumulation_steps=2,
    per_device_train_batch_size=int(sys.argv[2]), **({"ddp_backend": "gloo"} if sys.argv[3] == "2" else {}))
assert trainer.args.world_size == int(sys.argv[3])
torch.save(t.weights(model), f"{sys.argv[1]}/{sys.argv[3]}-{trainer.args.process_index}.pt")
"""


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(tmp_path):
    import subprocess
    import sys

    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([sys.executable, script, tmp_path, "8", "1"], check=True)
    subprocess.run([*torchrun, script, tmp_path, "4", "2"], check=True)
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    same(first, second)
    same(one, first, atol=1e-6)


def test_the_page_s_example_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "trainer.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1)
    names = {"model": bert(), "rows": Rows()}
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "docs/trainer.md", "exec"), names)
    assert names["controller"].step == names["steps"]
    assert sum(adarank.ranks(names["model"]).values()) == 2 * 4
    assert (tmp_path / "adapter" / "adapter.safetensors").is_file()
