"""The comparison protocol: as many trials for every method, one choice on dev, the same seeds, nothing trained
twice."""

import io
import json
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from adarank.errors import SettingError
from adarank.runs.packed import read_records, record_files
from analysis import claims, report
from experiments import protocol
from experiments.reproduce import adalora_table1 as table1
from experiments.study import load, rates_of, read
from tests.experiments.studies import STUDY, Runner, methods, study
from tests.experiments.test_run import main as run_main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path):
    return protocol.Place(tmp_path / "out", tmp_path / "results", ["hydra/launcher=basic"])


@pytest.fixture
def runner(monkeypatch):
    """Leaves finished runs whose dev is highest at a rate of 1e-2."""
    runner = Runner()
    monkeypatch.setattr(protocol, "subprocess", runner)
    return runner


def rates(place, task="t"):
    return json.loads((place.results / "tuning" / task / "rates.json").read_text())


def test_it_tunes_then_compares_at_the_chosen_rates_and_maps_follow_their_sources(runner, place):
    protocol.follow(read(STUDY), place)
    stages = [stage for stage, *_ in runner.calls]
    assert stages == sorted(stages, reverse=True), "every trial comes before the first seed"
    seeds = [(arm, rates, seeds) for stage, arm, rates, seeds, _ in runner.calls if stage == "seeds"]
    assert ("high@8", [1e-2], [0, 1]) in seeds
    assert ("full", [1e-2], [0, 1]) in seeds
    maps = [settings for *_, settings in runner.calls if "ranks_from" in settings]
    sources = [Path(settings["ranks_from"].strip("'")) for settings in maps]
    ranks = [yaml.safe_load((source / "config.yaml").read_text())["rank"] for source in sources]
    assert [(rank, source.name[-3:]) for rank, source in zip(ranks, sources, strict=True)] == [
        (rank, f"-s{seed}") for rank in (2, 8) for seed in (0, 1)
    ]
    assert {name: choice["rate"] for name, choice in rates(place).items()} == dict.fromkeys(
        ["full", "lora", "adalora"], 1e-2
    )
    assert not (place.results / "claims.json").exists()
    assert {settings["hydra/launcher"] for *_, settings in runner.calls} == {"basic"}


def test_a_second_call_trains_nothing_also_where_only_the_results_are(runner, place, tmp_path):
    protocol.follow(read(study({})), place)
    before = {path: path.read_bytes() for path in place.results.rglob("*") if path.is_file()}
    trained = runner.trained
    for out in (place.out, tmp_path / "elsewhere"):
        protocol.follow(read(study({})), protocol.Place(out, place.results, []))
    assert runner.trained == trained > 0
    assert {path: path.read_bytes() for path in place.results.rglob("*") if path.is_file()} == before


def test_a_study_whose_settings_changed_does_not_take_its_earlier_runs(runner, place):
    """They counted by arm and rate alone, together with the new ones or instead of them."""
    runner.state = lambda settings, rate, seed: "diverged" if settings["arm"] == "full" else "finished"
    with pytest.raises(SettingError, match="at least one rate must have no diverged trials"):
        protocol.follow(read(STUDY), place)
    trained = runner.trained
    changed = read(study(settings={**STUDY["settings"], "holdout": 0.5}))
    with pytest.raises(SettingError, match=r"holdout=0.25 for full on t \(got 0.5\); name other folders with --out"):
        protocol.follow(changed, place)
    assert runner.trained == trained


