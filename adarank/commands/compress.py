"""adarank compress: shrinks an adapter to its largest singular values over all modules, or to its first triplets."""

from pathlib import Path

from adarank.adapters import saving
from adarank.adapters.saving import write_files
from adarank.commands.folder import new_folder, open_folder
from adarank.compression import compress_saved
from adarank.errors import SettingError
from adarank.integrations.peft_export import FILES, peft_state
from adarank.truncation import truncate_saved


def compress_folder(folder: Path, out: Path, budget: int | None, prefix: int | None = None) -> str:
    """Write OUT in FOLDER's format with the largest singular values, up to a mean rank of `budget`, or with the first
    `prefix` triplets of every module. Returns a table of the ranks and, for a budget, of the loss."""
    if (budget is None) == (prefix is None):
        raise SettingError("compress needs one of --budget N and --prefix R")
    opened = open_folder(folder)
    before = {name: info.get("rank", 0) for name, info in opened.description["modules"].items()}
    lost, overall = {}, ""
    if budget is not None:
        tensors, description, found = compress_saved(opened.tensors, opened.description, budget * len(before))
        lost = {name: f"  lost {share:.2%}" for name, share in found.lost.items()}
        overall = f"; lost {found.overall:.2%} of the norm of the whole weight change"
    elif prefix is not None:
        tensors, description = truncate_saved(opened.tensors, opened.description, prefix)
    with new_folder(out) as path:
        if opened.peft:
            write_files(path, dict(zip(FILES, peft_state(tensors, description), strict=True)))
        else:
            write_files(path, dict(zip(saving.FILES, (tensors, description), strict=True)))
    ranks, width = {name: info["rank"] for name, info in description["modules"].items()}, max(map(len, before))
    lines = [f"{name:{width}}  {before[name]:>3} → {rank:>3}{lost.get(name, '')}" for name, rank in ranks.items()]
    total, left = sum(before.values()), sum(ranks.values())
    return "\n".join([*lines, f"{out}: {left} of {total} triplets kept{overall}"])
