"""One run from checked settings to a finished folder."""

import json
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save
from torch import nn

import adarank
from adarank.adapters.bottleneck import bottlenecks_of
from adarank.adapters.inject import reach
from adarank.errors import RunFailed
from adarank.harness import distributed, lock, rank_map, runs
from adarank.harness.checkpoint import Saver
from adarank.harness.data import looks
from adarank.harness.distributed import is_main, on_main
from adarank.harness.files import write_json, write_text
from adarank.harness.kinds import KINDS, Kind
from adarank.harness.measure import base_mib, choose_device, choose_precision, device_name
from adarank.harness.models import Base, resolve_places, resolve_targets
from adarank.harness.parallel import whole
from adarank.harness.plan import Plan
from adarank.harness.prepare import (
    Prepared,
    check_optimizer,
    checkpoint_activations,
    configured,
    describe_schedule,
    held_rank,
    initial_rank,
    prepare,
)
from adarank.harness.settings import (
    accepts,
    adapts,
    fixes_ranks,
    locate,
    schedule_steps,
    settle,
    train_steps,
    typed_keys,
)
from adarank.harness.tasks.base import Task
from adarank.harness.tasks.holdout import hold_out
from adarank.harness.tracking import no_copy, open_log
from adarank.harness.train import Diverged, Outcome, train

UNGROUPED = ("group_by_length", False)  # as before it could be set
WHERE = ("shard", "checkpoint_activations")  # say where tensors are kept, not what they are


def execute(config: DictConfig, overrides: Sequence[str], choices: Mapping[str, Any]) -> float | None:
    """Run what a composed configuration asks for, or skip it where it is finished; returns the run's best dev metric.

    Nothing is written before the settings, the data, the model and the adapters have been found good. Raises
    SettingError (exit status 2) or RunFailed (1).
    """
    settings = settle(config, overrides, choices)
    distributed.join()
    on_main(partial(runs.check_writable, settings["out"]))
    if fixes_ranks(settings):
        asked = settings["rank"] if "rank" in typed_keys(overrides) else None
        settings |= rank_map.terms(settings["allocator"]["source"], asked)
    if adapts(settings):
        settings["init_rank"] = initial_rank(settings)
        settings["schedule"].update(schedule_steps(settings))
    device = choose_device()
    settings["train"]["precision"] = choose_precision(settings["train"]["precision"], device)
    check_optimizer(settings["train"]["optimizer"], device)
    task: Task = hold_out(configured(settings["task"]), settings["holdout"])
    kind = KINDS[task.kind]
    base: Base = configured(settings["model"])
    targets = None
    if accepts(settings["adapter"], "targets"):
        targets = resolve_targets(base, settings["targets"], settings["target_modules"])
    if accepts(settings["adapter"], "places"):
        settings["adapter"]["places"] = resolve_places(base, settings["adapter"]["places"])
    steps = train_steps(settings)

    consumers = identity(settings, steps, task, base, targets)
    folder = runs.run_folder(settings["out"], settings["method"], consumers, settings["seed"])
    provenance = runs.provenance()
    title = run_title(settings)
    if on_main(partial(runs.is_finished, folder, settings["force"], str(settings["retry"]))):
        if is_main():
            runs.warn_if_other_code(folder, provenance["commit"])
        print(f"{title}: finished already, {folder} (force=true runs it again)", flush=True)
        return on_main(partial(best_of, folder))
    on_main(partial(lock.refuse_held, folder))  # early; what counts is the lock below

    torch.manual_seed(settings["seed"])  # the head: the same for every method
    built = base.build(kind.outputs(task), kind)
    if settings["train"]["checkpoint_activations"]:
        checkpoint_activations(built.model)
    configured(settings["quantization"], model=built.model, device=device, precision=settings["train"]["precision"])
    names = [name for name in ("train", "dev", "test") if getattr(task, name) is not None]
    encoded = {name: kind.encode(task, name, built.tokenizer) for name in names}
    torch.manual_seed(settings["seed"])  # the factors
    batches = looks(kind.collate, encoded["train"], settings["train"]["batch_size"], settings["seed"], device)
    prepared = prepare(built, targets or [], settings, device, batches)
    higher = kind.higher_is_better(task.metrics[0])
    numbers = {**settings["train"], **steps, "seed": settings["seed"], "higher_is_better": higher}
    plan = Plan(**numbers, metrics=task.metrics)
    head = describe(settings, task, base, prepared, plan, provenance, device)

    print(f"{title}: {base.name} on {task.name}, {device_name(device)}, {plan.precision} -> {folder}", flush=True)
    if prepared.adapters:
        print(f"  adapters on {reach(prepared.model).share:.0%} of the base's matrix parameters", flush=True)
    if added := list(bottlenecks_of(prepared.model).values()):
        print(f"  {len(added)} bottlenecks of width {added[0].width}", flush=True)
    if adapts(settings) and prepared.controller is not None:
        print(f"  {describe_schedule(prepared.controller)}", flush=True)
    on_main(partial(runs.make_folder, folder))
    with ExitStack() as stack:
        held = on_main(lambda: stack.enter_context(lock.locked(folder)))
        if on_main(partial(runs.is_finished, folder, settings["force"], "failed")):
            print(f"{title}: finished meanwhile by another process, {folder}", flush=True)
        else:
            try:
                run(settings, prepared, kind, encoded, plan, head, title, folder, held)
            except OSError as error:  # a full disk, say: as if it had been killed
                raise RunFailed(
                    f"{title} stopped: {folder} cannot be written ({error.strerror}); what is there stays, and the same "
                    "command goes on from it"
                ) from None
    return on_main(partial(best_of, folder))