def test_several_jobs_train_the_same_runs_with_a_share_of_the_cores_each(runner, place, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(protocol.os, "cpu_count", lambda: 8)
    protocol.follow(read(STUDY), place)
    alone = {file.relative_to(place.results): file.read_bytes() for file in record_files(place.results)}
    assert runner.threads == {None}
    runner.threads.clear()
    several = protocol.Place(place.out / "b", place.results / "b", place.words, jobs=3)
    protocol.follow(read(STUDY), several)
    assert {file.relative_to(several.results): file.read_bytes() for file in record_files(several.results)} == alone
    assert runner.threads == {"2"}


def test_a_job_without_work_helps_another_from_its_other_end(runner, place):
    def slow(settings, rate, seed):
        time.sleep(0.05 if settings["arm"] == "full" else 0)
        return "finished"

    runner.state = slow
    protocol.follow(read(STUDY), protocol.Place(place.out, place.results, place.words, jobs=2))
    tried = [(rates, seeds) for stage, arm, rates, seeds, _ in runner.calls if (stage, arm) == ("tuning", "full")]
    assert tried == [([1e-4, 1e-3, 1e-2], [100, 101]), ([1e-2, 1e-3, 1e-4], [101, 100])]
    assert len(list(read_records(place.results / "tuning" / "t" / "full"))) == 6
    assert runner.trained == len(list(read_records(place.results))), "no run is trained twice"


def test_a_missing_environment_variable_of_the_probe_is_refused_before_anything_trains(runner, place, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    asked = read(study(probe={"options": "--stsb $NOWHERE"}))
    with pytest.raises(SettingError, match="environment variable NOWHERE, which is not set"):
        protocol.follow(asked, place)
    assert runner.calls == []


def test_a_failure_lets_the_other_jobs_finish_and_starts_no_more(runner, place):
    began = threading.Barrier(2)

    def state(settings, rate, seed):
        if settings["arm"] in ("full", "lora@2") and rate == 1e-3 and seed == 100:
            began.wait(10)  # both are under way when full fails
        if settings["arm"].startswith("lora"):
            time.sleep(0.1)
        return "failed" if settings["arm"] == "full" else "finished"

    runner.state = state
    with pytest.raises(SystemExit):
        protocol.follow(read(STUDY), protocol.Place(place.out, place.results, place.words, jobs=2))
    begun = {arm for _, arm, *_ in runner.calls}
    assert {"full", "lora@2"} <= begun
    assert not any(arm.startswith("adalora") for arm in begun)
    assert len(list(read_records(place.results / "tuning" / "t" / "lora"))) >= 3, (
        "what had begun is finished and packed"
    )


def test_the_committed_studies_keep_their_rates():
    """Those that were chosen before studies had checkpoints, claims and rates of cells."""
    content = yaml.safe_load((ROOT / "experiments" / "reproduce" / "adalora_table1.yaml").read_text())
    committed = {
        "controls": load(ROOT / "experiments" / "studies" / "controls.yaml"),
        "adalora_table1": table1.study(content, "small", None),
    }
    for name, asked in committed.items():
        results = ROOT / "experiments" / "results" / name
        for task in (folder.name for folder in (results / "tuning").iterdir()):
            grids = {m: rates_of(asked, task, m) for m, method in asked.methods.items() if "rates" in method}
            chosen = protocol.choices(asked, protocol.Place(results / "no runs", results, []), task, grids)
            assert chosen == json.loads((results / "tuning" / task / "rates.json").read_text()), (name, task)


def test_trials_do_not_measure_test_unless_the_study_says_so(runner, place):
    protocol.follow(read(STUDY), place)
    tested = {(stage, settings.get("test")) for stage, *_, settings in runner.calls}
    assert tested == {("tuning", "false"), ("seeds", None)}
    runner.calls.clear()
    as_committed = study(settings={**STUDY["settings"], "test": True})
    protocol.follow(read(as_committed), protocol.Place(place.out / "b", place.results / "b", []))
    assert {settings["test"] for *_, settings in runner.calls} == {"true"}


def test_each_cell_has_its_own_rate_where_the_study_says_so(runner, place):
    best = {"adalora@2": 1e-3, "adalora@8": 1e-2}
    runner.value = lambda settings, rate, seed: -abs(rate - best.get(settings["arm"], 1e-2))
    protocol.follow(read(study(rates_per="cell")), place)
    chosen = {name: choice["rate"] for name, choice in rates(place).items()}
    assert chosen == {"full": 1e-2, "lora@2": 1e-2, "lora@8": 1e-2, **best}
    assert {choice["trials"] for choice in rates(place).values()} == {6}
    compared = {arm: rates for stage, arm, rates, *_ in runner.calls if stage == "seeds"}
    assert [compared[arm] for arm in ("adalora@2", "map@2", "adalora@8", "map@8")] == [[1e-3], [1e-3], [1e-2], [1e-2]]


def test_a_best_rate_at_the_edge_extends_every_grid_alike(runner, place, capsys):
    best = {"full": 0.09, "lora@2": 1e-2, "lora@8": 1e-2}
    runner.value = lambda settings, rate, seed: -abs(rate - best.get(settings["arm"], 1e-4))
    protocol.follow(read(study({})), place)
    found = rates(place)
    grids = {name: [rate for rate, _ in choice["means"]] for name, choice in found.items()}
    assert grids["lora@2"] == grids["adalora@8"] == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0], "lora's was inside"
    assert grids["full"] == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert found["full"]["added"] == [1e-6, 1e-5, 1e-1, 1.0]
    assert {choice["trials"] for choice in found.values()} == {2 * 7}
    assert [found[name]["rate"] for name in ("full", "lora@2", "adalora@2")] == [1e-1, 1e-2, 1e-4]
    assert not any(choice["at_the_edge"] for choice in found.values())
    assert "a best rate lies at the edge of its grid; every grid grows by" in capsys.readouterr().out


def test_a_rate_that_stays_at_the_edge_is_refused_or_accepted(runner, place, capsys):
    runner.value = lambda settings, rate, seed: rate
    with pytest.raises(
        SettingError, match=r"methods.full.rates must hold the best rate inside .* \(got 0.1 for full on t"
    ):
        protocol.follow(read(study({}, extend=1)), place)
    assert rates(place)["full"]["added"] == [0.1]
    assert all(stage == "tuning" for stage, *_ in runner.calls), "nothing is compared"
    protocol.follow(read(study({}, extend=1, edge="accept")), place)
    assert "t, full: train.lr=0.1 after 8 trials, at the edge of its grid: widen it" in capsys.readouterr().out
    assert any(stage == "seeds" for stage, *_ in runner.calls)


def test_a_trial_that_diverges_rules_its_rate_out(runner, place):
    """In that cell alone; a failed run still ends the protocol, and so does a diverged one of the comparison."""
    runner.value = lambda settings, rate, seed: -abs(rate - 9e-2)
    runner.state = lambda settings, rate, seed: (
        "diverged" if (settings["arm"], rate) == ("lora@8", 1e-1) else "finished"
    )
    protocol.follow(read(study(rates_per="cell")), place)
    found = rates(place)
    assert (found["lora@2"]["rate"], found["lora@8"]["rate"]) == (1e-1, 1e-2)
    assert found["lora@8"]["means"][-1] == [1e-1, None]
    assert (found["lora@8"]["trials"], found["lora@8"]["at_the_edge"]) == (6, False)
    runner.state = lambda settings, rate, seed: "failed" if seed == 101 else "finished"
    with pytest.raises(SystemExit):
        protocol.follow(read(study()), protocol.Place(place.out / "b", place.results / "b", []))
    runner.state = lambda settings, rate, seed: "diverged" if seed == 1 else "finished"
    with pytest.raises(SystemExit):
        protocol.follow(read(study()), protocol.Place(place.out / "c", place.results / "c", []))


def test_claims_are_declared_before_the_first_seed_of_the_comparison(runner, place):
    seen = []
    runner.before = lambda: seen.append(
        (len(runner.calls), claims.load(place.results), claims.load(place.out / "seeds"))
    )
    asked = read(study({}), "mine")
    protocol.follow(asked, place)
    first = next(i for i, (stage, *_) in enumerate(runner.calls) if stage == "seeds")
    _, declared, copied = seen[first]
    assert declared == copied
    assert (declared.study, declared.claims, declared.hash) == ("mine", asked.claims, claims.digest(asked.claims))
    assert json.loads((place.out / "seeds" / "rates.json").read_text()) == {"t": rates(place)}


def test_claims_that_change_after_runs_are_recorded_and_said(runner, place, capsys):
    protocol.follow(read(study({})), place)
    runs = len(list(read_records(place.results / "seeds")))
    protocol.follow(read(study({"alpha": 0.01})), place)
    assert f"The claims have changed after {runs} runs of the comparison" in capsys.readouterr().out
    for folder in (place.results, place.out / "seeds"):
        found = claims.load(folder)
        assert found.claims.alpha == 0.01
        assert [(change.claims.alpha, change.runs) for change in found.changes] == [(0.05, runs)]
    protocol.follow(read(study({"alpha": 0.01})), place)
    assert "changed" not in capsys.readouterr().out


def test_claims_come_before_the_runs_and_do_not_go_after_them(runner, place, tmp_path):
    plain = read(study(rates_per="cell"))
    protocol.follow(plain, place)
    with pytest.raises(SettingError, match="claims must be declared before the first run of the comparison"):
        protocol.follow(read(study({})), place)
    declared = protocol.Place(tmp_path / "o", tmp_path / "r", [])
    protocol.follow(read(study({})), declared)
    with pytest.raises(SettingError, match=r"the study must keep its claims \(got none; \S+claims.json has some\)"):
        protocol.follow(plain, declared)


def test_a_metric_that_is_not_the_claimed_one_is_refused(runner, place):
    with pytest.raises(
        SettingError, match=r"claims.metrics.t must be the metric of its runs, accuracy \(got matthews\)"
    ):
        protocol.follow(read(study({"metrics": {"t": "matthews"}})), place)


LOOKS = {"looks": [3, 6], "margins": {"t": 0.05}}
SEEDS = {"seeds": list(range(9)), "tuning": [100]}


def scores(settings, rate, seed):
    """adalora is far better than lora, and lora@8 than lora@2; between map and high there is much noise."""
    noise = 0.03 * ((seed * 7 + len(settings["arm"]) * 3) % 5 - 2)
    method, _, rank = settings["arm"].partition("@")
    level = {"adalora": 0.9, "map": 0.7, "high": 0.5, "lora": 0.3 if rank == "2" else 0.6}.get(method, 0.2)
    return level + noise * (4 if method == "map" else 0.1) - abs(rate - 1e-2)


def test_looks_stop_what_is_decided_and_drop_what_nobody_needs(runner, place, capsys):
    runner.value = scores
    asked = read(study(LOOKS, **SEEDS))
    protocol.follow(asked, place, looking=True)
    looks = json.loads((place.results / "looks.json").read_text())
    assert looks["hash"] == claims.digest(asked.claims)
    words = {
        row["seeds"]: {f"{row['of']} − {row['against']}": row["word"] for row in look["claims"]}
        for look in looks["tasks"]["t"]
        for row in look["claims"]
    }
    decided = next(seeds for seeds, rows in words.items() if rows.get("adalora@2 − lora@2") == "better")
    last = max(words)
    assert decided < last
    assert words[last].keys() == {"map@2 − high@2", "map@8 − high@8"}
    assert [look["seeds"] for look in looks["tasks"]["t"]] == [3, 6, 9]
    seeds = {}
    for stage, arm, _, used, _ in runner.calls:
        if stage == "seeds":
            seeds[arm] = seeds.get(arm, set()) | set(used)
    assert seeds["lora@2"] == set(range(decided)), "nothing that is undecided needs it"
    assert seeds["map@2"] == seeds["adalora@2"] == set(range(last)), "a map needs the run that its ranks come from"
    assert "full" not in seeds, "no claim names it"
    assert "t, 3 seeds: adalora@2 − lora@2: +0.6" in capsys.readouterr().out
    assert (place.out / "seeds" / "looks.json").read_bytes() == (place.results / "looks.json").read_bytes()

    trained, before = runner.trained, (place.results / "looks.json").read_bytes()
    runner.calls.clear()
    protocol.follow(asked, place, looking=True)
    assert (runner.trained, (place.results / "looks.json").read_bytes()) == (trained, before)
    assert {stage for stage, *_ in runner.calls} == {"tuning"}, "recorded looks are not run again"
    (place.results / "looks.json").unlink()
    protocol.follow(asked, place, looking=True)
    assert (runner.trained, (place.results / "looks.json").read_bytes()) == (trained, before)


def test_a_look_at_other_rates_is_not_used(runner, place):
    """The trials had come to choose another rate, and the verdicts of the runs at the old one were printed again."""
    runner.value = scores
    protocol.follow(read(study(LOOKS, **SEEDS)), place, looking=True)
    others = {name: {"rates": [5e-3, 2e-2, 5e-2]} for name in ("full", "lora", "adalora")}
    runner.value = lambda settings, rate, seed: scores(settings, rate, seed) + 0.1 * (rate == 2e-2)
    asked = read(study(LOOKS, **SEEDS, methods=methods(**others)))
    with pytest.raises(SettingError, match=r"the trials must choose the rates of the looks at t, 0.01 for .* \(got "):
        protocol.follow(asked, place, looking=True)


def test_seeds_that_change_after_runs_of_the_comparison_are_refused(runner, place):
    """Seeds 4 to 7 in place of 0 to 3 were judged together with those, as if eight had been planned."""
    protocol.follow(read(study({}, seeds=[0, 1])), place)
    trained = runner.trained
    with pytest.raises(
        SettingError, match=r"seeds must include those of the study's runs, .* \(got none of 0, 1, which "
    ):
        protocol.follow(read(study({}, seeds=[2, 3])), place)
    assert runner.trained == trained
    protocol.follow(read(study({}, seeds=[3, 2, 1, 0])), place)
    assert runner.trained > trained


def test_further_words_are_compared_and_may_not_replace_the_sweep(runner, place):
    """Runs of 100 and of 200 steps were averaged, since a word for train.steps was exempt."""
    longer = protocol.Place(place.out, place.results, ["train.steps=200"])
    protocol.follow(read(STUDY), longer)
    for file in place.out.rglob("config.yaml"):
        config = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump({**config, "train": {**config["train"], "steps": 200}}))
    for file in record_files(place.results):
        file.unlink()
    trained = runner.trained
    protocol.follow(read(STUDY), longer)
    assert runner.trained == trained
    with pytest.raises(SettingError, match=r"train.steps=200 for full on t \(got 100\)"):
        protocol.follow(read(STUDY), protocol.Place(place.out, place.results, ["train.steps=100"]))
    for word in ("seed=5", "seed=5,6", "+train.lr=1e-3", "out=elsewhere"):
        with pytest.raises(SettingError, match="further words must not set what the study sets for each run"):
            protocol.follow(read(STUDY), protocol.Place(place.out, place.results, [word]))


