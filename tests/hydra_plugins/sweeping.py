"""Sweeps in processes of their own, and what is done to them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = ["tiny=true", "train.steps=2"]


def start(out: Path, *words: object, **environment: str) -> subprocess.Popen[str]:
    """A sweep with its output in pipes, in a process group of its own."""
    command = [sys.executable, str(ROOT / "experiments" / "run.py"), "-m", *map(str, words), f"out={out}"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environ, start_new_session=True, **pipes)


def sweep(out: Path, *words: object, status: int = 0, **environment: str) -> tuple[str, str]:
    """(stdout, stderr) of a sweep that must end with `status`."""
    process = start(out, *words, **environment)
    said, erred = process.communicate(timeout=300)
    assert process.returncode == status, said + erred
    return said, erred


def finished(out: Path) -> dict[str, int]:
    """{run: when its summary was written} of the finished runs."""
    paths = [p for p in out.glob("*/summary.json") if json.loads(p.read_text())["status"] == "finished"]
    return {p.parent.name: p.stat().st_mtime_ns for p in paths}


def wait_for(what: Callable[[], object], seconds: float = 300) -> object:
    """The first true value of `what`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.02)
    raise TimeoutError("it never came")


def kill_a_job(out: Path, parent: int, step: int = 3, parent_of: bool = False) -> str:
    """kill -9 the process that trains a run, or the one that started it, once the run is past `step`, in mid-job; never
    `parent`, the sweep's own. Returns the run's name."""

    def victim() -> tuple[Path, int] | None:
        for path in out.glob("*/metrics.jsonl"):
            status = json.loads((path.parent / "status.json").read_text())
            lines = path.read_text().splitlines()
            if status["state"] == "running" and lines and json.loads(lines[-1])["step"] >= step:
                return path.parent, status["pid"]
        return None

    folder, pid = wait_for(victim)
    if parent_of:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert pid != parent
    os.kill(pid, signal.SIGKILL)
    return folder.name


def conf_with_a_broken_task(folder: Path) -> Path:
    """A folder for --config-dir: task=broken reads nothing and raises."""
    (folder / "conf" / "task").mkdir(parents=True)
    (folder / "conf" / "task" / "broken.yaml").write_text(
        f"_target_: {conf_with_a_broken_task.__module__}.broken\nlimit: null\n"
    )
    return folder / "conf"


def broken(limit: int | None = None) -> None:
    raise LookupError("no such thing")