def best_of(folder: Path) -> float | None:
    """metric.best of a finished run."""
    best: float | None = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["metric"]["best"]
    return best


def run(
    settings: Mapping[str, Any],
    prepared: Prepared,
    kind: Kind,
    encoded: Mapping[str, Any],
    plan: Plan,
    head: Mapping[str, Any],
    title: str,
    folder: Path,
    held: Path,
) -> None:
    """Train in `folder`, whose lock is held by the file `held`; from the last checkpoint where a run was interrupted."""
    record = {k: v for k, v in settings.items() if k not in ("force", "retry")}
    resumes = on_main(partial(runs.is_interrupted, folder)) and not settings["force"]
    saver = Saver(folder / "checkpoint", settings["checkpoint_seconds"], resumes)
    if saver.step is None:
        on_main(partial(begin, folder, record))
    else:
        print(f"  goes on from its checkpoint after step {saver.step}", flush=True)
    group = Path(settings["out"]).absolute().name
    tracker, adapted = tracker_of(settings["tracker"]), settings["adapter"] is not None
    with ExitStack() as stack:
        heart: Any = distributed.Nothing()
        log: Any = heart

        def open_files() -> None:
            nonlocal heart, log
            heart = stack.enter_context(runs.Heartbeat(folder, held, saver.step or 0, plan.steps))
            log = open_log(tracker, folder=folder, config=record, name=title, group=group, resume_step=saver.step)
            stack.enter_context(log)

        on_main(open_files)
        try:
            kept = partial(keep, adapted=adapted, folder=folder)
            outcome = train(prepared, encoded, plan, log, heart.beat, kept, saver, kind)
        except OSError:
            raise
        except Exception as error:
            state = "diverged" if isinstance(error, Diverged) else "failed"
            own = str(error).strip().partition("\n")[0] or type(error).__name__
            message = distributed.cause(own)
            log.finish({"status": state, "error": message, **head})
            heart.end(state, message)
            if isinstance(error, RunFailed):
                raise RunFailed(f"{title} {state}: {error} ({folder})") from None
            if message == own:
                traceback.print_exc()
            raise RunFailed(f"{title} {state}: {message} ({folder})") from None
        found = results(outcome, prepared, settings, plan)
        counts = {**head["parameters"], "kept": parameters(prepared.model)["kept"]}  # the others as they were trained
        log.finish({"status": "finished", "error": None, **head, **found, "parameters": counts})
        heart.end("finished")
    if is_main():
        saver.remove()
    shown = outcome.last if outcome.test is None else outcome.test
    split = "dev" if outcome.test is None else "test"
    print(f"  {split} {plan.metrics[0]} {shown:.4f} in {outcome.train_s:.0f} s of training", flush=True)
    if further := others(outcome.tested or {}, plan.metrics[1:], head["not_computed"]):
        print(f"  {split} {further}", flush=True)


def others(tested: Mapping[str, float], names: Sequence[str], absent: Mapping[str, str]) -> str:
    """The test metrics beside the first: `bleu 21.3000, meteor not computed (nltk is not installed)`."""
    words = [f"{name} {tested[name]:.4f}" for name in names if name in tested and name not in absent]
    return ", ".join([*words, *(f"{name} not computed ({why})" for name, why in absent.items())])


def begin(folder: Path, record: Mapping[str, Any]) -> None:
    """A folder for a run that starts anew."""
    runs.begin(folder)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(record))))


def identity(
    settings: Mapping[str, Any], steps: Mapping[str, int], task: Task, base: Base, targets: Any
) -> dict[str, Any]:
    """Everything that decides a run's result, but the seed: the resolved consumers, never the shorthands.

    Local data, models and rank maps enter by their content, not by their path.
    """
    adapter = settings["adapter"] and {**settings["adapter"], "targets": targets}
    if accepts(settings["adapter"], "rank"):
        adapter["rank"] = held_rank(settings)
    schedule = settings["schedule"] and {
        **settings["schedule"],
        "initial_rank": initial_rank(settings),
        "rank": settings["rank"],
        "unit": settings["budget"]["unit"],
    }
    adaptive = adapts(settings)
    allocator = settings["allocator"]
    if fixes_ranks(settings):
        found, shuffle = rank_map.read(allocator["source"]), allocator["shuffle"]
        allocator = {
            "map": found._asdict(),
            "shuffle": shuffle,
            "seed": None if shuffle == "none" else allocator["seed"],
        }
    return {
        **{group: settings[group] for group in ("init", "score", "penalty", "quantization")},
        "allocator": allocator,
        "adapter": adapter,
        "schedule": schedule,
        "mode": settings["mode"] if adaptive or settings["penalty"] else None,
        **{key: settings[key] if adaptive else None for key in ("pruned", "basis")},
        "compaction": settings["compaction"] if adaptive else None,
        "patience": settings["patience"] if settings["compaction"] == "progressive" else None,
        "train": {k: v for k, v in {**settings["train"], **steps}.items() if k not in WHERE and (k, v) != UNGROUPED},
        "task": {"fingerprint": task.fingerprint, "metrics": list(task.metrics), "max_length": task.max_length}
        | ({} if task.kind == "classify" else {"kind": task.kind, **task.options}),  # as before there were others
        "model": base.fingerprint,
    }


