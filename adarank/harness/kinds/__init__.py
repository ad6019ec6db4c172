"""Kinds of task: one module each, which holds everything in which it differs from the others (`Kind`).

A task names its kind (`Task.kind`); models, the loop and the run ask the module. To add one: a module that has what
`Kind` lists, a line in KINDS, and tasks that name it.
"""

from adarank.harness.kinds import classify, extract, generate, seq2seq
from adarank.harness.kinds.kind import Kind

KINDS: dict[str, Kind] = {"classify": classify, "extract": extract, "generate": generate, "seq2seq": seq2seq}

__all__ = ["KINDS", "Kind"]
