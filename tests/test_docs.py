"""Figures on the pages are those of the committed result files, and what the pages list is complete.

Commands and examples: tests/test_pages.py.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from statistics import mean, median, pstdev, stdev

import numpy as np
import pytest
import torch
import yaml

from adarank.runs.packed import allocations_of, read_records
from analysis.score_fidelity import agreement
from analysis.stats import mean_interval

ROOT = Path(__file__).resolve().parent.parent
HOW_TO, BENCHMARKS = ((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in ("how_to", "benchmarks"))
RESULTS = ROOT / "experiments" / "results"


def test_the_demo_s_table_is_the_committed_result():
    runs = json.loads((RESULTS / "quickstart.json").read_text())
    for method in ("full", "lora", "adalora"):
        found = [s for s in runs.values() if s["method"] == method]
        tests = [s["metric"]["test"] for s in found]
        row = next(line for line in HOW_TO.splitlines() if line.startswith(f"| {method} |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[2] == f"{found[0]['parameters']['trainable']:,}"
        kept = mean(s["parameters"]["trainable"] - s["parameters"]["adapter"] + s["parameters"]["kept"] for s in found)
        assert cells[3] == f"{kept:,.0f}"
        assert cells[4] == ", ".join(f"{t:.3f}" for t in tests)
        assert cells[5] == f"{mean(tests):.4f}"


def test_the_speed_table_is_the_committed_result():
    from experiments.bench.report import table

    assert table(json.loads((RESULTS / "step_cpu.json").read_text())) in BENCHMARKS


def test_the_launches_are_those_of_the_committed_result():
    found = json.loads((RESULTS / "launches.json").read_text())["models"]
    for which in ("adalora+captured", "lora+captured", "peft_lora"):
        assert f"{found['decoder']['launches'][which]:,}" in BENCHMARKS
    shown = [found["decoder"]["ratios"], found["encoder"]["ratios"]]
    for ratio in [
        ratios[f"adalora+captured / {other}"] for ratios in shown for other in ("peft_lora", "lora+captured")
    ]:
        assert f"{ratio:.2f}" in BENCHMARKS


def test_the_step_picture_shows_every_contender_and_model(tmp_path):
    from matplotlib import image

    from experiments.bench.report import draw

    found = json.loads((RESULTS / "step_cpu.json").read_text())
    draw(found, tmp_path / "step.png")
    pixels = image.imread(tmp_path / "step.png")[..., :3]
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        near = abs(pixels * 255 - colour).max(-1) < 12
        assert near.sum() > 6 * 30  # a mark a contender


def test_the_methods_default_to_the_learning_rates_of_the_committed_search():
    result = json.loads((RESULTS / "quickstart_lr.json").read_text())
    assert {len(found) for found in result["trials"].values()} == {3}
    for method, found in result["trials"].items():
        config = yaml.safe_load((ROOT / "conf" / "method" / f"{method}.yaml").read_text())
        _, best, _ = sorted(found, key=lambda trial: trial["lr"])  # inside its grid
        assert best["last"] == max(trial["last"] for trial in found)
        assert config["train"]["lr"] == best["lr"]


def test_three_inits_default_to_the_learning_rates_of_the_committed_trials():
    trials = list(dict(read_records(RESULTS / "inits_lr")).values())
    for method in ("pissa", "olora", "lora_ga"):
        found = {
            t["config"]["train"]["lr"]: t["summary"]["metric"]["best"]
            for t in trials
            if t["config"]["method"] == method
        }
        best = max(found, key=found.__getitem__)
        assert len(found) == 5
        assert min(found) < best < max(found)
        assert yaml.safe_load((ROOT / "conf" / "method" / f"{method}.yaml").read_text())["train"]["lr"] == best


def test_the_earlier_studies_print_the_differences_of_the_committed_file():
    page = (ROOT / "docs" / "earlier_studies.md").read_text(encoding="utf-8")
    cells = json.loads((RESULTS / "adalora_table1" / "table1_small.json").read_text())["cells"]
    assert {cell["task"] for cell in cells} >= {"cola", "sst2", "rte"}
    for cell in cells:
        last = cell["last"]
        if last["pairs"] < 8:  # under way
            continue
        low, high = last["interval"]
        assert f"{last['mean']:+.2f} [{low:+.2f}, {high:+.2f}]" in page, cell
        assert cell["paper"] is None or f"(paper {cell['paper']:+.2f})" in page, cell


def test_the_earlier_studies_print_the_levels_of_every_control():
    page = (ROOT / "docs" / "earlier_studies.md").read_text(encoding="utf-8")
    kinds = sorted((RESULTS / "controls" / "seeds" / "rotten_tomatoes").iterdir())
    assert len(kinds) == 9
    for kind in kinds:
        metrics = [run["summary"]["metric"] for _, run in read_records(kind)]
        assert len(metrics) == 10
        cells = [mean_interval([metric[key] for metric in metrics]) for key in ("test", "test_last")]
        best, last = (f"{middle:.3f} ± {half:.3f}".replace("0.", ".") for middle, half in cells)
        assert f"| {last} | {best} |" in page, kind


def test_the_earlier_studies_print_what_the_scores_foresee():
    page = " ".join((ROOT / "docs" / "earlier_studies.md").read_text(encoding="utf-8").split())
    names = {
        "adalora": "AdaLoRA's (Ī · Ū)",
        "smoothed_sensitivity": "smoothed sensitivity (Ī)",
        "sensitivity": "sensitivity of one pass",
        "fisher": "Fisher",
        "spectral_entropy": "spectral entropy",
    }
    runs = read_records(RESULTS / "controls" / "seeds" / "rotten_tomatoes" / "adalora")
    probes = [run["measures"]["probe.json"] for _, run in runs]
    assert len(probes) == 10
    for name in probes[0]["scores"]:
        found = [agreement(np.array(p["scores"][name]), np.array(p["rise"])) for p in probes]
        cells = [mean_interval([getattr(one, key) for one in found]) for key in ("correlation", "size", "overlap")]
        row = " | ".join(f"{middle:.2f} ± {half:.2f}".replace("0.", ".") for middle, half in cells)
        assert f"| {names.get(name, name)} | {row} |".replace("-.00", ".00") in page, (name, row)
    own = [(np.array(p["scores"]["adalora"]), np.array(p["rise"])) for p in probes]
    pearson = [f"{np.corrcoef(score, rise)[0, 1]:.2f}".removeprefix("0") for score, rise in own]
    assert f"{', '.join(pearson[:-1])} and {pearson[-1]};" in page
    quarters = [[np.maximum(rise[np.argsort(-by)[:18]], 0).sum() / np.maximum(rise, 0).sum() for by in (score, rise)]
                for score, rise in own]  # fmt: skip
    held, best = (f"{mean(column):.2f}".removeprefix("0") for column in zip(*quarters, strict=True))
    assert f"holds {held} of all positive increases (the best possible quarter {best})" in page


@pytest.mark.slow
def test_the_earlier_studies_print_the_verdicts_of_the_committed_studies(tmp_path):
    from analysis.report import load
    from experiments.pack import unpack

    page = " ".join((ROOT / "docs" / "earlier_studies.md").read_text(encoding="utf-8").split())
    found = []
    for study in ("controls", "adalora_table1"):
        unpack(RESULTS / study / "seeds", tmp_path / study)
        judged = load(tmp_path / study).family.verdicts
        found += [verdict for of_table in judged for verdict in of_table]
    assert len(found) == 7 + 15
    for verdict in (verdict for verdict in found if verdict.kind == "better"):
        ranks = verdict.comparison.rows[0].requested_ranks
        if verdict.comparison.rows[0].settings.get("allocator") == "uniform":
            continue
        low, high = (100 * bound for bound in verdict.interval)
        shown = f"{100 * verdict.difference:+.1f} points{' of Matthews' if ranks else ''} [{low:+.1f}, {high:+.1f}]"
        assert shown in page, (verdict.comparison.label, shown)
        assert f"{verdict.p:.3f}".removeprefix("0") in page
    assert [verdict.kind for verdict in found].count("equivalent") == 0


def test_the_earlier_studies_print_who_forgets():
    page = (ROOT / "docs" / "earlier_studies.md").read_text(encoding="utf-8")
    for kind in ("full", "lora", "lora_high", "para", "adalora", "uniform", "random"):
        runs = list(dict(read_records(RESULTS / "controls" / "seeds" / "rotten_tomatoes" / kind)).values())
        probed = [run["measures"]["forgetting.json"]["stsb"] for run in runs]
        values = [run["summary"]["metric"]["test"] for run in runs], [stsb["after"] for stsb in probed]
        cells = [f"{middle:.3f} ± {half:.3f}".replace("0.", ".") for middle, half in map(mean_interval, values)]
        assert f"| {cells[0]} | {cells[1]} |" in page, kind
        assert {f"{stsb['before']:.3f}" for stsb in probed} == {"0.820"}
        deltas = [run["measures"]["delta.json"]["modules"].values() for run in runs if "delta.json" in run["measures"]]
        if deltas:
            sizes = [median(m["norm"] / m["base_norm"] for m in modules) for modules in deltas]
            assert f"| {cells[1]} | {mean(sizes):.3f} |".replace("0.", ".") in page, kind


def test_the_methods_page_names_every_method():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for path in (ROOT / "conf" / "method").glob("*.yaml"):
        assert re.search(rf"\b{path.stem}\b", page), path.stem


@pytest.mark.slow
def test_a_score_is_added_in_the_three_steps_that_contributing_names(tmp_path):
    """In a copy: one file, one import line, one YAML; then the contract tests find it and a run uses it."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    python, yaml_text = (
        textwrap.dedent(re.search(rf"   ```{kind}\n(.*?)   ```", page, re.DOTALL).group(1))
        for kind in ("python", "yaml")
    )
    for part in ("adarank", "conf", "experiments", "tests", "hydra_plugins", "pyproject.toml"):
        source = ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / part)
    (tmp_path / "adarank" / "scores" / "lengths.py").write_text(python)
    (tmp_path / "conf" / "score" / "lengths.yaml").write_text(yaml_text)
    room = tmp_path / "adarank" / "scores" / "__init__.py"
    text = room.read_text().replace("__all__ = [\n", '__all__ = [\n    "lengths",\n')
    room.write_text(
        text.replace(
            "from adarank.scores.magnitude", "from adarank.scores.lengths import lengths\nfrom adarank.scores.magnitude"
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    tests = ["-q", "-n", "0", "-k", "lengths", "tests/scores/test_contract.py", "tests/test_conf.py"]
    run = ["run.py", "method=adalora", "score=lengths", "tiny=true", "train.steps=8", "out=out"]
    code = f"import sys, pytest; from adarank.harness import app; tests = pytest.main({tests}); sys.argv = {run}\n"
    code += "sys.exit(tests or app.main())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("out/*/summary.json"))) == 1


def test_every_link_leads_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_library_s_snippet_runs(tmp_path, monkeypatch):
    from adarank.harness.models import tiny

    snippet = re.search(r"```python library\n(.*?)```", HOW_TO, re.DOTALL)[1]
    built = tiny("bert").build(2)
    words = built.tokenizer(["good film", "dull"], padding=True, return_tensors="pt")
    batches = [{**words, "labels": torch.tensor([1, 0])} for _ in range(3)]
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch, "model": built.model, "batches": batches}
    exec(compile(snippet, "docs/how_to.md", "exec"), names)
    assert (tmp_path / "adapter" / "adapter.safetensors").is_file()
    assert names["n"] == 4
    assert not any(".base" in key for key in built.model.state_dict())


@pytest.mark.parametrize("word", ["TODO", "FIXME", "@@"])
def test_nothing_is_left_to_fill_in(word):
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("adarank/**/*.py"),
        *ROOT.glob("conf/**/*.yaml"),
    ]:
        assert word not in path.read_text(encoding="utf-8"), path


def test_the_sweeps_page_names_every_preset_and_its_commands_are_settings():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from adarank.cli import parser
    from adarank.harness.config.compose import compose

    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    for path in (*ROOT.glob("conf/experiment/*.yaml"), *ROOT.glob("conf/hydra/*/*.yaml")):
        assert path.stem == "quickstart" or re.search(rf"\b{path.stem}\b", page), path
    commands = re.findall(r"^adarank (.*?)(?: +#.*)?$", page, re.MULTILINE)
    assert len(commands) == 3
    for words in (command.split() for command in commands):
        if words[0] == "run":
            overrides = OverridesParser.create().parse_overrides(words[2:])
            compose(
                [
                    f"{o.key_or_group}={next(o.sweep_string_iterator())}" if o.is_sweep_override() else o.input_line
                    for o in overrides
                ]
            )
        else:
            assert parser().parse_args(words).call
    for launcher in re.findall(r"`(hydra/launcher=.*?)`", page):
        compose(launcher.split())


def test_the_table_of_every_method_is_that_of_the_committed_runs():
    from experiments import every_method

    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    lines = every_method.rows()
    assert "\n".join(lines) in page
    arms = {line.split(" | ")[0].strip("| ").partition("@")[0] for line in lines[2:]}
    methods = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    assert methods <= arms, "a method has no run"


def text_of(path):
    return " ".join((ROOT / path).read_text(encoding="utf-8").split())


def points(middle, low, high):
    return f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]"


