"""The `adarank` command. Exit status: 0 done, 1 a run or command failed, 2 an argument or setting cannot be used.

Heavy imports wait until a command needs them, so that the help appears at once.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from adarank.errors import RunFailed, SettingError

ARGUMENTS: dict[str, dict[str, Any]] = {
    "runs": {"type": Path, "metavar": "OUT", "help": "the folder that holds the runs (out=… of the sweep)"},
    "folder": {
        "type": Path,
        "metavar": "FOLDER",
        "help": "a folder written by adarank.save_adapter, a finished run's folder, or PEFT's folder of a LoRA or "
        "AdaLoRA",
    },
    "out": {"type": Path, "metavar": "OUT", "help": "the folder to write; it must not exist yet"},
    "kind": {
        "nargs": "?",
        "default": "runs",
        "metavar": "KIND",
        "help": "runs (the default: one row per run), metrics, allocations, ranks or predictions",
    },
    "--csv": {"type": Path, "metavar": "FILE", "help": "the CSV file to write"},
    "--parquet": {"type": Path, "metavar": "FILE", "help": "the Parquet file to write (needs pyarrow)"},
    "--project": {"help": "W&B project; default: the one of the run's tracker, or else adarank"},
    "--entity": {"help": "W&B user or team; default: the one of the run's tracker, or else your own"},
    "--base": {
        "metavar": "MODEL",
        "help": "the base model's folder or its name on the Hugging Face hub; default: the base that the adapter names",
    },
    "--uniform-rank": {
        "action": "store_true",
        "help": "pad every module with zeros to one rank, for inference engines that accept only one",
    },
    "model": {
        "metavar": "MODEL",
        "help": "the base model's folder, its name on the Hugging Face hub, or the name of a file in conf/model",
    },
    "data": {
        "metavar": "DATA",
        "help": "a JSONL, JSON, CSV, TSV or Parquet file with the columns messages; prompt and response; instruction "
        "and output; or text and label, or the name of a task of 'adarank run'",
    },
    "--out": {
        "type": Path,
        "required": True,
        "metavar": "FOLDER",
        "help": "the folder to write; it must not exist yet",
    },
    "--method": {
        "default": "eva",
        "metavar": "METHOD",
        "help": "eva (the default; needs no gradients), gora, fisher or ralora",
    },
    "--steps": {"type": int, "default": 8, "metavar": "N", "help": "maximum number of batches to read (default: 8)"},
    "--set": {
        "dest": "settings",
        "nargs": "+",
        "default": (),
        "metavar": "KEY=VALUE",
        "help": "settings of 'adarank run' for the model, its targets and the data, such as targets=qv task.path=GLUE "
        "train.batch_size=4 task.max_tokens=1024",
    },
    "--budget": {
        "type": int,
        "metavar": "N",
        "help": "mean rank per module, like rank=N of a run: N times the number of modules, distributed freely over "
        "them",
    },
    "--prefix": {
        "type": int,
        "metavar": "R",
        "help": "keep the first R triplets of every module instead, for adapters trained at every prefix rank "
        "(MatryoshkaLoRA, DyLoRA)",
    },
}


def _run(words: Sequence[str]) -> int:
    """The Hydra application, which reads sys.argv."""
    sys.argv = ["adarank run", *words]
    from adarank.harness.app import main

    return main()


def _probe(words: Sequence[str]) -> int:
    from adarank.probe.cli import main

    return main(words)


PASSED_ON = {"run": _run, "probe": _probe}  # commands that parse their own arguments


def parser() -> argparse.ArgumentParser:
    """The parser of every command but those in PASSED_ON, which it only lists."""
    whole = argparse.ArgumentParser(
        prog="adarank",
        description="Low-rank adapters whose rank budget adapts: run experiments, inspect and convert adapters.",
        epilog="Run 'adarank COMMAND --help' for the help of a command.",
    )
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, call: str, arguments: Sequence[str], summary: str, description: str) -> argparse.ArgumentParser:
        """Add a command that passes `arguments` (names in ARGUMENTS) to the function `call` ("module:name")."""
        command = commands.add_parser(name, help=summary, description=description)
        actions = [command.add_argument(argument, **ARGUMENTS[argument]) for argument in arguments]
        command.set_defaults(call=call, arguments=[action.dest for action in actions])
        return command

    commands.add_parser("run", help="train and evaluate one run, or a sweep with -m (settings as key=value)")
    summary = "list every setting of a run with its default and an explanation"
    add("settings", "adarank.harness.config.help:describe", (), summary, "")
    add(
        "status",
        "adarank.runs.status:watch",
        ("runs",),
        "show the state of every run of a sweep",
        "Prints one line per run (state, step, time left, result or last error) and the totals. On a terminal it "
        "refreshes while any run is running.",
    )
    add(
        "frame",
        "adarank.commands.frame:write_table",
        ("runs", "kind", "--csv", "--parquet"),
        "write the runs of a folder, or their metrics or ranks, as one table",
        "Writes the table that adarank.frame returns: one row per run with its settings, results and costs, or one "
        "row per metrics record, per allocation, per module and allocation, or per test prediction. Reads packed "
        "results and run folders, finished or not.",
    )
    commands.add_parser("probe", help="measure a finished run's weights: ablations, weight change, forgetting")
    add(
        "sync",
        "adarank.harness.tracking.sync:sync",
        ("runs", "--project", "--entity"),
        "send the finished runs of a sweep to W&B",
        "Sends the files of every finished run to W&B, as one group. Skips runs that W&B already has; a run that has "
        "changed replaces its W&B run.",
    )
    add(
        "inspect",
        "adarank.commands.inspect:report",
        ("folder",),
        "show an adapter's ranks, parameters and spectrum",
        "Prints one line per module: its rank, its parameters, the norm of its weight change, the largest and smallest "
        "singular value, the effective rank (the exponential of the entropy of the normalised singular values), the "
        "stable rank (squared norm over squared largest singular value), and one bar per singular value. Needs no base "
        "model.",
    )
    add(
        "merge",
        "adarank.commands.merge:merge_folder",
        ("folder", "out", "--base"),
        "write the base with the adapter merged into its weights",
        "Writes a plain Transformers model, which from_pretrained loads without adarank and which is as fast as the "
        "base at inference, with its tokenizer or image processor and, for a run, its class names. Prints how much the "
        "outputs on a probe input change at most.",
    )
    export = add(
        "export",
        "adarank.commands.export:export_folder",
        ("folder", "out", "--uniform-rank"),
        "write the adapter in another library's format",
        "Writes adapter_config.json and adapter_model.safetensors, which peft.PeftModel.from_pretrained loads onto the "
        "original base. Needs no base model.",
    )
    export.add_argument("--format", choices=("peft",), required=True, help="peft: a plain LoRA of Hugging Face PEFT")
    add(
        "compress",
        "adarank.commands.compress:compress_folder",
        ("folder", "out", "--budget", "--prefix"),
        "shrink an adapter to its largest singular values over all modules, or to its first triplets",
        "--budget distributes a budget over the modules so that the weights change least; --prefix cuts every module "
        "to the same rank. Prints each module's loss. An adapter in PEFT's format stays in that format. Needs no "
        "base model.",
    )
    add(
        "suggest",
        "adarank.commands.suggest:suggest_folder",
        ("model", "data", "--out", "--budget", "--method", "--steps", "--set"),
        "measure a rank for every module and write the ranks as a LoraConfig of PEFT",
        "Reads a few batches, without training, and writes adapter_config.json with rank_pattern and alpha_pattern, "
        "the same settings for axolotl, and a picture of the ranks. The mean rank equals the budget exactly.",
    )
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute the command in `arguments` (default: sys.argv without the program); returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in PASSED_ON:
        return PASSED_ON[words[0]](words[1:])
    options = parser().parse_args(words)
    try:
        module, _, function = options.call.partition(":")
        text = getattr(import_module(module), function)(*(getattr(options, name) for name in options.arguments))
        if text is not None:
            print(text)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
