"""AdaLoRA's Table 1: the tiny scale by the command, and what is said of the differences."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from scipy.stats import t as student

from adarank.harness.config.compose import spec_from
from adarank.runs.packed import FILE, read_records, record_files
from experiments import protocol
from experiments import study as studies
from experiments.pack import add_records
from experiments.reproduce import adalora_table1 as table1
from tests.experiments.test_run import main as run_main
from tests.representatives import representatives

ROOT = Path(__file__).resolve().parents[3]
CONTENT = yaml.safe_load((ROOT / "experiments" / "reproduce" / "adalora_table1.yaml").read_text())


@pytest.fixture(scope="module")
def cola(tmp_path_factory):
    """A folder in GLUE's layout."""
    folder = tmp_path_factory.mktemp("glue") / "CoLA"
    folder.mkdir()
    for name, rows in (("train", 120), ("dev", 40)):
        lines = [f"x\t{i % 2}\t\t{'it rained all day' if i % 2 else 'day rained it'} {i}" for i in range(rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder.parent


def in_processes(words):
    """The script and each of its sweeps in a process of its own."""
    command = [sys.executable, str(ROOT / "experiments" / "reproduce" / "adalora_table1.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def in_this_one(words):
    """The same without a start, and with pages without figures."""
    out, err = io.StringIO(), io.StringIO()
    sweeps = SimpleNamespace(run=lambda command, env: SimpleNamespace(returncode=run_main(command[2:])))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(protocol, "subprocess", sweeps)
        patch.setattr("analysis.figures.figures", lambda *_: iter(()))
        patch.setattr(sys, "argv", ["adalora_table1.py", *words])
        status = table1.main()
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.mark.slow
@pytest.mark.parametrize("how", representatives([in_this_one, in_processes], 1))
def test_tiny_goes_through_and_a_second_call_trains_nothing(how, cola, tmp_path):
    def call(cola, out, results, *words):
        fixed = ["--scale", "tiny", "--data", str(cola), "--tasks", "cola"]
        return how([*fixed, "--out", str(out), "--results", str(results), *words])

    out, results = tmp_path / "out", tmp_path / "results"
    done = call(cola, out, results)
    assert done.returncode == 0, done.stderr
    chosen = json.loads((results / "tuning" / "cola" / "rates.json").read_text())
    assert {name: c["trials"] for name, c in chosen.items()} == {"lora": 4, "adalora": 4}
    found = json.loads((results / "table1_tiny.json").read_text())
    (cell,) = found["cells"]
    assert (cell["task"], cell["rank"], cell["against"], cell["best"]["pairs"]) == ("cola", 2, "lora", 3)
    assert "cola, r = 2, AdaLoRA − lora" in done.stdout
    assert "of 3 pairs; paper +1.33" in done.stdout
    assert "Not a reproduction: a random model" in done.stdout
    assert len(list(read_records(results))) == 14
    before = {path: path.read_bytes() for path in record_files(results)}

    # another machine: only the committed files are there
    again = call(cola, tmp_path / "elsewhere", results, "hydra/launcher=basic")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished already") == 14
    assert {path: path.read_bytes() for path in record_files(results)} == before

    read = call(cola, tmp_path / "nowhere", results, "--read")
    assert read.returncode == 0
    for stage in ("tuning", "seeds"):  # a report of each, from the committed files alone
        page = tmp_path / "nowhere" / stage / "report" / "index.html"
        assert f"report: {page}" in read.stdout
        assert "cola" in page.read_text(encoding="utf-8")
    empty = call(cola, tmp_path / "void", tmp_path / "nothing", "--read")
    assert (empty.returncode, empty.stdout) == (2, "")
    assert "--results must be a folder that this command has filled" in empty.stderr
    assert read.stdout.splitlines()[-2:] == done.stdout.splitlines()[-2:]


@pytest.mark.parametrize("scale", CONTENT["scales"])
def test_every_scale_is_a_fair_study(scale):
    study = table1.study(CONTENT, scale, Path("/data"))
    assert study.settings["holdout"]
    assert set(study.tasks) == {"cola", "sst2", "mrpc", "rte", "stsb"}
    for task in study.tasks.values():
        assert task["settings"]["task.path"] == "/data"


def test_at_the_paper_s_scale_the_recipe_sets_what_the_others_set_as_fractions():
    paper, small = (table1.study(CONTENT, scale, None) for scale in ("paper", "small"))
    assert paper.methods["adalora"]["settings"]["recipe"] == "adalora"
    assert "adaptive" not in paper.tasks["cola"]
    # t_i and t_f of Tables 8 to 10, over epochs × rows / batch
    table = {"cola": (800, 3500, 25 * 8551), "sst2": (6000, 22000, 24 * 67349), "mrpc": (600, 1800, 30 * 3668)}
    table |= {"rte": (600, 1800, 50 * 2490), "stsb": (800, 2000, 25 * 5749)}
    for task, (t_i, t_f, rows) in table.items():
        adaptive = small.tasks[task]["adaptive"]
        assert adaptive["schedule.t_i"] == pytest.approx(t_i / (rows / 32), rel=0.01)
        assert adaptive["schedule.t_f"] == pytest.approx(t_f / (rows / 32), rel=0.01)


@pytest.mark.parametrize("method", CONTENT["methods"])
def test_the_paper_s_scale_is_settled(method):
    """Composed and checked, not run: it needs the hub."""
    study = table1.study(CONTENT, "paper", None)
    budget = None if method == "full" else 2
    words = studies.words(studies.settings_of(study, "cola", studies.Cell(method, budget)))
    spec = spec_from(words)
    assert spec.train.steps == 6700
    assert spec.holdout == 0.05
    if method == "adalora":
        assert (spec.schedule.settings["t_i"], spec.adapter.settings["alpha"]) == (800, None)


def record(folder, method, rank, seed, test, last):
    record = {"config": {"rank": rank, "seed": seed}, "summary": {"metric": {"test": test, "test_last": last}}}
    add_records(folder / "seeds" / "cola" / method / FILE, {f"{method}-{rank}-s{seed}": record})


def test_a_cell_is_the_paired_difference_with_student_s_interval(tmp_path):
    rng = np.random.default_rng(0)
    one, two = rng.normal(0.5, 0.02, 5), rng.normal(0.48, 0.02, 5)
    for seed in range(5):
        record(tmp_path, "adalora", 8, seed, one[seed], one[seed] - 0.01)
        record(tmp_path, "lora", 8, seed, two[seed], two[seed])
        record(tmp_path, "lora", 2, seed, 0.9, 0.9)
        record(tmp_path, "full", 8, seed, 0.2, 0.2)
    record(tmp_path, "lora", 8, 7, 0.1, 0.1)  # no partner
    study = table1.study(CONTENT, "small", None)
    cell = table1.cell(study, CONTENT["paper"], tmp_path, "cola", 8, "lora")
    d = 100 * (one - two)
    half = student.ppf(0.975, 4) * d.std(ddof=1) / 5**0.5
    assert cell["best"]["pairs"] == 5
    assert cell["best"]["mean"] == pytest.approx(d.mean())
    assert cell["best"]["interval"] == pytest.approx([d.mean() - half, d.mean() + half])
    assert cell["last"]["mean"] == pytest.approx(d.mean() - 1)
    assert cell["paper"] == 1.63
    assert cell["same_sign"] == (d.mean() > 0)
    assert cell["paper_in_interval"] == (abs(1.63 - d.mean()) <= half)
    full = table1.cell(study, CONTENT["paper"], tmp_path, "cola", 8, "full")
    assert full["best"]["mean"] == pytest.approx(100 * (one.mean() - 0.2))
    assert full["paper"] == 2.26
    assert table1.cell(study, CONTENT["paper"], tmp_path, "cola", 8, "uniform")["best"]["pairs"] == 0


def test_one_pair_has_no_interval_and_no_verdict(tmp_path):
    record(tmp_path, "adalora", 2, 0, 0.5, 0.5)
    record(tmp_path, "lora", 2, 0, 0.4, 0.4)
    cell = table1.cell(table1.study(CONTENT, "small", None), CONTENT["paper"], tmp_path, "cola", 2, "lora")
    assert cell["best"] == {"pairs": 1, "mean": pytest.approx(10), "interval": None}
    assert cell["same_sign"] is None
    assert "1 pairs, too few for an interval" in table1.line(cell)
