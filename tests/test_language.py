"""Phrases that no native speaker would write stay out of code, YAML comments, messages and pages.

The list has only phrases that are never right here; reading a text aloud finds the rest.
"""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
THING = "run|seed|row|module|step|file|line|rank|process|kind|job|method|model|contender|dot|singular value"
UNNATURAL = {  # {what to write instead: (pattern, an example)}
    "one … per …": (rf"\b(a|one) ({THING}|bar|mark|ratio|piece|number|thread) an? ({THING})\b", "a line a run"),
    "continues, resumes": (r"\bgo(es)? on (with|from|where)\b", "it goes on from its checkpoint"),
    "again, new": (r"\banew\b", "laid out anew"),
    "next to, besides, compared with": (r"\bbeside\b", "a file beside it"),
    "unchanged": (r"\bas (it is|they are|it was|they were)[.,;:)]", "they stay as they are."),
    "a noun": (
        r"\bwhat is there\b|\bwho is at it\b|\bwhat trains\b|\bwhat was (sent|reported)\b",
        "what trains is fp32",
    ),
    "is not a …": (
        r"(?<!there )\bis no (file|folder|rank|number|path|JSON|YAML|multiple|option|setting|run)\b",
        "rank=0 is no rank",
    ),
    "must be … (got …)": (r"; valid:", "rank=0 is wrong; valid: 1 to 8"),
    "similar names": (r"\bnear names\b", "near names: rank"),
    "cannot be combined with": (r"\bdo(es)? not go with\b", "nf4 does not go with full"),
    "bit for bit": (r"\bas if it had never stopped\b|\bto the (same )?last digit\b", "to the same last digit"),
    "a stale lock": (r"\bcorpses?\b", "two find the same corpse"),
    "costs more": (r"\bdearer\b", "the step is dearer"),
    "plain words": (
        r"\bthe rather\b|\bhangs? together\b|\bwithout a word\b|\bat one go\b",
        "settings that hang together",
    ),
    "separate, its own": (
        r"\b(process(es)?|threads?|columns?) of (its|their) own\b",
        "jobs run in processes of their own",
    ),
}
SOURCES = [
    path
    for folder in ("adarank", "analysis", "conf", "experiments", "hydra_plugins")
    for kind in ("py", "yaml")
    for path in sorted((ROOT / folder).rglob(f"*.{kind}"))
]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]


def texts(path: Path) -> list[str]:
    """The strings and the blocks of comments of a Python file; the comments of a YAML file; a page. Lines are joined."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return [re.sub(r"\s+", " ", content)]
    if path.suffix == ".yaml":
        return [re.sub(r"\s+", " ", " ".join(line.partition("#")[2] for line in content.splitlines()))]
    found, comments = [], []
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.STRING:
            found.append(re.sub(r"\s+", " ", token.string))
        elif token.type == tokenize.COMMENT:
            comments.append(token.string.lstrip("# "))
    return [*found, " | ".join(comments), " ".join(comments)]


@pytest.mark.parametrize("instead", UNNATURAL)
def test_every_pattern_finds_its_example(instead):
    pattern, example = UNNATURAL[instead]
    assert re.search(pattern, example)


def test_code_settings_and_pages_have_none_of_the_phrases():
    assert len(SOURCES) > 400
    assert len(PAGES) > 20
    found = [
        f"{path.relative_to(ROOT)}: {match.group()!r}; write: {instead}"
        for path in [*SOURCES, *PAGES]
        for text in texts(path)
        for instead, (pattern, _) in UNNATURAL.items()
        if (match := re.search(pattern, text))
    ]
    assert found == []