def difference(records, of, against, name):
    """Mean and separate 95 % interval of a metric of the central runs, in points, paired by seed."""
    ours, theirs = (
        {run["config"]["seed"]: 100 * run["summary"]["metric"][name] for run in records[arm]} for arm in (of, against)
    )
    middle, half = mean_interval([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])
    return middle, middle - half, middle + half


def page_of(path):
    return text_of(path).replace(" points [", " [")


@pytest.mark.parametrize("study", ["central", "replication", "random_ranks", "central_mpnet"])
def test_the_findings_print_every_claim_of_a_study_that_has_all_its_seeds(study, tmp_path):
    from experiments.pages import report_of
    from experiments.study import load

    planned = len(load(ROOT / "experiments" / "studies" / f"{study}.yaml").seeds)
    (verdicts,) = report_of(study, tmp_path).family.verdicts
    whole = [verdict for verdict in verdicts if verdict.pairs == planned]
    assert whole
    for verdict in whole:
        shown = points(100 * verdict.difference, *(100 * end for end in verdict.interval))
        assert shown in page_of("docs/findings.md"), verdict.comparison.name


def nats(middle, low, high):
    return f"{middle:+.4f} [{low:+.4f}, {high:+.4f}]"


@pytest.mark.parametrize("study", ["forgetting", "forgetting_language", "every_rank"])
def test_the_findings_print_every_claim_about_measurements_that_has_all_its_seeds(study, tmp_path):
    from analysis import measures
    from experiments.pages import report_of
    from experiments.study import load

    planned = len(load(ROOT / "experiments" / "studies" / f"{study}.yaml").seeds)
    tables, declared = report_of(study, tmp_path).tables, measures.load(RESULTS / study)
    (judged,) = measures.judge(tables, declared)
    whole = [verdict for _, verdict in judged.verdicts if verdict.pairs == planned]
    assert whole
    of_loss = study == "forgetting_language"
    for verdict in whole:
        found = (verdict.difference, *verdict.interval)
        shown = nats(*found) if of_loss else points(*(100 * value for value in found))
        for page in ("docs/findings.md", f"docs/studies/{study}.md"):
            assert shown in page_of(page), verdict.comparison.name


