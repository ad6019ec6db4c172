"""The house's arrows: which room may import which. Read from the source, nothing is imported."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(p for room in ("adarank", "analysis", "experiments") for p in (ROOT / room).rglob("*.py"))

# A file may import from its own room and from rooms further down this list.
ORDER = [
    ("cli",),
    ("commands",),
    ("probe",),
    ("harness",),
    ("integrations",),
    ("graph_capture",),
    ("controller",),
    ("compaction", "compression", "truncation", "activations", "suggestion"),
    ("scores", "allocators", "schedules", "penalties"),
    ("feed",),
    ("bank", "adaptation", "optimizers"),
    ("inits", "adapters", "targets"),
    ("runs",),
    ("errors", "pieces", "tensor_files"),
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
ALGORITHM = {room for rooms in ORDER[ORDER.index(("controller",)) : ORDER.index(("runs",))] for room in rooms}
ALLOWED_IN_ALGORITHM = {"torch", "numpy", "safetensors"}


@cache
def imports(path: Path) -> set[str]:
    """Absolute names of every import in the file, lazy ones too; those for type checkers alone are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "adarank").with_suffix("").parts
    return parts[0]


def adarank_rooms(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("adarank.")}


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.is_relative_to(ROOT / "adarank")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_arrows_point_one_way(path):
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    assert here in LEVEL, f"{here} is a new room: give it its place in the order"
    for other in adarank_rooms(imports(path)) & LEVEL.keys():
        siblings = (
            LEVEL[other] == LEVEL[here] and other != here and not {here, other} <= {"adapters", "inits", "targets"}
        )
        assert LEVEL[other] >= LEVEL[here], f"{path.name} imports {other}, which stands above it"
        assert not siblings, f"{path.name} imports its sibling {other}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.is_relative_to(ROOT / "adarank")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_algorithm_imports_torch_numpy_safetensors_and_nothing_else(path):
    import sys

    if room(path) not in ALGORITHM:
        return
    outside = {n.split(".")[0] for n in imports(path)} - set(sys.stdlib_module_names) - {"adarank"}
    assert outside <= ALLOWED_IN_ALGORITHM


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_wandb_is_imported_in_one_file_and_analysis_stands_apart(path):
    names = {n.split(".")[0] for n in imports(path)}
    if path != ROOT / "adarank" / "harness" / "tracking" / "wandb.py":
        assert "wandb" not in names
    if path.is_relative_to(ROOT / "analysis"):
        assert not names & {"torch", "transformers"}
        assert adarank_rooms(imports(path)) <= {"runs"}
    if path.is_relative_to(ROOT / "adarank"):
        assert not names & {"analysis", "experiments", "tests"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_pickled(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    picklers = {n for n in imports(path) if n.split(".")[0] in {"pickle", "dill", "joblib", "shelve"}}
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    if path == ROOT / "adarank" / "harness" / "models.py":  # model.allow_bin: tensors alone
        assert picklers == {"pickle.UnpicklingError"}
        assert all("weights_only=True" in map(ast.unparse, load.keywords) for load in loads)
    else:
        assert not picklers
        assert not loads


def heavy_after(imported):
    """Which of the slow packages importing these modules brings in."""
    import subprocess
    import sys

    slow = ("torch", "transformers", "wandb", "pandas")
    code = f"import sys, {imported}; print([name for name in {slow} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return out.stdout.strip()


@pytest.mark.parametrize(
    "modules", ["adarank, adarank.harness.app, adarank.runs.frame", "analysis.report, analysis.compare"]
)
def test_importing_adarank_and_analysis_is_light(modules):
    assert heavy_after(modules) == "[]"
