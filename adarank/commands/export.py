"""adarank export: converts an adapter's folder to PEFT's format."""

from pathlib import Path

from adarank.adapters.saving import write_files
from adarank.commands.folder import new_folder, open_folder
from adarank.integrations.peft_export import FILES, peft_state


def export_folder(folder: Path, out: Path, uniform_rank: bool = False) -> str:
    """Write OUT and return the sentence to print. Names that PEFT would confuse go unnoticed here, because only
    `adarank.to_peft` has the base model."""
    opened = open_folder(folder)
    config, state = peft_state(opened.tensors, opened.description, uniform_rank)
    with new_folder(out) as path:
        write_files(path, dict(zip(FILES, (config, state), strict=True)))
    whole = f", modules_to_save {', '.join(config['modules_to_save'])}" if config["modules_to_save"] else ""
    modules, stacks = len(config["target_modules"]), len(config.get("target_parameters", ()))
    targets = f"{modules} modules" + f" and {stacks} stacks of experts" * bool(stacks)
    kind = "DoRA" if config.get("use_dora") else "LoRA"
    if uniform_rank:
        return f"{out}: {kind} of rank {config['r']}, the largest of the adapter's ranks, on {targets}{whole}"
    others = config["rank_pattern"].values()
    largest = f" (the largest {max(config['r'], *others)})" if others else ""
    return f"{out}: {kind} of rank {config['r']} on {targets}, {len(others)} of them of another rank{largest}{whole}"
