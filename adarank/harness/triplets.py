"""What every triplet of a finished run is worth, beside what each score says of it; goes on where it was stopped."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError
from adarank.harness.files import write_text
from adarank.harness.finished import finish, open_run
from adarank.harness.kinds import KINDS
from adarank.harness.rescore import scores_at_the_end
from adarank.harness.worth import Part, halves, parts, rises

JOURNAL = "probe.jsonl"  # in the run's folder: what has been measured so far, a batch a line


def measure(folder: Path, rows: int, passes: int) -> dict[str, Any]:
    """The content of probe.json: the rise of the loss over the first `rows` rows of dev without each triplet, and every
    score taken anew over `passes` training batches.

    Raises SettingError for a folder that holds no finished run with triplets.
    """
    if rows < 1 or passes < 1:
        raise SettingError(f"rows={rows} passes={passes} measure nothing; valid: whole numbers of at least 1")
    run = open_run(folder)
    adapters = {name: module for name, module in finish(run).items() if isinstance(module, LowRank)}
    if not adapters:
        raise SettingError(f"{folder} is a run without triplets; valid: a finished run of a low-rank method")
    model, seed, batch = run.model, run.settings["seed"], run.settings["train"]["batch_size"]
    kind = KINDS[run.task.kind]
    dev, train = (kind.encode(run.task, split, run.built.tokenizer) for split in ("dev", "train"))
    rows = min(rows, len(dev))
    head = {"rows": rows, "batch": batch, "adapter": _digest(folder / "adapter" / "adapter.safetensors")}
    batches = -(-rows // batch)
    found = gather(folder / JOURNAL, head, lambda begin: parts(model, adapters, dev, kind, rows, batch, begin), batches)
    loss, rise = rises(found)
    scores = scores_at_the_end(model, adapters, train, kind, batch, passes, seed)
    modules = {name: adapter.rank for name, adapter in adapters.items()}
    start = {"split": "dev", "rows": rows, "passes": passes, "loss": loss, "modules": modules}
    return {**start, "rise": rise, "halves": halves(found), "scores": scores}


def gather(journal: Path, head: Mapping[str, Any], rest: Callable[[int], Iterator[Part]], total: int) -> list[Part]:
    """All parts: those that `journal` holds, then rest(number of them), each written down as it comes.

    A journal that begins with another `head` belongs to another measurement and is begun anew; a last line that was cut
    off is measured again.
    """
    found = _read(journal, head)
    write_text(journal, "".join(json.dumps(line) + "\n" for line in (head, *found)))
    with journal.open("a", encoding="utf-8") as file:
        for part in rest(len(found)):
            found.append(part)
            file.write(json.dumps(part) + "\n")
            file.flush()
            if not sys.stderr.isatty():
                print(f"  {len(found)} of {total} batches", flush=True)
    return found


def _read(journal: Path, head: Mapping[str, Any]) -> list[Part]:
    if not journal.is_file():
        return []
    known: list[Any] = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            known.append(json.loads(line))
        except ValueError:
            break
    return [Part(*part) for part in known[1:]] if known[:1] == [dict(head)] else []


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
