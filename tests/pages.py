"""What the pages say: their code blocks, the commands in them and in running text, and checks that run nothing."""

import argparse
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from adarank import cli
from adarank.harness.config.compose import compose, spec_from
from adarank.harness.config.validate import conf_folder
from adarank.probe import cli as probe

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
LANGUAGES = {"sh", "python", "pycon", "yaml", "json", "text"}
PROGRAMS = {"adarank", "python", "torchrun", "make", "pip", "wandb"}
STANDS_FOR = {  # words in capitals that settings are composed with
    "experiment=NAME": "experiment=ranks",
    "experiment=paper/NAME": "experiment=paper/lora_table2",
    "score=lengths": "score=magnitude",  # the score that CONTRIBUTING adds; tests/test_docs.py does so
}
NUMBERS = ("seed", "rank", "train.lr")
FENCE = re.compile(r"^( *)```(\w*)(?: (\w+))?\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: its language, the name after it ("" without), its code without indentation, and its first line."""

    language: str
    name: str
    code: str
    line: int


class Command(NamedTuple):
    """A command of a page, with the line that it is on. block: whether it is in a block, and so can be run as it is."""

    page: Path
    line: int
    text: str
    block: bool

    @property
    def words(self) -> list[str]:
        """Without the comment and without variables before the program."""
        words = shlex.split(self.text, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        return words

    def __str__(self) -> str:
        return f"{self.page.stem}:{self.line} {self.text[:60]}"


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[Block]:
    text = read(page)
    found = []
    for match in FENCE.finditer(text):
        indent, language, name, code = match.groups()
        lines = [line.removeprefix(indent) for line in code.splitlines(keepends=True)]
        found.append(Block(language, name or "", "".join(lines), text.count("\n", 0, match.start()) + 2))
    return found


def spans(page: Path) -> Iterator[tuple[str, int]]:
    """The code in running text, on one line, and the line where it begins."""
    text = FENCE.sub(lambda match: "\n" * match[0].count("\n"), read(page))
    for match in re.finditer(r"`([^`]+)`", text):
        yield " ".join(match[1].split()), text.count("\n", 0, match.start()) + 1


def commands(page: Path) -> list[Command]:
    """Every line of a `sh` block, and every span of code that begins with a program."""
    found = []
    for block in blocks(page):
        if block.language == "sh":
            lines = block.code.replace("\\\n", "\0").splitlines()  # a command may continue on the next line
            for i, line in enumerate(lines):
                number = block.line + i + sum(before.count("\0") for before in lines[:i])
                if line.split("#")[0].strip():
                    found.append(Command(page, number, line.replace("\0", " "), True))
    told = ((span, line) for span, line in spans(page) if span.split()[0] in PROGRAMS)
    return found + [Command(page, line, span, False) for span, line in told]


def snippets(page: Path) -> dict[str, str]:
    """{name: code} of a page's Python blocks; those without a name are called by their line."""
    return {block.name or str(block.line): block.code for block in blocks(page) if block.language == "python"}


class Parsed(BaseException):
    """A script has parsed its arguments; `rest` is what it passes on."""

    def __init__(self, rest: list[str]) -> None:
        self.rest = rest


def check(command: Command) -> None:
    """Fails unless the command would start: its program, script, options and settings exist and fit."""
    words = [word for word in command.words if not word.startswith("…")]
    program, rest = words[0], words[1:]
    if program == "torchrun" and rest:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WORLD_SIZE", "2")
            check_settings(rest[rest.index("experiments/run.py") + 1 :])
    elif program == "adarank":
        check_adarank(rest, command)
    elif program == "python":
        check_script(rest, command)
    elif program == "make":
        check_make(rest)
    elif program == "pip":
        check_pip(rest)
    elif program != "torchrun":
        assert program == "wandb", f"{command}: {program} is not known"
        assert rest[0] in ("sweep", "agent")


def check_adarank(words: list[str], command: Command) -> None:
    if not words:
        return
    name, rest = words[0], words[1:]
    known = {*cli.PASSED_ON, *next(a for a in cli.parser()._actions if a.dest == "command").choices}
    assert set(name.split("|")) <= known, f"{command}: there is no adarank {name}"
    if name == "run":
        check_settings(rest)
    elif rest and name == "probe":  # running text may name an option alone: `adarank probe --prefixes`
        parsed(lambda: probe.main(rest if rest[0][0] != "-" else ["RUN", *rest, "VALUE"]))
    elif rest or command.block:
        cli.parser().parse_args([name, *(word for word in rest if not re.fullmatch(r"\[[A-Z]+\]", word))])


def check_script(words: list[str], command: Command) -> None:
    if words[0] == "-m":
        assert words[1:] == ["adarank"]
        return
    script = ROOT / words[0]
    assert script.is_file(), f"{command}: {words[0]} does not exist"
    if words[0] == "experiments/run.py":
        check_settings(words[1:])
    elif command.block or words[1:]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words)
            patch.setattr(sys, "path", [str(ROOT), str(script.parent), *sys.path])
            passed_on = parsed(lambda: runpy.run_path(str(script), run_name="__main__"))
        spec_from(passed_on)


def parsed(run) -> list[str]:
    """`run` up to the point where argparse has accepted the arguments; those it passes on."""
    accept = argparse.ArgumentParser.parse_known_args

    def strict(self, args=None, namespace=None):
        _, rest = accept(self, args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        raise Parsed([])

    def known(self, args=None, namespace=None):
        raise Parsed(accept(self, args, namespace)[1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", strict)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", known)
        try:
            run()
        except Parsed as done:
            return done.rest
        except SystemExit as stop:
            raise AssertionError(f"the arguments are refused: {stop}") from None
    raise AssertionError("no arguments were parsed")


@cache
def settle(overrides: tuple[str, ...], processes: str) -> None:
    """processes: WORLD_SIZE, on which it depends whether settings fit."""
    spec_from(overrides)


def check_settings(words: list[str]) -> None:
    """Every value of a sweep settles with one of every other; of numbers, the first stands for all."""
    words = [STANDS_FOR.get(word, word) for word in words if word not in ("-m", "--help")]
    values = []
    for o in OverridesParser.create().parse_overrides(words):
        swept = [f"{o.key_or_group}={value}" for value in o.sweep_string_iterator()] if o.is_sweep_override() else []
        values.append(swept[: 1 if o.key_or_group in NUMBERS else None] or [o.input_line])
    for i in range(max(map(len, values), default=0)):
        settle(tuple(of[i % len(of)] for of in values), os.environ.get("WORLD_SIZE", "1"))


def check_make(words: list[str]) -> None:
    makefile = read(ROOT / "Makefile")
    for word in words:
        variable, is_set, _ = word.partition("=")
        pattern = rf"^{variable} \?=" if is_set else rf"^{word}:.*##"
        assert re.search(pattern, makefile, re.MULTILINE), f"the Makefile has no {word}"


def check_pip(words: list[str]) -> None:
    project = read(ROOT / "pyproject.toml")
    extras = re.findall(r"^(\w+) = \[", project.partition("[project.optional-dependencies]")[2], re.MULTILINE)
    assert words[0] == "install"
    for word in words[1:]:
        name, _, listed = word.partition("[")
        if name == ".":
            assert set(filter(None, listed.rstrip("]").split(","))) <= set(extras), word
        else:
            assert word == "--no-deps" or re.match(r"[\w-]+(\{.*\})?==[\d.]+$", word), word
            assert name == "--no-deps" or re.match(r"[\w-]+", word)[0].rstrip("-") in project, word


def setting_names() -> set[str]:
    """Every dotted setting: those of a run, and those that a file of conf/GROUP lists."""
    config, _ = compose([])
    names = {f"{group}.{key}" for group, inside in config.items() if hasattr(inside, "keys") for key in inside}
    for path in conf_folder().glob("*/*.yaml"):
        names |= {f"{path.parent.name}.{key}" for key in yaml.safe_load(path.read_text()) or {}}
    for path in conf_folder().glob("hydra/*/*.yaml"):
        names |= {f"hydra.{path.parent.name}.{key}" for key in yaml.safe_load(path.read_text()) or {}}
    return names
