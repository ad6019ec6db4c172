"""adarank suggest: measures ranks before training and writes them as a LoraConfig of PEFT for any other trainer."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from adarank.adapters.layers import CONV1D, layer_of
from adarank.adapters.saving import write_files
from adarank.commands.folder import new_folder
from adarank.errors import SettingError, whole_number
from adarank.harness.config.compose import spec_from
from adarank.harness.config.messages import sentence
from adarank.harness.config.spec import Spec
from adarank.harness.config.validate import conf_folder, typed_keys
from adarank.harness.data.batches import init_batches
from adarank.harness.data.task_types import TASK_TYPES
from adarank.harness.data.tasks import chat, instruct, prompts, rows
from adarank.harness.data.tasks.base import Task
from adarank.harness.data.tasks.readers import READERS, Columns
from adarank.harness.device import choose_device
from adarank.harness.run.resolve import build, chosen_targets, load_base, load_task
from adarank.integrations.peft_export import FILES, check_names, task_of
from adarank.runs.modules import place_of, rank_grid, short_kind
from adarank.suggestion import SuggestedRanks, methods, suggest_ranks

AXOLOTL, PICTURE = "axolotl.yaml", "rank_map.png"
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM accepts
EXPECTED = ("messages", "prompt", "response", "instruction", "output", "text", "label")  # columns
BATCH_SIZE = 8  # unless train.batch_size is among the settings


def suggest_folder(
    model: str, data: str, out: Path, budget: int, method: str, steps: int, settings: Sequence[str] = ()
) -> str:
    """Write adapter_config.json, the same settings for axolotl and a picture to OUT, and return the sentences to print.

    settings: settings of `adarank run` for the model, its targets and the data. Raises SettingError.
    """
    import torch

    whole_number("--budget", budget)
    whole_number("--steps", steps)
    if method not in (known := methods()):
        raise SettingError(f"--method must be one of {', '.join(known)} (got {method})")
    with new_folder(out) as path:
        spec, task = _read(model, data, settings)
        task_type, device = TASK_TYPES[task.task_type], choose_device()
        base = load_base(spec)
        targets = chosen_targets(spec, task, base) or "all-linear"
        built = build(spec, task, base, device)
        network = built.model.to(device)
        few = _first_rows(task, steps * spec.train.batch_size, spec.seed)
        encoded = task_type.encode(few, "train", built.processor)
        batches = init_batches(task_type.collate, encoded, spec.train.batch_size, spec.seed, device)
        torch.manual_seed(spec.seed)
        ranks = suggest_ranks(network, batches, budget, method, targets, steps)
        config = peft_config(network, ranks, budget, built.head)
        write_files(path, {FILES[0]: config})
        (path / AXOLOTL).write_text(_axolotl(config), encoding="utf-8")
        _draw(ranks, f"{base.name} on {task.name}: {method}, mean rank {budget}", path / PICTURE)
    return "\n".join(_report(network, ranks, budget, out))


def peft_config(model: Any, ranks: SuggestedRanks, budget: int, head: Sequence[str] = ()) -> dict[str, Any]:
    """The content of adapter_config.json for an untrained LoRA; head: modules to train in full.

    r and lora_alpha follow from the budget; the patterns hold each module's own values. The scale is the same for all,
    so that engines that read only lora_alpha / r, such as vLLM, compute what PEFT computes. Raises SettingError if
    PEFT, which matches the endings of names, would adapt another module as well.
    """
    linears = [model.get_submodule(name) for name in ranks.target_modules]
    config = {
        "peft_type": "LORA",
        "task_type": task_of(type(model).__name__, head),
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None) or None,
        "r": budget,
        "lora_alpha": 2 * budget,
        "lora_dropout": 0.0,
        "rank_pattern": ranks.rank_pattern,
        "alpha_pattern": ranks.alpha_pattern,
        "target_modules": ranks.target_modules,
        "modules_to_save": list(head) or None,
        "fan_in_fan_out": any(layer_of(module) is CONV1D for module in linears),
        "bias": "none",
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": False,
    }
    check_names(model, config)
    return config


def _read(model: str, data: str, settings: Sequence[str]) -> tuple[Spec, Task]:
    """The settings of a LoRA run with MODEL on DATA, and its rows."""
    if Path(model).expanduser().is_dir():
        chosen = ["model=local", f"model.path={_quoted(model)}"]
    elif (conf_folder() / "model" / f"{model}.yaml").is_file():
        chosen = [f"model={model}"]
    else:
        chosen = ["model=hub", f"model.name={_quoted(model)}"]
    file = Path(data).expanduser()
    columns = _columns(file) if file.is_file() else None
    kind = data if columns is None else _kind(columns, settings)
    if not (conf_folder() / "task" / f"{kind}.yaml").is_file():
        raise SettingError(f"DATA must be a file ({', '.join(READERS)}) or the name of a task (got {data})")
    path = [] if columns is None else [f"task.path={_quoted(str(file.parent))}"]
    size = [] if "train.batch_size" in typed_keys(settings) else [f"train.batch_size={BATCH_SIZE}"]
    try:
        spec = spec_from(["method=lora", *chosen, f"task={kind}", *path, *size, *settings])
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingError(sentence(error)) from None
    if columns is None:
        return spec, load_task(spec)
    assert spec.task is not None
    return spec, _one_file(file.name, columns, kind, spec.task.settings)


def _quoted(value: str) -> str:
    """A value in the grammar of Hydra's overrides."""
    return "'" + value.replace("'", "\\'") + "'"