def tracker_of(node: Mapping[str, Any] | None) -> Any:
    """The tracker's function with its settings bound."""
    if node is None:
        return no_copy
    return partial(locate(node["_target_"]), **{k: v for k, v in node.items() if k != "_target_"})


def run_title(settings: Mapping[str, Any]) -> str:
    """A name to read: adalora-r8-qkv-s0, adalora-nf4-r8-qkv-s0."""
    parts = [settings["method"]]
    if settings["quantization"] is not None:
        parts.append(settings["quantization"]["_target_"].rpartition(".")[2])
    if accepts(settings["adapter"], "rank"):
        parts += [f"r{settings['rank']}", settings["targets"]]
    return "-".join([*parts, f"s{settings['seed']}"])


def describe(
    settings: Mapping[str, Any],
    task: Task,
    base: Base,
    prepared: Prepared,
    plan: Plan,
    provenance: Mapping[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """The part of summary.json that is known before training; every key is there whatever becomes of the run."""
    scales = {adapter.scale for adapter in prepared.adapters.values()}
    return {
        "method": settings["method"],
        "model": base.name,
        "task": task.name,
        "targets": settings["targets"],
        "seed": settings["seed"],
        "steps": plan.steps,
        "metric": None,
        "test": None,
        "not_computed": KINDS[task.kind].not_computed(task.metrics),
        "rank": None,
        "parameters": parameters(prepared.model),
        "scale": scales.pop() if len(scales) == 1 else None,
        "time": None,
        "memory": None,
        "device": device_name(device),
        **provenance,
        "recipe": runs.RECIPE,
    }


def parameters(model: nn.Module) -> dict[str, int]:
    counts = adarank.trainable_parameters(model)
    return {key: counts[key] for key in ("total", "trainable", "adapter", "kept")}


def results(outcome: Outcome, prepared: Prepared, settings: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The part of summary.json that training found. test: all metrics there, null what could not be computed."""
    found = asdict(outcome)
    metric = {
        "name": plan.metrics[0],
        "higher_is_better": plan.higher_is_better,
        **{k: found[k] for k in ("best", "best_step", "last", "test", "test_last")},
    }
    return {
        "metric": metric,
        "test": outcome.tested,
        "rank": final_rank(prepared, settings),
        "time": {k: found[k] for k in ("train_s", "step_ms", "eval_s")},
        "memory": {"peak_mib": outcome.peak_mib, "base_mib": base_mib(prepared.model)},
    }


def final_rank(prepared: Prepared, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Ranks of every target module in the model's order, rank 0 included; None for methods without a rank. budget_triplets
    is None where the budget is counted in parameters; it and budget are where the allocator keeps no budget."""
    if not prepared.adapters:
        return None
    ranks = {**dict.fromkeys(prepared.bare, 0), **adarank.ranks(prepared.model)}
    places = {name: i for i, (name, _) in enumerate(prepared.model.named_modules())}
    final = dict(sorted(ranks.items(), key=lambda item: places.get(item[0], 0)))
    in_triplets = settings["budget"]["unit"] == "triplets"
    controller = prepared.controller
    budgeted = controller is None or getattr(controller.allocator, "keeps_budget", True)
    triplets = sum(final.values()) if fixes_ranks(settings) else settings["rank"] * len(final)
    return {
        "initial": initial_rank(settings),
        "budget": settings["rank"] if budgeted else None,
        "budget_triplets": triplets if in_triplets and budgeted else None,
        "final": final,
    }


def keep(model: nn.Module, adapted: bool, folder: Path) -> None:
    """The best checkpoint on disk: adapter/ (adapter and head), or checkpoint/ where the whole model trained."""
    if adapted:
        on_main(partial(adarank.save_adapter, model, folder / "adapter"))
        return
    tensors = {name: whole(p.detach()).cpu().clone().contiguous() for name, p in model.state_dict().items()}

    def write() -> None:
        target = folder / "checkpoint"
        target.mkdir(exist_ok=True)
        temporary = target / ".model.safetensors.tmp"
        temporary.write_bytes(save(tensors, metadata={"format": "pt"}))
        temporary.replace(target / "model.safetensors")
        write_json(target / "checkpoint.json", {"holds": "the best checkpoint's weights, a plain state dict"})

    on_main(write)
