"""Griffe extension: how the site shows this project's docstrings.

An `Example:` becomes the section `Examples:`, whose prompts are highlighted, and a paragraph of entries such as

    gamma: γ >= 0.
    width: rows of one stack,
        at most all of them.

becomes a list.
"""

import re

from griffe import Extension

ENTRY = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*)(\([^)]*\)(?: -> [\w\[\]]+)?)?: (?=\S)", re.IGNORECASE)


def readable(text: str) -> str:
    """`text`, a docstring without common indentation, as Markdown with Google's sections."""
    paragraphs = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE).split("\n\n")
    return "\n\n".join(map(_as_list, paragraphs))


def _as_list(paragraph: str) -> str:
    first = ENTRY.match(paragraph)
    if first is None or first[1] == "Example":
        return paragraph
    lines = []
    for line in paragraph.split("\n"):
        entry = ENTRY.match(line)
        lines.append(f"- `{entry[1]}{entry[2] or ''}`: {line[entry.end() :]}" if entry else f"  {line.strip()}")
    return "\n".join(lines)


class Readable(Extension):
    def on_object(self, *, obj, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)
