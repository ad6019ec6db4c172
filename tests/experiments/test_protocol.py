"""The comparison protocol: as many trials for every method, one choice on dev, the same seeds, nothing trained twice."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from adarank.errors import SettingError
from experiments import protocol
from experiments.pack import write_record
from tests.experiments.test_run import inside, summaries

ROOT = Path(__file__).resolve().parents[2]
STUDY = {
    "settings": {"tiny": True, "holdout": 0.25},
    "tasks": {"t": {"settings": {"task": "t"}, "adaptive": {"schedule.t_i": 0.1}}},
    "budgets": [2, 8],
    "tuning": [100, 101],
    "seeds": [0, 1],
    "methods": {
        "full": {"settings": {"method": "full"}, "ranked": False, "rates": [1e-4, 1e-3]},
        "lora": {"settings": {"method": "lora"}, "rates": [1e-3, 1e-2]},
        "high": {"settings": {"method": "lora"}, "times": 1.5, "tuned_as": "lora"},
        "adalora": {"settings": {"method": "adalora"}, "adaptive": True, "rates": [1e-2, 1e-1]},
        "map": {"settings": {"method": "adalora", "allocator": "map"}, "map_of": "adalora", "tuned_as": "adalora"},
    },
}


def changed(**methods):
    content = copy.deepcopy(STUDY)
    for name, change in methods.items():
        content["methods"][name].update(change)
    return content


def test_every_method_gets_as_many_trials():
    study = protocol.read(STUDY)
    counts = {name: sum(len(seeds) for _, seeds in protocol.trials(study, m)) for name, m in study.methods.items()}
    assert set(counts.values()) == {2}
    assert list(protocol.trials(study, study.methods["lora"])) == [(2, [100]), (8, [101])]
    assert list(protocol.trials(study, study.methods["full"])) == [(None, [100, 101])]


def test_settings_reach_the_methods_that_have_them():
    study = protocol.read(STUDY)
    assert protocol.settings_of(study, "t", "adalora", 2)["schedule.t_i"] == 0.1
    assert "schedule.t_i" not in protocol.settings_of(study, "t", "lora", 2)
    assert protocol.settings_of(study, "t", "high", 2)["rank"] == 3
    assert "rank" not in protocol.settings_of(study, "t", "full", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": {"rates": [1e-3]}}, "every method must have the same number of rates for t"),
        ({"high": {"tuned_as": "nobody"}}, "methods.high must refer to one of full, lora, adalora \\(got nobody\\)"),
        ({"high": {"rates": [1, 2]}}, "methods.high must have either rates or tuned_as"),
    ],
)
def test_an_unfair_study_is_refused(change, message):
    with pytest.raises(SettingError, match=message):
        protocol.read(changed(**change))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tuning", [100, 1], r"tuning must have seeds that no comparison uses \(got \[1\] in both\)"),
        ("tuning", [100], r"tuning must have at least one seed for each budget \(got \[100\]\)"),
    ],
)
def test_seeds_that_tune_do_not_compare(key, value, message):
    with pytest.raises(SettingError, match=message):
        protocol.read({**STUDY, key: value})


def trial(rate, dev, higher=True):
    return {"rate": rate, "dev": dev, "higher_is_better": higher}


def test_the_rate_of_the_best_mean_is_chosen_and_the_edge_said():
    found = [trial(1, 0.9), trial(1, 0.1), trial(2, 0.6), trial(2, 0.6), trial(3, 0.2), trial(3, 0.3)]
    chosen = protocol.choose(found, [3, 1, 2])
    assert (chosen["rate"], chosen["at_the_edge"], chosen["trials"]) == (2, False, 6)
    assert chosen["means"] == [[1, 0.5], [2, 0.6], [3, 0.25]]
    worse = protocol.choose([{**t, "higher_is_better": False} for t in found], [1, 2, 3])
    assert (worse["rate"], worse["at_the_edge"]) == (3, True)


def test_a_task_may_have_a_grid_of_its_own_and_trials_of_another_do_not_count(recorded):
    content = copy.deepcopy(STUDY)
    content["tasks"]["t"]["rates"] = {"full": [1e-5, 1e-4]}
    calls, place = recorded
    protocol.follow(protocol.read(content), place)
    assert [call[3] for call in calls if call[:2] == ("tuning", "full")] == [[1e-5, 1e-4]]
    assert [call[3] for call in calls if call[:2] == ("tuning", "lora")] == [[1e-3, 1e-2]] * 2
    earlier = [trial(1, 0.9), trial(2, 0.6), trial(3, 0.2), trial(3, 0.3)]
    assert protocol.choose(earlier, [1, 2])["trials"] == 2
    content["tasks"]["t"]["rates"] = {"full": [1e-5]}
    with pytest.raises(SettingError, match="every method must have the same number of rates for t"):
        protocol.read(content)


def test_rates_tried_unequally_often_choose_nothing():
    with pytest.raises(SettingError, match="must try each rate equally often"):
        protocol.choose([trial(1, 0.9), trial(1, 0.1), trial(2, 0.6)], [1, 2])
    with pytest.raises(SettingError, match="must try each rate equally often"):
        protocol.choose([trial(1, 0.9)], [1, 2])


def test_strings_are_quoted_for_hydra():
    assert protocol.words({"a": "x/y z", "b": None, "c": True, "d": 1e-3, "e": "plain_1"}) == [
        "a='x/y z'",
        "b=null",
        "c=true",
        "d=0.001",
        "e=plain_1",
    ]


STUDIES = sorted((ROOT / "experiments" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_the_studies_that_are_there_are_fair(path):
    study = protocol.load(path)
    assert study.settings["holdout"]
    compared = sum(len(study.budgets) if m.get("ranked", True) else 1 for m in study.methods.values())
    compared -= len(study.budgets)  # LoRA itself
    assert compared * 2 / 2 ** len(study.seeds) <= 0.05, "no difference could ever be decided"


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_method_of_a_study_runs_at_tiny_size(path, tmp_path):
    """Its own settings reach run.py as it takes them; a map takes the ranks of the run it belongs to."""
    study = dataclasses.replace(protocol.load(path), settings={"tiny": True, "holdout": 0.25})
    (task, *_), (budget, *_) = study.tasks, study.budgets
    for name, method in sorted(study.methods.items(), key=lambda item: "map_of" in item[1]):
        asked, ranked = study, method.get("ranked", True) and "map_of" not in method
        if "map_of" in method:
            (source,) = (tmp_path / method["map_of"]).iterdir()
            asked = protocol.with_map(study, name, source, seed=3)
        words = protocol.words(protocol.settings_of(asked, task, name, budget if ranked else None))
        inside(*words, "seed=3", f"out={tmp_path / name}")
        (summary,) = summaries(tmp_path / name).values()
        assert summary["status"] == "finished"
        if "map_of" in method:
            final = json.loads((source / "summary.json").read_text())["rank"]["final"]
            assert sorted(summary["rank"]["final"].values()) == sorted(final.values())


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """What `follow` would run, and finished records of it: dev is highest at the middle rate."""
    calls = []

    def fake(study, place, stage, task, method, budget, rates, seeds):
        settings = protocol.settings_of(study, task, method, budget)
        calls.append((stage, method, settings.get("rank"), list(rates), list(seeds), settings))
        folder = place.results / stage / task / method
        for rate in rates:
            for seed in seeds:
                config = {"train": {"lr": rate}, "rank": settings.get("rank", 8), "seed": seed}
                summary = {"metric": {"best": -rate, "higher_is_better": True}}
                name = f"{method}-{settings.get('rank')}-{rate}-s{seed}"
                write_record(folder / f"{name}.json.gz", {"config": config, "summary": summary})

    monkeypatch.setattr(protocol, "run", fake)
    monkeypatch.setattr(protocol, "unpack", lambda *_: [])
    return calls, protocol.Place(tmp_path / "out", tmp_path / "results", [])


def test_it_tunes_then_compares_at_the_chosen_rates_and_maps_follow_their_sources(recorded):
    calls, place = recorded
    protocol.follow(protocol.read(STUDY), place)
    stages = [call[0] for call in calls]
    assert stages == sorted(stages, reverse=True), "every trial comes before the first seed"
    seeds = [call[:5] for call in calls if call[0] == "seeds"]
    assert ("seeds", "high", 12, [1e-3], [0, 1]) in seeds
    assert ("seeds", "full", None, [1e-4], [0, 1]) in seeds
    maps = [call for call in calls if call[1] == "map"]
    sources = [Path(call[5]["ranks_from"]).name for call in maps]
    assert sources == [f"adalora-{rank}-0.01-s{seed}" for rank in (2, 8) for seed in (0, 1)]
    assert all(call[3] == [1e-2] for call in maps)
    assert json.loads((place.results / "tuning" / "t" / "rates.json").read_text())["lora"]["rate"] == 1e-3


def test_a_task_that_the_study_lacks_is_refused(recorded):
    with pytest.raises(SettingError, match=r"--tasks must be among t \(got u\)"):
        protocol.follow(protocol.read(STUDY), recorded[1], ["u"])


def test_a_study_that_is_none_is_a_sentence(tmp_path):
    with pytest.raises(SettingError, match=r"study must be a YAML file .* \(got \S+absent.yaml: .*No such file"):
        protocol.load(tmp_path / "absent.yaml")
    path = tmp_path / "study.yaml"
    path.write_text("a: [")
    with pytest.raises(SettingError, match=r"study must be a YAML file .* \(got \S+study.yaml: "):
        protocol.load(path)
    path.write_text("")
    with pytest.raises(SettingError, match=r"the study must have exactly the parts budgets, methods, .* no parts"):
        protocol.load(path)
    path.write_text(yaml.safe_dump({**{k: v for k, v in STUDY.items() if k != "seeds"}, "sedes": [0]}))
    with pytest.raises(SettingError, match=r"the study must have .* \(got sedes, seeds missing or unknown\)"):
        protocol.load(path)
    path.write_text(yaml.safe_dump(STUDY))
    assert protocol.load(path).budgets == [2, 8]
