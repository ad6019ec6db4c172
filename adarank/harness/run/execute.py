"""Executes one run, from a composed configuration to a finished folder."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

import adarank
from adarank.adaptation import reach
from adarank.adapters.bottleneck import bottlenecks_of
from adarank.adapters.layers import numel
from adarank.errors import RunFailed
from adarank.harness.config.spec import Spec
from adarank.harness.data.batches import Encoded, init_batches
from adarank.harness.data.losses import computes_in_chunks
from adarank.harness.data.metrics import higher_is_better
from adarank.harness.data.metrics.labels import majority
from adarank.harness.data.metrics.texts import not_computed, rules
from adarank.harness.data.task_types import classify
from adarank.harness.device import base_mib, device_name, emulates_bf16
from adarank.harness.models import DTYPES
from adarank.harness.run import distributed, identity
from adarank.harness.run.captured import check_capture
from adarank.harness.run.causal import prepare_causal
from adarank.harness.run.checkpoint import Saver, bytes_to_save, write_sharded
from adarank.harness.run.distributed import is_main, on_main, say
from adarank.harness.run.prepare import Prepared, describe_schedule, enable_gradient_checkpointing, prepare
from adarank.harness.run.resolve import Resolved, build, resolve
from adarank.harness.run.train import Diverged, Outcome, train
from adarank.harness.tracking import no_copy, open_log
from adarank.runs import lock, predictions, state
from adarank.runs.files import (
    ADAPTER,
    CHECKPOINT,
    CONFIG,
    SUMMARY,
    TRACEBACK,
    UNLABELLED,
    first_line,
    is_unwritable,
    json_line,
    read_json,
    write_json,
    write_text,
    write_traceback,
)
from adarank.runs.modules import describe_modules
from adarank.targets import block_linears


def execute(
    config: DictConfig,
    overrides: Sequence[str],
    choices: Mapping[str, Any],
    began: Callable[[Path], object] | None = None,
) -> float | None:
    """Execute the run of a composed configuration, or skip it if it is finished; returns the run's best dev metric.
    began: called with the run's folder before training.

    Nothing is written before the settings, the data, the model and the adapters have been checked. Raises SettingError
    (exit status 2) or RunFailed (1).
    """
    run = resolve(config, overrides, choices)
    spec, folder = run.spec, run.folder
    provenance = identity.provenance()
    if on_main(partial(state.is_finished, folder, spec.force, spec.retry)):
        if is_main():
            state.warn_if_other_code(folder, provenance["commit"])
        print(f"{run.title}: finished already, {folder} (force=true runs it again)", flush=True)
        return on_main(partial(best_of, folder))
    on_main(partial(lock.refuse_locked, folder))  # fails early; the lock below decides

    built = build(spec, run.task, run.base, run.device)
    if spec.train.gradient_checkpointing:
        enable_gradient_checkpointing(built.model)
    encoded = {
        name: run.task_type.encode(run.task, name, built.processor)
        for name in ("train", "dev", "test", "unlabelled_test")
        if getattr(run.task, name) is not None and (spec.test or name in ("train", "dev"))
    }
    torch.manual_seed(spec.seed)  # for the factors
    collate, size = run.task_type.collate, spec.train.batch_size
    batches = init_batches(collate, encoded["train"], size, spec.seed, run.device)
    prepared = prepare(built, run.targets, spec, run.device, batches, run.rank_map)
    check_capture(spec, prepared.controller)
    prepared = prepare_causal(prepared, spec, run.task, encoded["train"], run.device)
    about = describe(run, prepared, provenance)
    needed = bytes_to_save(
        prepared.model,
        adapted=spec.adapter is not None,
        adaptive=prepared.controller is not None,
        checkpoints=spec.checkpoint_seconds is not None,
    )
    on_main(partial(state.check_space, spec.out, folder, needed))
    print_start(run, prepared, len(encoded["dev"]))
    on_main(partial(state.make_folder, folder))
    with ExitStack() as stack:
        held = on_main(lambda: stack.enter_context(lock.locked(folder)))
        if on_main(partial(state.is_finished, folder, spec.force, "failed")):
            print(f"{run.title}: finished by another process in the meantime, {folder}", flush=True)
        else:
            if began is not None:
                on_main(partial(began, folder))
            try:
                train_in_folder(run, prepared, encoded, about, held)
            except OSError as error:  # a full disk, say; treated as if the run had been killed
                if not is_unwritable(error, folder):
                    raise
                message = (
                    f"{run.title} stopped because {folder} cannot be written ({error.strerror}); its files stay, and "
                    "the same command resumes the run"
                )
                if distributed.world() > 1:
                    distributed.fail(message)
                raise RunFailed(message) from None
    return on_main(partial(best_of, folder))


def print_start(run: Resolved, prepared: Prepared, dev: int) -> None:
    where = f"{device_name(run.device)}, {run.spec.train.precision}"
    print(f"{run.title}: {run.base.name} on {run.task.name}, {where} -> {run.folder}", flush=True)
    if run.spec.train.precision == "bf16" and emulates_bf16(run.device):
        print("  this processor emulates bf16; train.precision=fp32 takes a fraction of the time", flush=True)
    if prepared.adapters:
        said = "target_modules" if run.spec.target_modules else f"targets={run.spec.targets}"
        adapted, others = [*prepared.adapters, *prepared.unadapted], block_linears(prepared.model)
        print(f"  {said}: {describe_modules(adapted, others)}", flush=True)
        print(f"  adapters on {reach(prepared.model).share:.0%} of the base's matrix parameters", flush=True)
    if added := list(bottlenecks_of(prepared.model).values()):
        print(f"  {len(added)} bottlenecks of width {added[0].width}", flush=True)
    if run.spec.adaptive and prepared.controller is not None:
        print(f"  {describe_schedule(prepared.controller)}", flush=True)
    if prepared.packing is not None:
        how = "restarting positions" if prepared.packing == "positions" else "block-diagonal masks"
        print(f"  packs rows into bins, separated by {how}", flush=True)
    if computes_in_chunks(prepared.model):
        print("  computes the logits in chunks of tokens", flush=True)
    if skipped := run.spec.train.skipped_evaluations(dev):
        print(
            f"  skips {skipped} evaluation{'s' * (skipped > 1)} on dev, which would read more than train.eval_share="
            f"{run.spec.train.eval_share:g} times as many rows as training (train.eval_share=null skips none)",
            flush=True,
        )


def best_of(folder: Path) -> float | None:
    """metric.best of a finished run."""
    best: float | None = read_json(folder / SUMMARY)["metric"]["best"]
    return best


def train_in_folder(
    run: Resolved, prepared: Prepared, encoded: Mapping[str, Any], about: Mapping[str, Any], held: Path | None
) -> None:
    """Train in the run's folder, from the last checkpoint if the run was interrupted or failed. held: the lock file, if
    any. Any failure during or after training counts as the run's failure, and its checkpoint stays for retry=failed."""
    spec, folder, metrics = run.spec, run.folder, run.task.metrics
    record = spec.record()
    on_main(partial(state.clean, folder))
    resumes = on_main(partial(state.is_resumable, folder)) and not spec.force
    saver = Saver(folder / CHECKPOINT, spec.checkpoint_seconds, resumes)
    if saver.step is None:
        on_main(partial(begin, folder, record))
    else:
        say(run.title, f"resumes from the checkpoint after step {saver.step}")
    tracker = no_copy if spec.tracker is None else spec.tracker
    group = Path(spec.out).absolute().name
    with ExitStack() as stack:
        heart: Any = distributed.Nothing()
        log: Any = heart

        def open_files() -> None:
            nonlocal heart, log
            heart = stack.enter_context(state.Heartbeat(folder, held, saver.step or 0, spec.train.steps))
            opened = open_log(
                tracker, folder=folder, config=record, name=run.title, group=group, resume_step=saver.step
            )
            log = stack.enter_context(opened)

        on_main(open_files)
        try:
            keep = partial(keep_best, adapted=spec.adapter is not None, folder=folder)
            outcome = train(prepared, encoded, spec, metrics, log, heart.beat, keep, saver, run.task_type)
            # Other adapters keep the form in which they were trained.
            counts = {**about["parameters"], "kept": parameters(prepared.model)["kept"]}
            found = results(outcome, prepared, run)
            if outcome.predictions:
                on_main(partial(predictions.write, folder, outcome.predictions))
            if "unlabelled_test" in encoded:
                found["predictions"] = predict(run, prepared.model, encoded["unlabelled_test"])
            log.finish({"status": "finished", "error": None, **about, **found, "parameters": counts})
        except Exception as error:
            if is_unwritable(error, folder):
                raise
            foreseen = isinstance(error, RunFailed)
            how = "diverged" if isinstance(error, Diverged) else "failed"
            message = str(error) if foreseen else first_line(error)
            where = f"({folder})" if foreseen else write_traceback(folder / TRACEBACK)
            log.finish({"status": how, "error": message, **about})
            heart.end(how, message)
            sentence = f"{run.title} {how}: {message} {where}".rstrip()
            if not foreseen and distributed.world() > 1:
                distributed.fail(sentence)
            raise RunFailed(sentence) from None
        heart.end("finished")
    if is_main():
        saver.remove()
    shown, split = (outcome.last, "dev") if outcome.test is None else (outcome.test, "test")
    say(run.title, f"{split} {metrics[0]} {shown:.4f} in {outcome.train_s:.0f} s of training")
    if further := others(outcome.tested or {}, metrics[1:], about["not_computed"]):
        say(run.title, f"{split} {further}")