def test_trials_of_arms_that_are_no_longer_asked_for_choose_no_rate(runner, place):
    protocol.follow(read(study(tuning=[100, 101])), place)
    assert rates(place)["lora"]["trials"] == 6
    protocol.follow(read(study(budgets=[2], tuning=[100, 101])), place)
    assert rates(place)["lora"]["trials"] == 6, "those of lora@8 do not count; lora@2 has both seeds now"


def test_an_old_failure_does_not_make_a_diverged_trial_fatal(runner, place):
    runner.state = lambda settings, rate, seed: "failed" if rate == 1e-1 else "finished"
    with pytest.raises(SystemExit):
        protocol.follow(read(STUDY), place)
    runner.state = lambda settings, rate, seed: (
        "diverged" if (settings["arm"], rate) == ("lora@8", 1e-4) else "failed" if rate == 1e-1 else "finished"
    )
    lower = {name: {"rates": [1e-4, 1e-3, 1e-2]} for name in ("full", "lora", "adalora")}
    protocol.follow(read(study(methods=methods(**lower))), place)
    assert rates(place)["lora"]["rate"] == 1e-2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--from", "x"], "a study that runs must not have --from, which it would ignore"),
        (["--read", "--tasks", "t"], "--read must not have --tasks, which it would ignore"),
        (["--read", "train.steps=3"], "--read must not have further words, which it would ignore"),
        (["--plan", "--looks"], "--plan must not have --looks, which it would ignore"),
    ],
)
def test_what_would_be_ignored_is_refused(runner, place, tmp_path, words, says):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(STUDY))
    done = command(file, "--out", place.out, "--results", place.results, *words)
    assert (done.status, done.err) == (2, f"error: {says}\n")
    assert runner.calls == []