def _columns(file: Path) -> Columns:
    """The columns of a file in any format that task=files reads."""
    suffix = next((suffix for suffix in READERS if file.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise SettingError(f"DATA must end in {', '.join(READERS)} (got {file})")
    return READERS[suffix](file, file.name)


def _kind(columns: Columns, settings: Sequence[str]) -> str:
    """The task that reads files with these columns: chat, instruct or files. Raises SettingError if there is none."""
    typed = typed_keys(settings)
    for kind, keys, names in (
        ("chat", {"task.messages"}, ("messages",)),
        ("instruct", {"task.prompt", "task.response"}, ("prompt", "response")),
        ("instruct", set(), ("instruction", "output")),
        ("files", {"task.text", "task.label", "task.pair"}, ("text", "label")),
    ):
        if keys & typed or all(name in columns for name in names):
            return kind
    raise SettingError(
        "DATA must have the columns messages; prompt and response; instruction and output; or text and label (its "
        f"columns are {rows.few_columns(columns, EXPECTED)}), or --set must name them, such as task.prompt=question "
        "task.response=answer"
    )


def _one_file(name: str, columns: Columns, kind: str, settings: Mapping[str, Any]) -> Task:
    """The rows of a single file, all of them for training."""
    if kind == "files":
        table = rows.table(name, columns, settings["text"], settings["pair"], settings["label"])
        kept = {key: settings[key] for key in ("metric", "limit", "max_length")}
        return rows.assemble(name, table, table, None, **kept)
    if kind == "chat":
        found = chat.conversations(name, columns, settings["messages"])
        template = "chat"
    else:
        found = instruct.instructions(name, columns, settings["prompt"], settings["response"], settings["template"])
        template = settings["template"]
    sizes = (settings[key] for key in ("limit", "max_tokens", "max_new_tokens", "generate_rows"))
    task = prompts.assemble(name, {"train": found, "dev": found}, (), "loss", *sizes)
    return task if template == "auto" else replace(task, options={**task.options, "template": template})


def _first_rows(task: Task, count: int, seed: int) -> Task:
    """The task with only `count` of its training rows, drawn by the seed, so that no others are tokenised."""
    if len(task.train) <= count:
        return task
    chosen = np.random.default_rng(seed).permutation(len(task.train))[:count]
    fingerprint = hashlib.sha256(f"{task.fingerprint} suggest {count} {seed}".encode()).hexdigest()
    return replace(task, train=task.train.take(np.sort(chosen)), fingerprint=fingerprint)


def _axolotl(config: Mapping[str, Any]) -> str:
    """The lines for axolotl's YAML, with values in JSON notation, which is valid YAML."""
    keys = {
        "lora_r": "r",
        "lora_alpha": "lora_alpha",
        "lora_dropout": "lora_dropout",
        "lora_target_modules": "target_modules",
        "lora_rank_pattern": "rank_pattern",
        "lora_alpha_pattern": "alpha_pattern",
    }
    lines = ["adapter: lora", *(f"{key}: {json.dumps(config[name], indent=2)}" for key, name in keys.items())]
    return "\n".join(lines) + "\n"


def _draw(ranks: Mapping[str, int], title: str, file: Path) -> None:
    """Draw the ranks as a map with one row per block and one column per kind of module."""
    from matplotlib.figure import Figure

    blocks, kinds, grid = rank_grid(ranks)
    figure = Figure(figsize=(3 + 0.8 * len(kinds), 1.8 + 0.35 * len(blocks)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, cmap="cividis", vmin=0, vmax=max(ranks.values()), aspect="auto")
    axes.set_xticks(range(len(kinds)), kinds, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(blocks)), blocks)
    axes.set(xlabel="module", ylabel="block")
    for (y, x), rank in np.ndenumerate(grid):
        if np.isfinite(rank):
            ink = "white" if rank < 0.5 * max(ranks.values()) else "black"
            axes.text(x, y, f"{rank:.0f}", ha="center", va="center", color=ink, fontsize=9)
    figure.colorbar(image, ax=axes, label="rank")
    figure.suptitle(title)
    figure.savefig(file, dpi=150)


def _report(model: Any, ranks: SuggestedRanks, budget: int, out: Path) -> list[str]:
    """The lines to print: ranks by kind of module, parameters, and how to use the result in other programs."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for name, rank in ranks.items():
        kinds[place_of(name).kind].append(rank)
    by_kind = ", ".join(f"{short_kind(kind, kinds)} {fmean(found):.1f}" for kind, found in kinds.items())
    modules = {name: model.get_submodule(name) for name in ranks}
    costs = {name: sum(layer_of(module).size(module)) for name, module in modules.items()}  # type: ignore[union-attr]
    parameters = sum(costs[name] * rank for name, rank in ranks.items())
    uniform = budget * sum(costs.values())
    largest, zero = max(ranks.values()), len(ranks) - len(ranks.target_modules)
    served = next((rank for rank in MAX_LORA_RANKS if rank >= largest), None)
    vllm = f"--max-lora-rank {served}" if served else f"no --max-lora-rank allows {largest}"
    return [
        f"mean rank by module: {by_kind}",
        f"{len(ranks)} modules, {zero} of rank 0, mean rank {fmean(ranks.values()):g}, largest {largest}; "
        f"{parameters:,} parameters ({uniform:,} at uniform rank {budget})",
        f'PEFT and TRL: peft.LoraConfig.from_pretrained("{out}"); axolotl: the lines in {out / AXOLOTL}; vLLM: {vllm}',
        f"{out}: {FILES[0]}, {AXOLOTL}, {PICTURE}",
    ]
