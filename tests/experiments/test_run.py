"""The command line as a user types it, with tiny runs; where a start of its own proves nothing, in this process."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra.plugins.sweeper import Sweeper
from safetensors.torch import load_file

from adarank.harness import app
from adarank.harness.data.tasks import movie_reviews
from adarank.runs import allocations
from analysis import report
from tests.representatives import representatives

ROOT = Path(__file__).resolve().parents[2]


reviews = cache(movie_reviews._reviews)  # tens of thousands of rows, which would be parsed for every run


def main(arguments):
    """The command in this process; its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.setattr(movie_reviews, "_reviews", reviews)
        # both compose a job a second time, for hydra.mode, which is not set, and for errors that composing it shows
        # anyway
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
        patch.setattr(Sweeper, "validate_batch_is_legal", lambda *_: None)
        return app.main()


def inside(*arguments, status=0):
    """The same command in this process, which spares a start; (stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        found = main(arguments)
    assert found == status, out.getvalue() + err.getvalue()
    return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())


def run(*arguments, cwd=ROOT, status=0):
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "run.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def summaries(out: Path):
    found = {p.parent.name: json.loads(p.read_text()) for p in sorted(out.glob("*/summary.json"))}
    return found


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A tiny sweep of every method over two ranks and two seeds, run once, from another directory."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(elsewhere)
        done = inside("-m", "method=full,lora,adalora", "rank=4,8", "seed=0,1", "tiny=true", f"out={out}")
    assert not list(elsewhere.iterdir())
    return out, done


def test_a_sweep_makes_one_run_for_each_distinct_setting(sweep):
    out, done = sweep
    found = summaries(out)
    assert len(found) == 10  # full fine-tuning has no rank: two of its four jobs are the other two
    assert done.stdout.count("finished already") == 2
    assert {s["status"] for s in found.values()} == {"finished"}
    names = [name.rpartition("-s")[0] for name in found]
    assert len(set(names)) == 5
    assert all(name.startswith(found[folder]["method"]) for name, folder in zip(names, found, strict=True))


@pytest.mark.slow
def test_run_again_it_repeats_none_and_rewrites_nothing(sweep):
    out, _ = sweep
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.parent != out}
    done = inside("-m", "method=lora,adalora", "rank=4,8", "seed=0,1", "tiny=true", f"out={out}")
    assert done.stdout.count("finished already") == 8
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.parent != out} == before


@pytest.mark.slow
def test_rows_grouped_by_length_are_another_run_and_ungrouped_ones_the_same(sweep, tmp_path):
    out, _ = sweep
    words = ["method=lora", "rank=4", "seed=0", "tiny=true"]
    assert "finished already" in inside(*words, "train.group_by_length=false", f"out={out}").stdout
    inside(*words, "train.group_by_length=true", f"out={tmp_path}")
    (name,) = summaries(tmp_path)
    assert name not in summaries(out)


def test_the_budget_is_met_exactly_and_every_count_is_exact(sweep):
    for summary in summaries(sweep[0]).values():
        rank, counts = summary["rank"], summary["parameters"]
        if summary["method"] == "full":
            assert rank is None
            assert counts["trainable"] == counts["total"]
            continue
        assert sum(rank["final"].values()) == rank["budget_triplets"] == rank["budget"] * len(rank["final"])
        assert len(rank["final"]) == 12
        assert summary["scale"] == 2.0
        assert summary["labels"] == ["0", "1"]
        if summary["method"] == "lora":
            assert rank["initial"] == rank["budget"]
            assert counts["kept"] == counts["adapter"]
        else:
            assert rank["initial"] == -(-3 * rank["budget"] // 2)
            assert counts["kept"] < counts["adapter"]
            assert len(set(rank["final"].values())) > 1


def test_a_run_s_folder_holds_what_the_house_says(sweep):
    out, _ = sweep
    for name, summary in summaries(out).items():
        folder = out / name
        config = (folder / "config.yaml").read_text()
        for key in ("method", "rank", "seed", "targets"):
            assert f"\n{key}: " in "\n" + config
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert {line["split"] for line in lines} == {"train", "dev", "test"}
        assert all({"step", "split"} <= line.keys() for line in lines)
        metric = summary["metric"]
        dev = [line[metric["name"]] for line in lines if line["split"] == "dev"]
        assert metric["last"] == dev[-1]
        assert metric["best"] in dev
        assert metric["test"] == lines[-1][metric["name"]]
        status = json.loads((folder / "status.json").read_text())
        assert status["state"] == "finished"
        assert status["step"] == summary["steps"] == 12
        assert summary["time"]["step_ms"] > 0
        assert (folder / ("checkpoint" if summary["method"] == "full" else "adapter")).is_dir()


def test_allocations_are_recorded_step_by_step(sweep):
    out, _ = sweep
    for name, summary in summaries(out).items():
        if summary["method"] != "adalora":
            continue
        records, _ = allocations.read(out / name / "allocations.jsonl")
        assert records[-1]["ranks"] == summary["rank"]["final"]
        assert len(records) > 3
        for record in records:
            assert record["kept"] == record["budget"] == sum(record["ranks"].values())
        numbers = [i for i, record in enumerate(records, start=1) if "score_quantiles" in record]
        assert numbers == [n for n in range(1, len(records) + 1) if n in (1, 2, 4, 8, 16, len(records))]
        for quantiles in (records[i - 1]["score_quantiles"] for i in numbers):
            assert quantiles.keys() == summary["rank"]["final"].keys()
            assert all(q == sorted(q) and len(q) == 5 for q in quantiles.values())
        budgets = [r["budget"] for r in records]
        assert budgets == sorted(budgets, reverse=True)
        assert records[-1]["parameters"] == summary["parameters"]["kept"]


def test_best_of_an_adaptive_run_is_at_the_final_budget(sweep):
    for summary in summaries(sweep[0]).values():
        if summary["method"] == "adalora":
            assert summary["metric"]["best_step"] >= 12 - 0.3 * 12


def test_every_method_sees_the_same_head_and_order(sweep):
    """Before anything is learned, all methods compute the same: λ or B is 0, the head is drawn alike."""
    out, _ = sweep
    first = {}
    for name, summary in summaries(out).items():
        line = json.loads((out / name / "metrics.jsonl").read_text().splitlines()[0])
        first.setdefault(summary["seed"], []).append(line["loss"])
    for losses in first.values():
        assert max(losses) - min(losses) < 0.2


def test_factors_are_drawn_from_the_seed_whatever_the_head_took(tmp_path):
    """Heads of two and of three labels, and no step that moves anything."""
    factors = []
    for labels, seed in ((2, 0), (3, 0), (3, 1)):
        folder = tmp_path / f"{labels}-{seed}"
        folder.mkdir()
        for split in ("train", "dev"):
            (folder / f"{split}.csv").write_text("text,label\n" + "".join(f"a b {y},{y}\n" for y in range(labels)))
        inside("method=lora", "task=files", f"task.path={folder}", f"seed={seed}", "tiny=true", "train.steps=1",
               "train.lr=1e-30", "rank=2", f"out={folder / 'out'}")  # fmt: skip
        (saved,) = folder.glob("out/*/adapter/adapter.safetensors")
        factors.append({name: t for name, t in load_file(saved).items() if name.endswith(".Q")})
    assert len(factors[0]) == 12
    assert all(torch.equal(q, factors[1][name]) for name, q in factors[0].items())
    assert not any(torch.equal(q, factors[2][name]) for name, q in factors[0].items())


def test_a_saved_adapter_reloads_to_the_same_logits_and_merges(sweep):
    import adarank
    from adarank.harness.models import tiny

    out, _ = sweep
    name = next(n for n, s in summaries(out).items() if s["method"] == "adalora")
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        built = tiny("bert").build(2)
        adarank.load_adapter(built.model.eval(), out / name / "adapter")
        models.append(built.model)
    inputs = built.tokenizer(["a fine film", "dull"], padding=True, return_tensors="pt")
    with torch.no_grad():
        before = models[0](**inputs).logits
        assert torch.equal(models[1](**inputs).logits, before)
        assert sum(adarank.ranks(models[0]).values()) == summaries(out)[name]["rank"]["budget_triplets"]
        adarank.merge(models[0])
        torch.testing.assert_close(models[0](**inputs).logits, before, rtol=1e-5, atol=1e-6)


def test_compare_reads_the_sweep(sweep, capsys):
    assert report.main([str(sweep[0])], show=True) == 0
    said = capsys.readouterr().out
    assert said.strip().endswith("report/index.html")
    assert all(method in said for method in ("full", "lora", "adalora"))


def test_a_run_s_seed_and_settings_decide_its_result(tmp_path):
    for folder in ("a", "b"):
        inside("method=adalora", "tiny=true", "rank=4", f"out={tmp_path / folder}")
    a, b = (
        [json.loads(x) for x in next((tmp_path / f).glob("*/metrics.jsonl")).read_text().splitlines()] for f in "ab"
    )
    assert a == b


def test_accumulation_gives_the_result_of_one_large_batch(tmp_path):
    inside(
        "method=full", "tiny=true", "train.batch_size=8", f"out={tmp_path / 'a'}", "train.steps=4", "train.log_every=1"
    )
    inside(
        "method=full", "tiny=true", "train.batch_size=4", "train.gradient_accumulation_steps=2", f"out={tmp_path / 'b'}", "train.steps=4",
        "train.log_every=1",
    )  # fmt: skip
    lines = []
    for folder in ("a", "b"):
        text = next((tmp_path / folder).glob("*/metrics.jsonl")).read_text()
        lines.append([json.loads(x)["loss"] for x in text.splitlines() if '"train"' in x])
    assert lines[0][0] == pytest.approx(lines[1][0], rel=0.05)  # dropout differs, the rows do not


def test_the_effective_schedule_is_printed(tmp_path):
    done = inside("method=adalora", "tiny=true", "rank=4", "schedule.t_i=2", "schedule.interval=1", f"out={tmp_path}")
    line = next(x for x in done.stdout.splitlines() if "budget in triplets over 12 modules" in x)
    assert "72 at step 0" in line
    assert "48 at step 11; 6 allocations" in line


@pytest.mark.parametrize(
    ("overrides", "says"),
    representatives([
        (["rnak=8"], "rnak=8: there is no setting rnak; similar names: rank"),
        (["method=adalroa"], "method has no option adalroa; similar names: adalora"),
        (["method=lora,full"], "add -m to sweep over them"),
        (["method=lora", "score.beta1=0.9"], "score.beta1=0.9 has no effect, because score is none here"),
        (["tiny=true", "method=lora", "rank=500"], "rank must be a whole number from 1 to 128, the smaller side of"),
        (["tiny=true", "schedule.t_i=6", "schedule.t_f=6"], "schedule.t_i + schedule.t_f must be below the 12 steps (got 6 + 6)"),
        (["tiny=true", "target_modules=[qurey]"], "'qurey' matches no module; similar names:"),
        (["task=files", "task.path=/nowhere/at/all"], "/nowhere/at/all"),
        (["model=hub", "model.name=nobody/nothing"], "model.name=nobody/nothing could not be loaded"),
        (["rank=4.5"], "rank must be a whole number (got 4.5)"),
        (["method=lora", "score=adalora"], "score has no effect with method=lora"),
        (["tiny=true", "rank=0"], "rank must be a whole number of at least 1 (got 0)"),
        (["tiny=true", "rank=100"], "init_rank must be a whole number from 1 to 128, the smaller side of"),
        (["tiny=true", "init_rank=4"], "init_rank must be at least rank=8"),
        (["tiny=true", "schedule.t_f=0", "schedule.interval=100"], "otherwise no allocation applies the final budget"),
        (["tiny=true", "penalty.gamma=-1"], "penalty.gamma must be at least 0 (got -1)"),
        (["tiny=true", "score.beta1=2"], "score.beta1 must be at least 0 and below 1 (got 2)"),
        (["tiny=true", "score.beta1=high"], "score.beta1 must be a number (got high)"),
        (["tiny=true", "adapter.dropout=1"], "dropout must be at least 0 and less than 1 (got 1"),
        (["model=local", "model.path=/nowhere"], "model.path must be a folder that save_pretrained wrote, tokenizer included (/nowhere has no config.json"),
        ], 9),
)  # fmt: skip
def test_bad_input_is_one_sentence_status_2_and_no_folder(tmp_path, overrides, says):
    done = inside(*overrides, f"out={tmp_path / 'out'}", status=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_bad_input_in_a_process_of_its_own(tmp_path):
    done = run("tiny=true", "rank=0", f"out={tmp_path / 'out'}", cwd=tmp_path, status=2)
    assert done.stderr == "error: rank must be a whole number of at least 1 (got 0)\n"
    assert done.stdout == ""


@pytest.mark.parametrize("multirun", [[], ["-m"]])
def test_an_out_folder_that_cannot_be_written(tmp_path, multirun):
    (tmp_path / "file").write_text("")
    done = inside(*multirun, "tiny=true", "method=lora", f"out={tmp_path / 'file' / 'out'}", status=2)
    assert f"{tmp_path / 'file'}" in done.stderr
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_diverged_run_ends_with_one_sentence_and_is_run_again_on_request_only(tmp_path):
    command = [
        "method=full",
        "tiny=true",
        "train.lr=1e30",
        "train.max_grad_norm=0",
        "train.lr_scheduler=constant",
        f"out={tmp_path}",
    ]
    done = inside(*command, status=1)
    assert "error: full-s0 diverged: the loss became" in done.stderr
    folder = next(p for p in tmp_path.iterdir() if p.is_dir())
    assert json.loads((folder / "status.json").read_text())["state"] == "diverged"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "diverged"
    assert summary["error"].startswith("the loss became")
    assert "retry=failed runs it again" in inside(*command, status=1).stderr
    assert "the loss became" in inside(*command, "retry=failed", status=1).stderr


def test_one_bad_job_does_not_end_a_sweep(tmp_path):
    done = inside("-m", "method=lora", "rank=500,4", "tiny=true", f"out={tmp_path}", status=2)
    assert "rank must be a whole number from 1 to 128, the smaller side of" in done.stderr
    assert len(summaries(tmp_path)) == 1


def test_cfg_job_answers_without_importing_torch():
    code = (
        "import sys; sys.path.insert(0, '.'); sys.argv = ['run.py', '--cfg', 'job'];"
        "from adarank.harness.app import main; main(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip().endswith("False")
    assert "method: adalora" in done.stdout


@pytest.mark.slow  # by default tests/harness/tracking/test_wandb.py does the same without the command line
def test_wandb_without_a_key_warns_once_and_spoils_nothing(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "run.py"), "tiny=true", "method=lora", "tracker=wandb",
         "tracker.mode=online", f"out={tmp_path}"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**environment, "HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "W&B" in line or "wandb" in line]
    assert len(warnings) == 1, done.stderr
    (summary,) = summaries(tmp_path).values()
    assert summary["status"] == "finished"


@pytest.mark.slow
def test_wandb_offline_keeps_its_files_in_the_run_s_folder(tmp_path):
    inside("tiny=true", "tracker=wandb", "tracker.mode=offline", f"out={tmp_path}")
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    assert list((folder / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow
def test_the_demo_s_experiment_runs_at_tiny_size(tmp_path):
    """Those that are sweeps: test_experiments.py."""
    inside("experiment=quickstart", "tiny=true", f"out={tmp_path}")
    (summary,) = summaries(tmp_path).values()
    assert summary["status"] == "finished"
    assert summary["steps"] == 12
    assert summary["model"] == "tiny_bert"


def test_a_run_that_another_process_is_at_is_skipped_in_a_sweep_and_refused_alone(tmp_path):
    from adarank.runs import lock

    words = ["method=lora", "tiny=true", "train.steps=2", f"out={tmp_path}"]
    inside(*words)
    (folder,) = [p for p in tmp_path.iterdir() if p.is_dir()]
    before = (folder / "summary.json").read_bytes()
    with lock.locked(folder):
        alone = inside(*words, "force=true", status=1)
        assert "is being trained by another process" in alone.stderr
        sweep = inside("-m", *words, "force=true", "seed=0,1")
        assert "skipped here" in sweep.stdout
    assert (folder / "summary.json").read_bytes() == before
    assert len(summaries(tmp_path)) == 2
