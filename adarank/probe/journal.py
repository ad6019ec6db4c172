"""Resumable measurements: every finished part is one line of a journal, so that an interruption loses none."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from adarank.runs.files import write_text

T = TypeVar("T")


def resume(
    journal: Path,
    head: Mapping[str, Any],
    rest: Callable[[Sequence[T]], Iterator[T]],
    total: int,
    parse: Callable[[Any], T],
    noun: str = "batches",
) -> list[T]:
    """All parts: those in `journal`, then rest(these), each appended to it once it is finished.

    head: identifies the measurement; a journal with another head is discarded. parse: makes a part from its JSON.
    total, noun: the number and name of the parts in the printed progress. A truncated last line is measured again.
    `rest` gets the list of parts, which grows with every new part.
    """
    lines: list[Any] = []
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    parts = [parse(line) for line in lines[1:]] if lines[:1] == [dict(head)] else []
    write_text(journal, "".join(map(_line, (head, *parts))))
    with journal.open("a", encoding="utf-8") as file:
        for part in rest(parts):
            parts.append(part)
            file.write(_line(part))
            file.flush()
            if not sys.stderr.isatty():
                print(f"  {len(parts)} of {total} {noun}", flush=True)
    return parts


def _line(part: Any) -> str:
    return json.dumps(part) + "\n"
