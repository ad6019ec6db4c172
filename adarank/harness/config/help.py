"""The text of `adarank settings` and `adarank run --help`: every setting with its default and its help sentence."""

import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from adarank.harness.config.messages import listed
from adarank.harness.config.spec import GROUPS, BudgetConfig, Spec, TrainConfig
from adarank.harness.config.validate import conf_folder

USAGE = """adarank run SETTING=VALUE …        start one run
adarank run -m SETTING=A,B …       sweep over every combination, skipping finished runs
adarank run … --cfg job            print the composed settings and stop
adarank run --hydra-help           list Hydra's own flags (--config-dir, hydra/launcher=…)
"""
CHOSEN = ("method", "targets", *GROUPS, "recipe", "experiment")  # groups of conf/


def describe() -> str:
    """List every group with its options and every other setting with its default and help sentence."""
    conf = conf_folder()
    options = {
        group: sorted(p.relative_to(conf / group).with_suffix("").as_posix() for p in (conf / group).rglob("*.yaml"))
        for group in CHOSEN
    }
    lines = [
        USAGE,
        "Choose one option per group. Each option is a file in conf/GROUP, whose comments explain its settings:",
        "",
    ]
    lines += [_wrapped(f"  {group}=", "  ".join(names)) for group, names in options.items() if names]
    lines += ["", "Settings and their defaults:", ""]
    for prefix, part in (("", Spec), ("budget.", BudgetConfig), ("train.", TrainConfig)):
        for f in fields(part):
            if f.name not in (*CHOSEN, "budget", "train"):
                default = "required" if f.default is MISSING else "null" if f.default is None else str(f.default)
                default = default.lower() if isinstance(f.default, bool) else default
                lines.append(f"  {prefix}{f.name} = {default}")
                lines.append(_wrapped("      ", f.metadata["help"] + _valid(f.metadata)))
    return "\n".join(lines)


def _valid(about: Mapping[str, Any]) -> str:
    if "choices" in about:
        return f" Options: {listed(about['choices'])}."
    if "at_least" in about:
        return f" Must be at least {about['at_least']}."
    return f" Must be above {about['above']}." if "above" in about else ""


def _wrapped(start: str, text: str) -> str:
    return textwrap.fill(text, 110, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False)