def test_files_in_the_place_of_folders_and_damaged_records_are_one_sentence(runner, place, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(study(methods={"full": STUDY["methods"]["full"]})))
    for name in ("--out", "--results"):
        places = {"--out": place.out, "--results": place.results, name: file}
        done = command(file, *(word for pair in places.items() for word in pair))
        assert (done.status, done.err) == (2, f"error: {name} must be a folder (got {file}, a file)\n")
    words = (file, "--out", place.out, "--results", place.results)
    assert command(*words, "hydra/launcher=basic").status == 0
    damaged = place.results / "tuning" / "t" / "rates.json"
    damaged.write_text("{<<<<")
    done = command(*words, "--read")
    assert (done.status, done.err) == (2, f"error: {damaged} is damaged; restore it\n")


def test_looks_need_looks_and_tasks_must_be_the_study_s(runner, place):
    with pytest.raises(SettingError, match=r"--looks must have a study whose claims have looks \(got none\)"):
        protocol.follow(read(study({})), place, looking=True)
    with pytest.raises(SettingError, match=r"--tasks must be among t \(got u\)"):
        protocol.follow(read(STUDY), place, ["u"])
    assert runner.calls == []


def command(*words):
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["protocol.py", *map(str, words)])
        status = protocol.main()
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())


def test_plan_trains_nothing_and_says_what_the_claims_need(runner, place, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(study(LOOKS, **SEEDS)))
    places = ["--out", place.out, "--results", place.results]
    done = command(file, *places, "--plan")
    assert (done.status, done.out) == (2, "")
    assert "--plan must find finished runs of the study's tasks in --results or --from" in done.err
    runner.value = scores
    earlier = protocol.Place(tmp_path / "eo", tmp_path / "earlier", [])
    protocol.follow(read(STUDY), earlier)
    trained = runner.trained
    done = command(file, *places, "--plan", "--from", earlier.results)
    assert done.status == 0, done.err
    assert runner.trained == trained
    assert [path.name for path in place.results.iterdir()] == ["plan.json"]
    assert "In total " in done.out
    plain = tmp_path / "plain.yaml"
    plain.write_text(yaml.safe_dump(STUDY))
    assert "claims nothing about its metric" in command(plain, *places, "--plan", "--from", earlier.results).out


