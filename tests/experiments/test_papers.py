"""The papers' experiments: each says what it costs and is in the page's table, every job of it settles at full size,
its settings are the papers', and one job of it runs, tiny, on local rows."""

import json
import math
import re
from dataclasses import replace
from functools import cache

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from adarank.harness.config.compose import compose, spec_from
from adarank.harness.config.validate import conf_folder
from adarank.harness.sweep import count_jobs
from tests.experiments.test_run import ROOT, inside, summaries
from tests.harness.data.tasks import official_glue, squad_folder
from tests.representatives import representatives
from tests.test_conf import NEEDS

FOLDER = conf_folder() / "experiment" / "paper"
TABLES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
DEFAULT = ("adalora_table2", "adalora_table3", "metamathqa")  # each with another type of task
NEWS = "".join(json.dumps({"document": f"A {word} day. More.", "summary": word}) + "\n" for word in ("fine", "grey"))
ONCE = ("seed", "train.lr", "rank")  # numbers, whose first value stands for all
SUMS = "".join(json.dumps({"question": f"{i} + {i}?", "answer": f"Add.\n#### {2 * i}"}) + "\n" for i in range(1, 5))


@cache
def swept(table):
    """The words of its own sweep, as composed: those of the files it includes, too."""
    _, hydra = compose([f"experiment=paper/{table}"])
    return [f"{key}={value}" for key, value in hydra.sweeper.params.items()]


def values(table):
    """{setting: its values} of the sweep."""
    return {
        o.key_or_group: list(o.sweep_string_iterator()) if o.is_sweep_override() else [o.input_line.partition("=")[2]]
        for o in OverridesParser.create().parse_overrides(swept(table))
    }


def jobs(table):
    """Its first job, and with one word changed those that show every other task, method, score and so on."""
    of = values(table)
    first = {key: found[0] for key, found in of.items()}
    changed = [first, *({**first, key: value} for key, found in of.items() if key not in ONCE for value in found[1:])]
    return [[f"{key}={value}" for key, value in job.items()] for job in changed]


def settled(table, words):
    needs = NEEDS.get(("experiment", f"paper/{table}"), [])
    return spec_from([f"experiment=paper/{table}", *needs, *words])


