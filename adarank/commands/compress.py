"""adarank compress: a smaller adapter, by the singular values of all modules together."""

from pathlib import Path

from adarank.adapters import saving
from adarank.adapters.saving import write_files
from adarank.commands.folder import new_folder, open_folder
from adarank.compression import compress_saved
from adarank.integrations.peft_export import FILES, peft_state


def compress_folder(folder: Path, out: Path, budget: int) -> str:
    """Write OUT, with a mean rank of at most `budget`, in FOLDER's format; returns the table of what is lost."""
    opened = open_folder(folder)
    before = {name: info.get("rank", 0) for name, info in opened.description["modules"].items()}
    tensors, description, compressed = compress_saved(opened.tensors, opened.description, budget * len(before))
    with new_folder(out) as path:
        if opened.peft:
            write_files(path, dict(zip(FILES, peft_state(tensors, description), strict=True)))
        else:
            write_files(path, dict(zip(saving.FILES, (tensors, description), strict=True)))
    width = max(len(name) for name in before)
    lines = [
        f"{name:{width}}  {before[name]:>3} → {rank:>3}  lost {compressed.lost[name]:.2%}"
        for name, rank in compressed.ranks.items()
    ]
    total, left = sum(before.values()), sum(compressed.ranks.values())
    return "\n".join(
        [*lines, f"{out}: {left} of {total} triplets kept; lost {compressed.overall:.2%} of the whole change's norm"]
    )