def test_the_page_of_every_rank_prints_what_its_runs_say_elsewhere(tmp_path):
    from analysis import measures, prefixes
    from experiments.pages import report_of

    page, (table,) = page_of("docs/studies/every_rank.md"), report_of("every_rank", tmp_path).tables
    areas = measures.MEASURES["aurac"].values(table)
    areas |= {f"rank {r} everywhere": prefixes.at_best(table.row_of(f"lora@{r}")) for r in (1, 16)}
    for of, against in (
        ("adalora", "lora"),
        ("lora", "lora_prefixes"),
        ("matryoshka", "lora_prefixes"),
        ("dylora", "lora_prefixes"),
        ("dylora", "lora_svd"),
        ("matryoshka_svd", "matryoshka"),
        ("dylora_svd", "dylora"),
        ("matryoshka_svd", "lora"),
        ("dylora_svd", "lora"),
        ("rank 1 everywhere", "lora"),
        ("rank 16 everywhere", "rank 1 everywhere"),
    ):
        middle, half = mean_interval([100 * (areas[of][seed] - areas[against][seed]) for seed in areas["lora"]])
        assert points(middle, middle - half, middle + half) in page, (of, against)


def test_the_findings_and_the_page_print_what_the_language_model_learned(tmp_path):
    from experiments.pages import report_of

    (verdicts,) = report_of("forgetting_language", tmp_path).family.verdicts
    whole = [verdict for verdict in verdicts if verdict.interval is not None]
    assert whole
    for verdict in whole:
        for page in ("docs/findings.md", "docs/studies/forgetting_language.md"):
            assert nats(verdict.difference, *verdict.interval) in page_of(page), verdict.comparison.name


