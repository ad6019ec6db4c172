"""The commands for adapter folders, as the command line knows them. Nothing heavy is imported before one is called."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "a folder that adarank.save_adapter wrote, a finished run's folder, or a LoRA or AdaLoRA folder of PEFT"


def add(commands: Any) -> None:
    """Add inspect, merge, export and compress to argparse's subparsers."""
    _command(
        commands,
        "inspect",
        "what an adapter is: ranks, parameters, spectrum",
        "A line a module: its rank, its parameters, the norm of its change of the weight, the largest and smallest "
        "singular value, effective rank (the exponential of the entropy of the singular values' shares) and stable "
        "rank (squared norm over squared largest singular value), and a picture of the spectrum. Needs no base model.",
        _inspect,
    )
    merge = _command(
        commands,
        "merge",
        "write the base with the adapter in its weights",
        "Writes a plain Transformers model, which from_pretrained loads without adarank and which costs at inference "
        "what the base costs.",
        _merge,
        out=True,
    )
    merge.add_argument(
        "--base",
        metavar="MODEL",
        help="the base model's folder, or its name on the Hugging Face hub; default: the one that the adapter names",
    )
    export = _command(
        commands,
        "export",
        "write the adapter in another library's format",
        "Writes adapter_config.json and adapter_model.safetensors, which peft.PeftModel.from_pretrained loads onto the "
        "original base. Needs no base model.",
        _export,
        out=True,
    )
    export.add_argument("--format", choices=("peft",), required=True, help="peft: a plain LoRA of Hugging Face PEFT")
    export.add_argument(
        "--uniform-rank",
        action="store_true",
        help="pad every module with zeros to one rank, for inference engines that take no rank per module",
    )
    compress = _command(
        commands,
        "compress",
        "keep the largest singular values of all modules together",
        "Of all ways to spend the budget over the modules this one changes the weights least. Prints what is lost; an "
        "adapter of PEFT stays one of PEFT. Needs no base model.",
        _compress,
        out=True,
    )
    compress.add_argument(
        "--budget",
        type=int,
        required=True,
        metavar="N",
        help="mean rank per module, as rank=N of a run: N times the number of modules, shared out freely among them",
    )


def _command(
    commands: Any,
    name: str,
    summary: str,
    description: str,
    act: Callable[[argparse.Namespace], None],
    out: bool = False,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=description)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=FOLDER)
    if out:
        parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; it must not exist yet")
    parser.set_defaults(act=act)
    return parser


def _inspect(options: argparse.Namespace) -> None:
    from adarank.commands.inspect import report

    print(report(options.folder))


def _merge(options: argparse.Namespace) -> None:
    from adarank.commands.merge import merge_folder

    print(merge_folder(options.folder, options.out, options.base))


def _export(options: argparse.Namespace) -> None:
    from adarank.commands.export import export_folder

    print(export_folder(options.folder, options.out, options.uniform_rank))


def _compress(options: argparse.Namespace) -> None:
    from adarank.commands.compress import compress_folder

    print(compress_folder(options.folder, options.out, options.budget))
