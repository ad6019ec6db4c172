"""allocations.jsonl: a header that names the modules, then one line per reallocation with a rank for each of them.

    {"modules": ["layer.0.query", "layer.0.value"]}
    {"step": 20, "budget": 12, "unit": "triplets", …, "ranks": [8, 4], "score_quantiles": {"layer.0.query": [0.1, …]}}

Quantiles are large, so only allocations 1, 2, 4, 8, … and the last one keep theirs. A run does not know which one will
be its last, so it appends every line with its quantiles, and once SURPLUS of them have accumulated it rewrites the file
atomically without them. The last line always has its quantiles, even after a kill or after the file was cut back to a
checkpoint.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adarank.runs.files import json_line, parsed_lines

QUANTILES = "score_quantiles"
SURPLUS = 32  # lines with surplus quantiles that may accumulate before they are trimmed


def keeps_quantiles(number: int) -> bool:
    """Whether allocation `number`, counted from 1, keeps its quantiles once later ones follow: 1, 2, 4, 8, … do."""
    return number & (number - 1) == 0


def header(modules: Sequence[str]) -> str:
    """The first line of the file."""
    return json_line({"modules": list(modules)})


def line(record: Mapping[str, Any], modules: Sequence[str]) -> str:
    """The line of a record whose `ranks` are {module name: rank}."""
    return json_line({**record, "ranks": [record["ranks"][name] for name in modules]})


def document(records: Sequence[Mapping[str, Any]]) -> str:
    """The whole file that holds `records`, trimmed; "" if there is no record."""
    if not records:
        return ""
    modules = list(records[0]["ranks"])
    return trim(header(modules) + "".join(line(record, modules) for record in records))


def trim(text: str) -> str:
    """The file's text without the quantiles that it does not keep."""
    head, *lines = text.splitlines(keepends=True)
    for i, old in enumerate(lines[:-1]):
        if QUANTILES in old and not keeps_quantiles(i + 1):
            record = json.loads(old)
            del record[QUANTILES]
            lines[i] = json_line(record)
    return head + "".join(lines)


def read(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """(records with `ranks` as {module name: rank}, numbers of the unreadable lines, counted from 1).

    A missing file counts as empty. The older format without a header, in which every line names the modules, is read,
    too.
    """
    records: list[dict[str, Any]] = []
    bad: list[int] = []
    modules: list[str] = []
    for number, record in enumerate(parsed_lines(path), start=1):
        try:
            if record is None:
                bad.append(number)
            elif "modules" in record:
                modules = record["modules"]
            else:
                ranks = record["ranks"]
                named = ranks if isinstance(ranks, dict) else dict(zip(modules, ranks, strict=True))
                records.append({**record, "ranks": named})
        except (ValueError, KeyError, TypeError):
            bad.append(number)
    return records, bad