def test_the_page_of_the_language_model_prints_what_its_runs_say_elsewhere():
    findings, own = map(page_of, ("docs/findings.md", "docs/studies/forgetting_language.md"))
    folder = RESULTS / "forgetting_language"

    def values(path):
        """{seed or rate: (loss on test, on dev, forgotten)}"""
        found = {}
        for _, run in read_records(path):
            metric, text = run["summary"]["metric"], run["measures"]["forgetting.json"]["text"]
            key = run["config"]["train"]["lr"] if path.parts[-3] == "tuning" else run["config"]["seed"]
            found[key] = (metric["test_last"], metric["last"], text["after"] - text["before"])
        return found

    seeds = {path.name: values(path) for path in (folder / "seeds" / "e2e").iterdir()}
    for of, against, which, pages in (
        ("adalora_table", "lora", 2, (findings, own)),
        ("adalora_table", "adalora_slow", 0, (own,)),
        ("adalora_slow", "lora", 0, (own,)),
    ):
        middle, half = mean_interval([seeds[of][seed][which] - seeds[against][seed][which] for seed in seeds[of]])
        assert all(nats(middle, middle - half, middle + half) in page.replace(" nats [", " [") for page in pages), of
    middle, half = mean_interval([seeds["adalora_slow"][seed][2] - seeds["adalora"][seed][2] for seed in range(5)])
    assert all(f"[{middle - half:+.4f}, {middle + half:+.4f}]" in page for page in (findings, own))
    arms = ("lora", "adalora", "adalora_slow", "adalora_table")
    assert all(f"{mean(run[1] for run in seeds[arm].values()):.3f} (`{arm}`)" in own for arm in arms)
    first, *middle, last = (f"{mean(run[2] for run in seeds[arm].values()):.3f}" for arm in arms)
    assert f"forget {first}, {', '.join(middle)} and {last}" in own
    trials = {arm: values(folder / "tuning" / "e2e" / arm) for arm in ("lora", "adalora")}
    (_, third, forgot), (_, best, lost) = trials["lora"][2.7e-3], trials["adalora"][2.43e-2]
    assert f"it has {third:.3f} and forgets {forgot:.3f}" in own
    assert f"has {best:.3f} and {lost:.3f}" in own
    assert f"{third:.3f} and forgets {forgot:.3f}, AdaLoRA at its best rate {best:.3f} and {lost:.3f}" in findings
    (_, ninth, forgot), (_, low, lost) = trials["lora"][9e-4], trials["adalora"][2.7e-3]
    assert f"LoRA has {ninth:.3f} and {forgot:.3f}, AdaLoRA {low:.3f} and {lost:.3f}" in own