def in_this_one(words):
    """The command with each of its sweeps in this process, and pages without figures."""
    sweeps = SimpleNamespace(run=lambda command, env: SimpleNamespace(returncode=run_main(command[2:])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "subprocess", sweeps)
        patch.setattr("analysis.figures.figures", lambda *_: iter(()))
        return command(*words)


@pytest.mark.slow
def test_a_declared_study_runs_at_tiny_size_from_the_plan_to_the_report(tmp_path):
    content = yaml.safe_load((ROOT / "experiments" / "studies" / "controls_declared.yaml").read_text())
    content |= {"settings": {"tiny": True, "holdout": 0.25}, "tuning": [100], "seeds": [0, 1, 2, 3], "edge": "accept"}
    content["claims"]["looks"] = [3]
    for method in content["methods"].values():
        if "rates" in method:
            method["rates"] = method["rates"][1:3]
    file, out, results = tmp_path / "declared.yaml", tmp_path / "out", tmp_path / "results"
    file.write_text(yaml.safe_dump(content))
    words = [file, "--out", out, "--results", results]
    done = in_this_one([*words, "--looks"])
    assert done.status == 0, done.err
    assert claims.load(results) == claims.load(out / "seeds")
    looks = json.loads((results / "looks.json").read_text())["tasks"]["rotten_tomatoes"]
    named = [contrast["name"] for contrast in content["claims"]["contrasts"]]
    assert [row["name"] for row in looks[0]["claims"]] == [*named, "assay"]
    assert f"report: {out / 'seeds' / 'report' / 'index.html'}" in done.out
    found = report.load(out / "seeds")
    assert (found.declared.study, found.family.declared, found.family.missing) == ("declared", True, [])
    assert [verdict.comparison.name for verdict in found.family.verdicts[0]] == named, "every arm has its runs"
    assert len(found.family.assays[0]) == 1
    trials = [json.loads(path.read_text())["metric"] for path in (out / "tuning").rglob("summary.json")]
    assert all(metric.get("test") is None for metric in trials)
    records = {path: path.read_bytes() for path in record_files(results)}
    planned = in_this_one([*words, "--plan"])
    assert planned.status == 0, planned.err
    assert planned.out.count("SD of paired differences") == 4
    again = in_this_one([*words, "--looks"])
    assert (again.status, {path: path.read_bytes() for path in record_files(results)}) == (0, records)
