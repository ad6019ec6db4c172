"""MkDocs hook: what the pages link to outside docs/ becomes part of the site, below repository/.

The README is the site's first page. A Markdown file of the repository becomes a page, any other file a download, and
all links between them are rewritten, so that the same link works on disk and on the site. A link to a folder, which a
site cannot show, becomes plain text. Notebooks in docs/ become pages.
"""

import json
import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)]*)?\)")
EACH = re.compile(r"^::: (adarank\.\w+)\.\*$", re.MULTILINE)
NAMED = re.compile(r"^( *```python) \w+$", re.MULTILINE)  # an example that a test runs by its name
FENCE = re.compile(r"(^ *```.*?^ *```[^\n]*$|`[^`\n]*`)", re.DOTALL | re.MULTILINE)


def source_of(uri: str) -> str:
    """The path in the repository of the site's file `uri`: "repository/experiments/LOG.md" is experiments/LOG.md."""
    if uri == "index.md":
        return "README.md"
    place = PurePosixPath(uri)
    return str(place.relative_to("repository")) if place.parts[0] == "repository" else f"docs/{uri}"


def uri_of(source: str) -> str:
    """The inverse of `source_of`. A notebook's page has its name."""
    if source == "README.md":
        return "index.md"
    place = PurePosixPath(source)
    inside = str(place.relative_to("docs")) if place.parts[0] == "docs" else f"repository/{source}"
    return inside.removesuffix(".ipynb") + ".md" if inside.endswith(".ipynb") else inside


def rewritten(text: str, uri: str) -> tuple[str, set[str]]:
    """The Markdown `text` of the page `uri` with links that work on the site, and the files outside docs/ it needs."""
    home, needed = str(PurePosixPath(source_of(uri)).parent), set()

    def link(match: re.Match[str]) -> str:
        image, label, target, anchor = match.groups()
        if ":" in target:  # a URL
            return match[0]
        source = normpath(f"{home}/{target}")
        if (ROOT / source).is_dir():
            return label
        if not source.startswith(("docs/", "README.md", "..")) and (ROOT / source).is_file():
            needed.add(source)
        return f"{image}[{label}]({relpath(uri_of(source), str(PurePosixPath(uri).parent))}{anchor or ''})"

    parts = FENCE.split(text)  # every second part is code, in which only the name of an example is dropped
    return "".join(NAMED.sub(r"\1", part) if i % 2 else LINK.sub(link, part) for i, part in enumerate(parts)), needed


def notebook(path: Path) -> str:
    """A notebook as Markdown: text, code, and what the code printed or drew."""
    pieces = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        pieces.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                pieces.append(f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})")
            elif text := "".join(data.get("text/plain", "")):
                pieces.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(pieces) + "\n"


def each_function(match: re.Match[str]) -> str:
    """`::: adarank.scores.*` as one directive for every file of the folder that defines a function of its own name."""
    folder = match[1]
    stems = sorted(path.stem for path in (ROOT / folder.replace(".", "/")).glob("*.py"))
    texts = {stem: (ROOT / folder.replace(".", "/") / f"{stem}.py").read_text(encoding="utf-8") for stem in stems}
    return "\n".join(f"::: {folder}.{stem}.{stem}" for stem, text in texts.items() if f"\ndef {stem}(" in text)


def on_files(files, config):
    """Add the README, notebooks' pages, and what any page links to outside docs/, and what that links to."""
    pages = {file.src_uri: Path(file.abs_src_path).read_text(encoding="utf-8") for file in files.documentation_pages()}
    pages["index.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            pages[uri_of(f"docs/{file.src_uri}")] = notebook(Path(file.abs_src_path))
    waiting, done = list(pages), {"index.md": pages["index.md"]}
    while waiting:
        uri = waiting.pop()
        text, needed = rewritten(pages[uri], uri)
        done[uri] = EACH.sub(each_function, text)
        for source in needed:
            new = uri_of(source)
            if new in pages:
                continue
            if source.endswith(".md"):
                pages[new] = (ROOT / source).read_text(encoding="utf-8")
                waiting.append(new)
            elif files.get_file_from_path(new) is None:
                files.append(File.generated(config, new, abs_src_path=str(ROOT / source)))
    for uri, text in done.items():
        if (old := files.get_file_from_path(uri)) is not None:
            files.remove(old)
        files.append(File.generated(config, uri, content=text))
    return files