def test_the_findings_print_what_the_runs_of_forgetting_say_elsewhere():
    findings, own = map(page_of, ("docs/findings.md", "docs/studies/forgetting.md"))
    folder = RESULTS / "forgetting" / "seeds" / "rotten_tomatoes"
    records = {path.name: [run for _, run in read_records(path)] for path in folder.iterdir()}
    for name in ("test_last", "last"):
        assert points(*difference(records, "adalora", "uniform", name)) in findings, name
    for runs in records.values():
        for run in runs:
            run["summary"]["metric"]["stsb"] = run["measures"]["forgetting.json"]["stsb"]["after"]
    for page in (findings, own):
        assert points(*difference(records, "adalora", "full_fast_head", "stsb")) in page


@pytest.mark.parametrize("study", ["forgetting", "forgetting_language", "every_rank"])
def test_the_figure_of_the_claims_about_measurements_names_every_claim_that_has_runs(study, tmp_path):
    from analysis import measures
    from experiments.docs_figures import measured_claims_of
    from experiments.pages import report_of

    (judged,) = measures.judge(report_of(study, tmp_path).tables, measures.load(RESULTS / study))
    labels = [" ".join(tick.get_text().split()) for tick in measured_claims_of(study).axes[0].get_yticklabels()]
    shown = [re.sub(r"@\d+", "", label.partition(" (n")[0]) for label in labels]
    claims = [claim for claim in measures.load(RESULTS / study).claims.each if claim not in judged.missing]
    assert shown == [f"{claim.name}: {claim.contrast.of} − {claim.contrast.against}" for claim in claims]