@pytest.mark.parametrize("table", representatives(TABLES, DEFAULT))
def test_its_head_says_what_it_costs_and_the_command(table):
    head = (FOLDER / f"{table}.yaml").read_text().partition("defaults:")[0]
    assert int(re.search(r"Cost: (\d+) jobs?,", head).group(1)) == count_jobs(swept(table))
    assert re.search(rf"^# python experiments/run.py -m experiment=paper/{table} .*out=runs/\w+$", head, re.MULTILINE)
    assert re.search(r"arXiv \d{4}\.\d{5}|huggingface/peft", head) or "The control of" in head
    assert "xpected" in head
    text = " ".join(line.removeprefix("# ") for line in head.splitlines())
    assert "tested here only with tiny=true" in text
    assert f"`{table}`" in (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", representatives(TABLES, DEFAULT))
def test_every_job_settles_at_full_size(table):
    for words in jobs(table):
        spec = settled(table, words)
        assert spec.train.eval_steps <= spec.train.steps
        if spec.adaptive:
            budgets = {"initial": 72 * spec.initial_rank, "final": 72 * spec.rank}
            curve = spec.schedule(**budgets, total=spec.train.steps)
            assert curve.budget(spec.train.steps - 1) == 72 * spec.rank


TABLE_8 = {  # AdaLoRA's: task: rows, then lr, batch, epochs, γ, t_i, ΔT, t_f
    "mnli": (392702, 5e-4, 32, 7, 0.1, 8000, 100, 50000),
    "rte": (2490, 1.2e-3, 32, 50, 0.3, 600, 1, 1800),
    "qnli": (104743, 1.2e-3, 32, 5, 0.1, 2000, 100, 8000),
    "mrpc": (3668, 1e-3, 32, 30, 0.1, 600, 1, 1800),
    "qqp": (363846, 5e-4, 32, 5, 0.1, 8000, 100, 25000),
    "sst2": (67349, 8e-4, 32, 24, 0.1, 6000, 100, 22000),
    "cola": (8551, 5e-4, 32, 25, 0.5, 800, 10, 3500),
    "stsb": (5749, 2.2e-3, 32, 25, 0.1, 800, 10, 2000),
}
SCRIPTS = {  # α, length, head dropout, weight decay, warm-up; then where they differ from Table 8, and lora_r
    "mnli": (16, 256, 0.15, 0.0, 1000, {}, 3),
    "rte": (32, 320, 0.2, 0.01, 200, {}, 2),
    "qnli": (32, 512, 0.1, 0.01, 500, {"lr": 5e-4}, 2),
    "mrpc": (32, 320, 0.0, 0.01, 345, {}, 2),
    "qqp": (16, 320, 0.15, 0.01, 2000, {"lr": 8e-4}, 2),
    "sst2": (16, 128, 0.0, 0.01, 1000, {}, 2),
    "cola": (32, 64, 0.1, 0.0, 100, {"lr": 8e-4, "gamma": 0.1}, 3),
    "stsb": (32, 128, 0.2, 0.1, 100, {"gamma": 0.3}, 2),
}


@pytest.mark.parametrize("task", representatives(TABLE_8, 2))
@pytest.mark.parametrize("table", ["adalora_table1", "adalora_table1_script"])
def test_adalora_s_settings_are_those_of_its_table_and_its_scripts(table, task):
    rows, lr, batch, epochs, gamma, t_i, interval, t_f = TABLE_8[task]
    alpha, length, dropout, decay, warmup, differs, initial = SCRIPTS[task]
    script = table.endswith("script")
    spec = settled(table, ["method=adalora", f"task={task}", "rank=1" if script else "rank=8", "seed=6"])
    train, adapter, model = spec.train, spec.adapter.settings, spec.model.settings
    changed = differs if script else {}
    assert (train.lr, train.batch_size) == (changed.get("lr", lr), batch)
    assert train.steps == epochs * math.ceil(rows / batch)
    assert spec.train.warmup_steps == warmup
    assert spec.penalty.settings["gamma"] == changed.get("gamma", gamma)
    assert [spec.schedule.settings[key] for key in ("t_i", "interval", "t_f")] == [t_i, interval, t_f]
    assert (adapter["alpha"], spec.task.settings["max_length"], train.weight_decay) == (alpha, length, decay)
    assert (model["name"], model["head_dropout"]) == ("microsoft/deberta-v3-base", dropout)
    assert spec.initial_rank == (initial if script else 12)
    assert spec.allocator.name == "threshold"  # the original code's rule
    assert (spec.variant, spec.targets, spec.score.settings["beta1"]) == ("original", "all", 0.85)


TABLES_10_AND_13 = {  # AdaLoRA's: task: lr, batch, steps, t_i, t_f; α, length, start of the script; its rank and t_f
    "squad": (1e-3, 16, 10 * 5535, 5000, 25000, 16, 384, None, None),
    "squad_v2": (1e-3, 16, 12 * 8250, 5000, 50000, 16, 384, (1, 2), 50000),
    "xsum": (5e-4, 64, 25 * math.ceil(204045 / 64), 6000, 50000, 32, 768, (8, 12), 25000),
    "cnn_dailymail": (5e-4, 32, 15 * math.ceil(287113 / 32), 5000, 85000, 32, 1024, (2, 4), 85000),
}


@pytest.mark.parametrize("task", representatives(TABLES_10_AND_13, 1))
def test_adalora_s_settings_beyond_glue(task):
    lr, batch, steps, t_i, t_f, alpha, length, ranks, script_t_f = TABLES_10_AND_13[task]
    table = "adalora_table2" if task.startswith("squad") else "adalora_table3"
    spec = settled(table, ["method=adalora", f"task={task}", "rank=1", "seed=0"])
    train, schedule = spec.train, spec.schedule.settings
    assert (train.lr, train.batch_size, train.steps) == (lr, batch, steps)
    assert (schedule["t_i"], schedule["t_f"], schedule["interval"]) == (t_i, t_f, 100)
    assert (spec.adapter.settings["alpha"], spec.penalty.settings["gamma"]) == (alpha, 0.1)
    assert length in (spec.task.settings.get("max_length"), spec.task.settings.get("max_tokens"))
    if ranks:
        script = settled(f"{table}_script", [f"task={task}", "seed=9"])
        assert (script.rank, script.init_rank) == ranks
        assert script.schedule.settings["t_f"] == script_t_f
        clips = task.startswith("squad")  # run_qa.py's Trainer does; run_summarization_no_trainer.py never clips
        assert script.train == replace(train, max_grad_norm=1.0 if clips else 0.0)


TABLE_9 = {  # LoRA's: task: rows, then lr, batch, epochs, length of base and of large
    "mnli": (392702, (5e-4, 16, 30, 512), (3e-4, 4, 10, 128)),
    "sst2": (67349, (5e-4, 16, 60, 512), (4e-4, 4, 10, 128)),
    "mrpc": (3668, (4e-4, 16, 30, 512), (3e-4, 4, 20, 512)),
    "cola": (8551, (4e-4, 32, 80, 512), (2e-4, 4, 20, 128)),
    "qnli": (104743, (4e-4, 32, 25, 512), (2e-4, 4, 10, 512)),
    "qqp": (363846, (5e-4, 16, 25, 512), (3e-4, 4, 20, 512)),
    "rte": (2490, (5e-4, 32, 80, 512), (4e-4, 8, 20, 512)),
    "stsb": (5749, (4e-4, 16, 40, 512), (2e-4, 8, 30, 512)),
}


@pytest.mark.parametrize("task", representatives(TABLE_9, 2))
@pytest.mark.parametrize("table", ["lora_table2", "lora_table2_large"])
def test_lora_s_settings_are_those_of_its_table(table, task):
    large = table.endswith("large")
    rows, lr, batch, epochs, length = TABLE_9[task][0], *TABLE_9[task][2 if large else 1]
    spec = settled(table, [f"task={task}", "seed=0"])
    train = spec.train
    assert (train.lr, train.batch_size, spec.task.settings["max_length"]) == (lr, batch, length)
    assert train.steps == epochs * math.ceil(rows / batch)
    assert train.eval_every * epochs == train.steps
    assert (spec.rank, spec.adapter.settings["alpha"]) == (8, 16 if large else 8)
    assert (spec.targets, spec.method, train.warmup) == ("qv", "lora", 0.06)


def data(task, folder):
    """A folder with rows of the task, and what a tiny run of it needs beside."""
    if task.startswith("squad"):
        return squad_folder.write(folder, "v2.0" if task == "squad_v2" else "v1.1"), []
    if task in ("xsum", "cnn_dailymail"):
        for split in ("train", "dev", "test"):
            (folder / f"{split}.jsonl").write_text(NEWS)
        columns = ["task.text=document", "task.summary=summary"]
        return folder, ["model=tiny_bart", *columns, "task.beams=2"]
    if task == "instruct":
        for split in ("train", "dev", "test"):
            (folder / f"{split}.jsonl").write_text(SUMS)
        return folder, ["model=tiny_llama", "task.name=null", "task.prompt=question", "task.response=answer"]
    if task == "e2e":
        for file in ("trainset.csv", "devset.csv", "testset_w_refs.csv"):
            (folder / file).write_text('mr,ref\n"name[Aromi], food[Italian]",Aromi is Italian.\nname[Blue],Blue.\n')
        return folder, ["model=tiny_gpt2"]
    if task == "metamathqa":
        rows = [{"query": "1 + 1?", "response": "Add.\nThe answer is: 2"}, {"query": "2?", "response": "#### 2"}]
        (folder / "MetaMathQA-395K.json").write_text(json.dumps(rows))
        for split in ("train", "test"):
            (folder / f"{split}.jsonl").write_text(SUMS)
        return folder, ["model=tiny_llama"]
    return official_glue.write(folder), []


@pytest.mark.parametrize("table", representatives(TABLES, ["metamathqa"]))
def test_one_job_of_it_runs(table, tmp_path):
    (tmp_path / "data").mkdir()
    words = jobs(table)[0]
    task = next((word.partition("=")[2] for word in words if word.startswith("task=")), None)
    if task is None:
        _, hydra = compose([f"experiment=paper/{table}", *NEEDS.get(("experiment", f"paper/{table}"), [])])
        task = hydra.runtime.choices.task
    folder, beside = data(task, tmp_path / "data")
    inside(f"experiment=paper/{table}", *words, *beside, "tiny=true", f"task.path={folder}", f"out={tmp_path / 'out'}")
    (summary,) = summaries(tmp_path / "out").values()
    assert (summary["status"], summary["task"] in (task, "data"), summary["steps"]) == ("finished", True, 12)
