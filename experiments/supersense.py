"""Supersenses: the gloss of a noun → its lexicographer file, one of WordNet's 25. A task with many classes that is far
from saturated after short training.

    python experiments/supersense.py /usr/share/wordnet FOLDER
    adarank run task=files task.path=FOLDER task.max_length=32 method=adalora
    python experiments/supersense.py FOLDER AGAIN --seed 1 --test 15000    # the same rows, divided again

The source is the file data.noun of WordNet 3.0 (https://wordnet.princeton.edu; Debian's package wordnet-base), under
WordNet's own permissive licence. The text is the gloss without its quoted examples. noun.Tops, whose 51 synsets are the
roots of the others, is excluded; of synsets with the same gloss, the first is kept. The rows are shuffled with a fixed
seed and divided into dev (2,000), test (5,000) and train (the rest). With another --seed they are sorted by their text
first, so that WordNet's file and a folder with the task give the same division.
"""

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adarank.errors import SettingError
from adarank.runs.files import write_text

SEED, DEV, TEST = 0, 2000, 5000
NAMES = ("train.jsonl", "dev.jsonl", "test.jsonl")
# The lexicographer files 04 to 28 in their order (WordNet's lexnames(5WN)); 03 is noun.Tops.
CLASSES = [
    "act",
    "animal",
    "artifact",
    "attribute",
    "body",
    "cognition",
    "communication",
    "event",
    "feeling",
    "food",
    "group",
    "location",
    "motive",
    "object",
    "person",
    "phenomenon",
    "plant",
    "possession",
    "process",
    "quantity",
    "relation",
    "shape",
    "state",
    "substance",
    "time",
]


def rows(source: Path) -> list[dict[str, str]]:
    """{text, label} of the noun synsets outside noun.Tops, each gloss once, in the order of the file.

    source: the folder with data.noun, or with the task itself. Raises SettingError for any other."""
    try:
        if not (source / "data.noun").exists():
            lines = [line for name in NAMES for line in (source / name).read_text(encoding="utf-8").splitlines()]
            return [{"text": row["text"], "label": row["label"]} for row in map(json.loads, lines)]
        lines = (source / "data.noun").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, KeyError):
        asked = f"WordNet's file data.noun, or with the task's {', '.join(NAMES)}"
        raise SettingError(f"SOURCE must be a folder with {asked} (got {source})") from None
    found: dict[str, str] = {}
    for line in lines:
        if line.startswith("  "):  # the licence
            continue
        fields, _, gloss = line.partition(" | ")
        number = int(fields.split()[1])
        if number > 3:
            found.setdefault(definition(gloss), f"noun.{CLASSES[number - 4]}")
    return [{"text": text, "label": label} for text, label in found.items()]


def definition(gloss: str) -> str:
    """A gloss without the quoted examples at its end."""
    return gloss.partition('; "')[0].strip().rstrip(";").rstrip()


def splits(found: list[dict[str, str]], seed: int = SEED, test: int = TEST) -> dict[str, list[dict[str, str]]]:
    """train, dev and test (of `test` rows), drawn with a seed."""
    if seed != SEED:
        found = sorted(found, key=lambda row: row["text"])
    shuffled = random.Random(seed).sample(found, len(found))
    return {"dev": shuffled[:DEV], "test": shuffled[DEV : DEV + test], "train": shuffled[DEV + test :]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the folder with WordNet's data.noun, or with the task")
    parser.add_argument("out", type=Path, help="the folder for train.jsonl, dev.jsonl and test.jsonl")
    parser.add_argument("--seed", type=int, default=SEED, help=f"seed of the division into splits ({SEED})")
    parser.add_argument("--test", type=int, default=TEST, help=f"number of test rows ({TEST:,})")
    options = parser.parse_args()
    try:
        found = rows(options.source)
        if options.seed == SEED and not (options.source / "data.noun").exists():
            raise SettingError(
                f"--seed must differ from {SEED} where SOURCE is the task itself, which has that division"
            )
        if not 0 < options.test < len(found) - DEV:
            raise SettingError(f"--test must be from 1 to {len(found) - DEV - 1:,} (got {options.test:,})")
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    for name, split in splits(found, options.seed, options.test).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in split)
        write_text(options.out / f"{name}.jsonl", text)
        print(f"{name}: {len(split):,} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