@pytest.mark.parametrize(("study", "task"), [("forgetting", "rotten_tomatoes"), ("forgetting_language", "e2e")])
def test_the_figure_of_forgetting_has_a_point_for_every_rate_of_every_grid(study, task):
    from experiments.docs_figures import learned_and_forgotten

    rates = json.loads((RESULTS / study / "tuning" / task / "rates.json").read_text())
    (axes,) = learned_and_forgotten(study).axes
    lines = axes.lines
    assert axes.get_xlabel().endswith("worse than before by")  # so that right is worse for a score and for a loss
    assert [len(line.get_xdata()) for line in lines] == [len(choice["means"]) for choice in rates.values()]


def test_the_findings_and_the_page_print_what_pruning_costs(tmp_path):
    from analysis import pruning
    from experiments.pages import report_of

    (table,) = report_of("pruning", tmp_path).tables
    measured = pruning.by_state(table.rows[0])
    printed = [(27, order, "above") for order in ("adalora", "magnitude", "random")]
    printed += [(kept, "adalora", "above_random") for kept in (27, 72)]
    printed += [(72, order, "regret") for order in ("adalora", "magnitude", "random", "taylor")]
    findings, page = map(text_of, ("docs/findings.md", "docs/studies/pruning.md"))
    for kept, order, name in [*printed, (72, "oracle", "above")]:
        middle, half = mean_interval([getattr(cost, name) for cost in measured[kept, 40, order].values()])
        assert f"{middle:+.4f} [{middle - half:+.4f}, {middle + half:+.4f}]" in findings, (kept, order, name)
        assert f"{middle:+.4f} ± {half:.4f}" in page, (kept, order, name)
        if name == "above_random" or (order, name) == ("random", "regret"):
            assert f"{middle:+.4f} [{middle - half:+.4f}, {middle + half:+.4f}]" in text_of("README.md")


def test_the_figure_of_pruning_shows_every_order_that_the_page_compares():
    from experiments.docs_figures import pruning_costs

    for axes in pruning_costs().axes:
        orders = {
            line.get_label(): list(line.get_xdata()) for line in axes.lines if not line.get_label().startswith("_")
        }
        assert {"adalora", "magnitude", "random", "oracle", "oracle_absolute", "taylor"} <= orders.keys()
        assert all(sizes == [27, 72] for sizes in orders.values())


def test_the_findings_and_the_page_print_the_answers_of_the_assay(tmp_path):
    from experiments.pages import report_of

    report = report_of("assay", tmp_path)
    assert {table.task for table in report.tables} == {"supersense", "sst2", "cola"}
    for table, (assay,) in zip(report.tables, report.family.assays, strict=True):
        digits = 1 if table.task == "cola" else 2
        middle, low, high = (f"{100 * value:+.{digits}f}" for value in (assay.estimate.mean, *assay.interval))
        for page in map(text_of, ("docs/findings.md", "docs/studies/assay.md")):
            assert re.search(rf"\{middle} points( of \w+)? \[\{low}, \{high}\]", page), table.task
        folder = RESULTS / "assay" / "seeds" / table.task
        records = {path.name: [run for _, run in read_records(path)] for path in folder.iterdir()}
        middle, low, high = (f"{value:+.{digits}f}" for value in difference(records, "r16", "r1", "last"))
        assert f"| {middle} [{low}, {high}] |" in text_of("docs/findings.md"), f"{table.task} on dev"