def predict(run: Resolved, model: nn.Module, rows: Encoded) -> dict[str, Any]:
    """Write predictions.jsonl, the best checkpoint's predictions for a test set without labels; returns the file and
    the number of rows."""
    lines = classify.predict(model, rows, run.task.labels, run.spec.train, run.device)
    on_main(lambda: write_text(run.folder / UNLABELLED, "".join(map(json_line, lines))))
    print(f"  test has no labels; the predictions for its {len(lines)} rows are in {UNLABELLED}", flush=True)
    return {"file": UNLABELLED, "rows": len(lines)}


def others(tested: Mapping[str, float], names: Sequence[str], absent: Mapping[str, str]) -> str:
    """The test metrics after the first: `bleu 21.3000, meteor not computed (nltk is not installed)`."""
    words = [f"{name} {tested[name]:.4f}" for name in names if name in tested and name not in absent]
    return ", ".join([*words, *(f"{name} not computed ({why})" for name, why in absent.items())])


def begin(folder: Path, record: Mapping[str, Any]) -> None:
    """Set up the folder of a run that starts from step 0."""
    state.begin(folder)
    write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(record))))


def describe(run: Resolved, prepared: Prepared, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The part of summary.json that is known before training; every key is present however the run ends."""
    spec = run.spec
    scales = {adapter.scale for adapter in prepared.adapters.values()}
    return {
        "method": spec.method,
        "arm": spec.arm,
        "model": run.base.name,
        "task": run.task.name,
        "labels": list(run.task.labels) or None,
        "targets": spec.targets,
        "seed": spec.seed,
        "paths": spec.paths(),
        "steps": spec.train.steps,
        "metric": None,
        "test": None,
        "predictions": None,
        "not_computed": not_computed(run.task.metrics),
        "answer_rules": rules(run.task.metrics),
        "rank": None,
        "parameters": parameters(prepared.model),
        "scale": scales.pop() if len(scales) == 1 else None,
        "time": None,
        "memory": None,
        "device": device_name(run.device),
        **provenance,
        "recipe": identity.RECIPE,
        "dtype": {**dtypes(prepared.model), "compute": spec.train.precision},
        "packing": prepared.packing,
        "chunked_loss": computes_in_chunks(prepared.model),
    }


def dtypes(model: nn.Module) -> dict[str, str | None]:
    """{base, trained}: the dtype of most values of the frozen and of the trained parameters, null if there are none;
    "nf4" if the base is quantised."""
    counts: dict[str, Counter[str]] = {"base": Counter(), "trained": Counter()}
    for parameter in model.parameters():
        full = str(parameter.dtype).removeprefix("torch.")
        short = next((short for short, name in DTYPES.items() if name == full), "nf4" if full == "uint8" else full)
        counts["trained" if parameter.requires_grad else "base"][short] += numel(parameter)
    return {part: max(count, key=lambda name: count[name], default=None) for part, count in counts.items()}


def parameters(model: nn.Module) -> dict[str, int]:
    counts = adarank.trainable_parameters(model)
    return {key: counts[key] for key in ("total", "trainable", "adapter", "kept")}


def results(outcome: Outcome, prepared: Prepared, run: Resolved) -> dict[str, Any]:
    """The part of summary.json with the results of training. test: all test metrics, null for those that could not be
    computed."""
    values, name = vars(outcome), run.task.metrics[0]
    metric = {
        "name": name,
        "higher_is_better": higher_is_better(name),
        **{k: values[k] for k in ("best", "best_step", "last", "test", "test_last")},
    }
    if run.task.labels:
        judged = run.task.dev if outcome.test is None else run.task.test
        metric["majority"] = majority(name, judged.label, len(run.task.labels))
    return {
        "metric": metric,
        "test": outcome.tested,
        "rank": final_rank(prepared, run.spec),
        "time": {k: values[k] for k in ("train_s", "step_ms", "eval_s", "rows_per_s", "tokens_per_s")},
        "memory": {"peak_mib": outcome.peak_mib, "base_mib": base_mib(prepared.model)},
    }


def final_rank(prepared: Prepared, spec: Spec) -> dict[str, Any] | None:
    """The ranks of all target modules in the model's order, including rank 0; None for methods without a rank.
    budget_triplets is None if the budget is counted in parameters; it and budget are None if the allocator keeps no
    budget."""
    if not prepared.adapters:
        return None
    ranks = {**dict.fromkeys(prepared.unadapted, 0), **adarank.ranks(prepared.model)}
    places = {name: i for i, (name, _) in enumerate(prepared.model.named_modules())}
    final = dict(sorted(ranks.items(), key=lambda item: places.get(item[0], 0)))
    in_triplets = spec.budget.unit == "triplets"
    controller = prepared.controller
    budgeted = controller is None or getattr(controller.allocator, "keeps_budget", True)
    triplets = sum(final.values()) if spec.ranks_from is not None else spec.rank * len(final)
    return {
        "initial": spec.initial_rank,
        "budget": spec.rank if budgeted else None,
        "budget_triplets": triplets if in_triplets and budgeted else None,
        "final": final,
    }


def keep_best(model: nn.Module, adapted: bool, folder: Path) -> None:
    """Save the best checkpoint: to adapter/ (adapter and head), or to checkpoint/ if the whole model was trained."""
    if adapted:
        on_main(partial(adarank.save_adapter, model, folder / ADAPTER))
        return
    write_sharded(folder / CHECKPOINT / "model.safetensors", model.state_dict(), {"format": "pt"})
    about = {"holds": "the best checkpoint's weights, a plain state dict"}
    on_main(lambda: write_json(folder / CHECKPOINT / "checkpoint.json", about))
