"""Where a module stands in a model, read from its name: which stack of blocks, which block, which kind of module."""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np


class Place(NamedTuple):
    """The place of a module in a model.

    stack: the name of the list of blocks that contains it, "bert.encoder.layer"; "" for a module outside every block.
    block: its index in that list; None outside. path: the module's name inside its block, "attention.self.query"; its
    full name outside. kind: `path` without numbers, so that all experts of a block are of one kind, as are the query
    projections of all blocks.
    """

    stack: str
    block: int | None
    path: str
    kind: str


def place_of(name: str) -> Place:
    """The place of the module `name`. The outermost number in a dotted name is the block.

    Example: place_of("model.decoder.layers.3.self_attn.q_proj") is
    Place("model.decoder.layers", 3, "self_attn.q_proj", "self_attn.q_proj").
    """
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal() and i + 1 < len(parts)), None)
    if number is None:
        return Place("", None, name, name)
    inside = parts[number + 1 :]
    kind = [part for part in inside if not part.isdecimal()] or inside
    return Place(".".join(parts[:number]), int(parts[number]), ".".join(inside), ".".join(kind))


def describe_modules(names: Iterable[str], others: Iterable[str] = ()) -> str:
    """Describe modules in a few words: "query, key, value in 12 blocks".

    The name of each kind is the shortest ending that tells it from the other kinds, including those of `others`.
    """
    places = [place_of(name) for name in names]
    kinds = list(dict.fromkeys(place.kind for place in places))
    known = {*kinds, *(place_of(name).kind for name in others)}

    said = ", ".join(short_kind(k, known) for k in kinds[:8]) + f" and {len(kinds) - 8} more kinds" * (len(kinds) > 8)
    blocks = len({(place.stack, place.block) for place in places if place.block is not None})
    return said + f" in {blocks} block{'s' * (blocks != 1)}" * (blocks > 0)


def short_kind(kind: str, known: Collection[str]) -> str:
    """The shortest ending of `kind`, in whole parts, that tells it from the other `known` kinds."""
    parts = kind.split(".")
    ends = [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]
    return next((e for e in ends if not any(k != kind and f".{k}".endswith(f".{e}") for k in known)), kind)


def rank_grid(ranks: Mapping[str, float]) -> tuple[list[str], list[str], np.ndarray]:
    """Arrange {module name: rank} as (row labels, column labels, float64 [rows, columns]); NaN marks an empty cell.

    There is one row per block, labelled with its number, or with stack and number if the model has several stacks (an
    encoder and a decoder); modules outside every block share a last row. There is one column per kind of module, or per
    path if a block contains several modules of one kind, so that no two modules share a cell.
    """
    places = {name: place_of(name) for name in ranks}
    kinds = {(p.stack, p.block, p.kind) for p in places.values()}
    columns = {name: p.kind if len(kinds) == len(places) else p.path for name, p in places.items()}
    stacks = list(dict.fromkeys(p.stack for p in places.values()))
    row_of = {name: (p.block is None, stacks.index(p.stack), p.block or 0) for name, p in places.items()}
    rows, labels = sorted(set(row_of.values())), list(dict.fromkeys(columns.values()))
    grid = np.full((len(rows), len(labels)), np.nan)
    for name, rank in ranks.items():
        grid[rows.index(row_of[name]), labels.index(columns[name])] = rank
    alone = len({stack for outside, stack, _ in rows if not outside}) == 1
    shown = ["outside" if outside else str(i) if alone else f"{stacks[stack]}.{i}" for outside, stack, i in rows]
    return shown, labels, grid