def test_the_findings_and_the_page_print_the_answers_of_the_assay_with_a_language_model(tmp_path):
    from experiments.pages import report_of

    report = report_of("assay_language", tmp_path)
    assert any(assay.estimate.pairs == 3 for (assay,) in report.family.assays)
    for table, (assay,) in zip(report.tables, report.family.assays, strict=True):
        if assay.estimate.pairs < 3:  # still running; not judged
            continue
        folder = RESULTS / "assay_language" / "seeds" / table.task
        records = {path.name: [run for _, run in read_records(path)] for path in folder.iterdir()}
        dev = [value / 100 for value in difference(records, "r16", "r1", "last")]
        for middle, *ends in ((assay.estimate.mean, *assay.interval), dev):
            low, high = (f"{end:+.4f}" for end in ends)
            shown = rf"{re.escape(f'{middle:+.4f}')}( nats)?( of the( test)? loss)? {re.escape(f'[{low}, {high}]')}"
            for page in map(text_of, ("docs/findings.md", "docs/studies/assay_language.md")):
                assert re.search(shown, page), table.task


def test_the_pages_print_what_the_runs_of_the_central_comparison_say_elsewhere():
    findings, own, readme = map(page_of, ("docs/findings.md", "docs/studies/central.md", "README.md"))
    folder = RESULTS / "central" / "seeds" / "supersense"
    records = {path.name: [run for _, run in read_records(path)] for path in folder.iterdir()}
    same_rate = difference(records, "adalora", "uniform_same_rate", "test_last")
    assert f"{points(*same_rate)}, 8 seeds" in findings
    assert f"{same_rate[0]:.2f} points below it (exploratory)" in own
    by_rate = difference(records, "uniform_same_rate", "uniform", "test_last")
    assert f"4e-3 is better by {by_rate[0]:.2f} points" in findings
    parametrisation = points(*difference(records, "uniform_same_rate", "lora", "test_last")).removeprefix("+")
    assert f"{parametrisation} above LoRA" in own
    of_parameters = points(*difference(records, "equal_parameters", "wide_uniform", "test_last"))
    assert all(of_parameters in page for page in (findings, own))
    for of, against in (("adalora", "lora_initial"), ("wide", "lora_initial")):
        assert all(points(*difference(records, of, against, "test_last")) in page for page in (findings, own)), of
    assert points(*difference(records, "full", "wide", "test_last")) in own
    for arm in ("lora_slower", "lora_faster"):
        better = points(*difference(records, "lora", arm, "test_last"))
        assert all(better in page for page in (findings, own)), arm
    for of, against, pages in (
        ("wide", "wide_uniform", (findings, own)),
        ("wide", "lora", (findings, own, readme)),
        ("adalora", "lora", (findings, own)),
        ("adalora", "lora_initial", (findings, own)),
        ("wide", "lora_initial", (findings, own)),
        ("wide", "lora_16", (findings, own)),
    ):
        assert all(points(*difference(records, of, against, "last")) in page for page in pages), (of, against)
    for arm in ("adalora", "uniform_same_rate", "wide"):
        assert f"{mean(run['summary']['parameters']['kept'] for run in records[arm]):,.0f}" in findings, arm


def test_the_pages_print_what_the_runs_with_mpnet_say_elsewhere():
    findings, own = map(page_of, ("docs/findings.md", "docs/studies/central_mpnet.md"))
    folder = RESULTS / "central_mpnet" / "seeds" / "supersense"
    records = {path.name: [run for _, run in read_records(path)] for path in folder.iterdir()}
    assert points(*difference(records, "adalora", "lora", "last")) in findings
    assert points(*difference(records, "wide_uniform", "lora", "test_last")) in findings
    for page in (findings, own):
        assert points(*difference(records, "wide", "worst_first", "test_last")).removeprefix("+") in page
    for of, against, name in (
        ("adalora", "lora", "last"),
        ("wide", "lora", "last"),
        ("wide_uniform", "lora", "test_last"),
    ):
        assert points(*difference(records, of, against, name)) in own, (of, against)
    values = {
        arm: {run["config"]["seed"]: 100 * run["summary"]["metric"]["test_last"] for run in records[arm]}
        for arm in ("adalora", "lora")
    }
    apart = [values["adalora"][seed] - values["lora"][seed] for seed in range(8)]
    spreads = [*(stdev(values[arm].values()) for arm in ("adalora", "lora")), stdev(apart)]
    for page in (findings, own):
        assert f"{spreads[0]:.2f} points" in page
        assert all(f"{spread:.2f}" in page for spread in spreads)
    assert f"from {max(apart):.2f} to {min(apart):.2f}" in own
    kept = {arm: mean(run["summary"]["parameters"]["kept"] for run in records[arm]) for arm in records}
    assert f"{kept['wide'] - kept['wide_uniform']:,.0f} adapter parameters more" in own
    assert f"LoRA {kept['wide_uniform'] - kept['lora']:,.0f} fewer" in own


def test_the_pages_print_what_the_runs_of_the_replication_say_elsewhere():
    findings, own, readme = map(page_of, ("docs/findings.md", "docs/studies/replication.md", "README.md"))
    folder = RESULTS / "replication" / "seeds" / "supersense"
    records = {path.name: [run for _, run in read_records(path)] for path in folder.iterdir()}
    for of, against, name, pages in (
        ("wide", "wide_uniform", "last", (findings, own)),
        ("wide", "lora", "last", (findings, own, readme)),
        ("wide_random", "wide_uniform", "test_last", (findings, own)),
        ("wide_uniform", "lora", "test_last", (findings, own)),
        ("wide", "worst_first", "test_last", (own,)),
    ):
        assert all(points(*difference(records, of, against, name)) in page for page in pages), (of, against)
    central = RESULTS / "central" / "seeds" / "supersense"
    first = {arm: [run for _, run in read_records(central / arm)] for arm in ("wide_uniform", "lora")}
    assert all(points(*difference(first, "wide_uniform", "lora", "test_last")) in page for page in (findings, own))
    kept = {arm: mean(run["summary"]["parameters"]["kept"] for run in records[arm]) for arm in records}
    more = [f"{kept['wide'] - kept[other]:,.0f}" for other in ("wide_uniform", "lora")]
    assert f"keeps {more[0]} adapter parameters more than its control and {more[1]} more than LoRA" in own


def test_the_pages_print_what_the_runs_with_random_ranks_say_elsewhere():
    findings, own, readme = map(page_of, ("docs/findings.md", "docs/studies/random_ranks.md", "README.md"))
    folders = [RESULTS / study / "seeds" / "supersense" for study in ("replication", "random_ranks")]
    records = {path.name: [run for _, run in read_records(path)] for folder in folders for path in folder.iterdir()}
    for of, against, name, pages in (
        ("wide", "wide_random_ranks", "last", (findings, own, readme)),
        ("wide_uniform", "wide_random_ranks", "last", (own,)),
        ("wide_random_ranks", "wide_random", "test_last", (findings, own)),
        ("wide_random_ranks", "lora", "test_last", (own,)),
    ):
        assert all(points(*difference(records, of, against, name)) in page for page in pages), (of, against)
    kept = {arm: mean(run["summary"]["parameters"]["kept"] for run in records[arm]) for arm in records}
    assert f"keeps {kept['wide'] - kept['wide_random_ranks']:,.0f} adapter parameters (6 %) more" in own
    finals = {
        arm: [list(allocations_of(run)[-1]["ranks"].values()) for run in records[arm]]
        for arm in ("wide", "wide_random_ranks")
    }
    spread = {arm: mean(pstdev(ranks) for ranks in finals[arm]) for arm in finals}
    empty = {arm: mean(ranks.count(0) for ranks in finals[arm]) for arm in finals}
    assert f"deviation of {spread['wide']:.1f} in place of {spread['wide_random_ranks']:.1f}" in own
    assert f"{empty['wide']:.0f} in place of {empty['wide_random_ranks']:.0f} of 36 modules" in own
    last = "bert.encoder.layer.5.attention.output.dense"
    ranks = {arm: [allocations_of(run)[-1]["ranks"][last] for run in records[arm]] for arm in finals}
    assert f"put {mean(ranks['wide']):.0f} of 72 triplets into one module" in own
    assert f"{mean(ranks['wide']):.0f} of its 72 triplets end in one module" in findings
    assert all(f"random ranks have at most {max(ranks['wide_random_ranks'])}" in page for page in (findings, own))
    for arm in ("wide", "wide_uniform", "worst_first"):  # the same runs, not others
        ours, theirs = ({path.name: run for path, run in read_records(folder / arm)} for folder in folders)
        assert ours.keys() == theirs.keys(), arm
        assert all(ours[name]["summary"]["metric"] == theirs[name]["summary"]["metric"] for name in ours), arm
