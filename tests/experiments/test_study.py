"""Studies: what is refused, and the settings, trials and claims that the parts of a study amount to."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from adarank.errors import SettingError
from experiments import study as studies
from experiments.study import Cell
from tests.experiments.studies import CLAIMS, STUDY, methods, study
from tests.experiments.test_run import inside, summaries

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted((ROOT / "experiments" / "studies").glob("*.yaml"))


def test_every_method_gets_as_many_trials():
    found = studies.read(STUDY)
    tuned = [name for name, method in found.methods.items() if "rates" in method]
    counts = {name: sum(len(seeds) for _, seeds in studies.trials(found, name)) for name in tuned}
    assert set(counts.values()) == {2}
    assert list(studies.trials(found, "lora")) == [(2, [100]), (8, [101])]
    assert list(studies.trials(found, "full")) == [(None, [100, 101])]


def test_every_cell_gets_as_many_trials_where_each_has_its_own_rate():
    found = studies.read(study(rates_per="cell", tuning=[100]))
    assert list(studies.trials(found, "lora")) == [(2, [100]), (8, [100])]
    assert list(studies.trials(found, "full")) == [(None, [100])]
    cells = {cell.arm: studies.tuned_as(found, cell) for cell in studies.cells(found)}
    assert cells == {
        "full": "full",
        "lora@2": "lora@2",
        "lora@8": "lora@8",
        "high@2": "lora@2",
        "high@8": "lora@8",
        "adalora@2": "adalora@2",
        "adalora@8": "adalora@8",
        "map@2": "adalora@2",
        "map@8": "adalora@8",
    }
    by_method = studies.read(STUDY)
    assert {studies.tuned_as(by_method, cell) for cell in studies.cells(by_method)} == {"full", "lora", "adalora"}


def test_settings_reach_the_methods_that_have_them():
    found = studies.read(STUDY)
    settings = {
        arm: studies.settings_of(found, "t", Cell(*arm)) for arm in [("adalora", 2), ("lora", 2), ("full", None)]
    }
    assert settings["adalora", 2]["schedule.t_i"] == 0.1
    assert "schedule.t_i" not in settings["lora", 2]
    assert "rank" not in settings["full", None]
    assert [of["arm"] for of in settings.values()] == ["adalora@2", "lora@2", "full"]
    assert studies.settings_of(found, "t", Cell("high", 2))["rank"] == 3
    mapped = studies.settings_of(found, "t", Cell("map", 8))
    assert (mapped["arm"], "rank" in mapped) == ("map@8", False), "the map has its rank"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": {"rates": [1e-3]}}, "every method must have the same number of rates for t"),
        ({"high": {"tuned_as": "nobody"}}, "methods.high must refer to one of full, lora, adalora \\(got nobody\\)"),
        ({"high": {"rates": [1, 2, 3]}}, "methods.high must have either rates or tuned_as"),
        ({"map": {"map_of": "full"}}, r"methods.map.map_of must be a method with its budgets \(got full\)"),
        ({"full": {"map_of": "lora"}}, "methods.full must have tuned_as, since its map does not exist"),
    ],
)
def test_an_unfair_study_is_refused(change, message):
    with pytest.raises(SettingError, match=message):
        studies.read(study(methods=methods(**change)))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"tuning": [100, 1]}, r"tuning must have seeds that no comparison uses \(got \[1\] in both\)"),
        ({"tuning": [100]}, r"tuning must have at least one seed for each budget \(got \[100\]\)"),
        ({"tuning": [], "rates_per": "cell"}, r"tuning must be a list of distinct whole numbers .* \(got \[\]\)"),
        ({"checkpoint": "first"}, r"checkpoint must be last or best \(got first\)"),
        ({"rates_per": "task"}, r"rates_per must be cell or method \(got task\)"),
        ({"edge": "widen"}, r"edge must be refuse or accept \(got widen\)"),
        ({"extend": -1}, r"extend must be a whole number of at least 0 \(got -1\)"),
        (
            {"methods": {"a@b": STUDY["methods"]["lora"]}},
            r"methods must have names that can be folders: .* \(got 'a@b'",
        ),
        ({"tasks": {"glue/t": STUDY["tasks"]["t"]}}, r"tasks must have names that can be folders: .* \(got 'glue/t'"),
        (
            {"extend": 1, "methods": {"lora": {**STUDY["methods"]["lora"], "rates": [1]}}},
            "must have at least two rates",
        ),
    ],
)
def test_a_study_that_cannot_be_followed_is_refused(parts, message):
    with pytest.raises(SettingError, match=message):
        studies.read(study(**parts))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"seeds": ["0", "1"]}, r"seeds must be a list of distinct whole numbers of at least 0 \(got \['0', '1'\]\)"),
        ({"seeds": [0, 0, 1]}, r"seeds must be a list of distinct .* \(got \[0, 0, 1\]\)"),
        ({"tuning": 100}, r"tuning must be a list of distinct .* \(got 100\)"),
        ({"budgets": [0]}, r"budgets must be a list of distinct whole numbers of at least 1 \(got \[0\]\)"),
        ({"settings": None}, r"settings must be a mapping of names to values \(got None\)"),
        ({"methods": ["lora"]}, r"methods must be a mapping of names to parts \(got \['lora'\]\)"),
        ({"methods": {"lora": {"rates": [1]}}}, r"methods.lora must have the part settings, .* \(got settings missing"),
        (
            {"methods": methods(full={"rank": False})},
            r"methods.full must have the part settings, .* \(got rank missing",
        ),
        ({"methods": methods(full={"ranked": "no"})}, r"methods.full.ranked must be true or false \(got no\)"),
        ({"methods": methods(high={"times": "2x"})}, r"methods.high.times must be a positive number \(got 2x\)"),
        (
            {"methods": methods(lora={"rates": ["1e-4", 1e-3]})},
            r"methods.lora.rates must be a list of distinct positive .* 1e-4 is written 1.0e-4 \(got \['1e-4', 0.001\]\)",
        ),
        ({"tasks": {"t": {"setting": {}}}}, r"tasks.t must have the part settings, and may have adaptive, rates \(got"),
        (
            {"tasks": {"t": {"settings": {}, "rates": {"high": [1]}}}},
            r"tasks.t.rates may have .* \(got high missing or",
        ),
        ({"tasks": {"t": {"settings": {}, "rates": {"lora": 1}}}}, r"tasks.t.rates.lora must be a list .* \(got 1\)"),
    ],
)
def test_a_part_of_the_wrong_kind_is_refused_before_any_run(parts, message):
    """Most of these trained trials first: text among the seeds became other seeds, and a seed twice counted twice."""
    with pytest.raises(SettingError, match=message):
        studies.read(study(**parts))


def test_a_task_may_have_a_grid_of_its_own():
    tasks = {"t": {**STUDY["tasks"]["t"], "rates": {"full": [1e-5, 1e-4, 1e-3]}}}
    found = studies.read(study(tasks=tasks))
    assert studies.rates_of(found, "t", "full") == [1e-5, 1e-4, 1e-3]
    assert studies.rates_of(found, "t", "lora") == [1e-3, 1e-2, 1e-1]
    tasks["t"]["rates"] = {"full": [1e-5]}
    with pytest.raises(SettingError, match="every method must have the same number of rates for t"):
        studies.read(study(tasks=tasks))


def test_claims_make_a_study_stricter_and_fill_in_its_arms():
    found, plain = studies.read(study({}), "mine"), studies.read(STUDY)
    assert (plain.claims, plain.rates_per, plain.extend, plain.edge) == (None, "method", 0, "accept")
    assert (found.name, found.rates_per, found.extend, found.edge) == ("mine", "cell", 2, "refuse")
    assert (found.claims.seeds, found.claims.checkpoint, found.checkpoint) == (2, "last", "last")
    assert [contrast.ranks for contrast in found.claims.contrasts] == [(2, 8), (2, 8)]
    kept = studies.read(study({}, rates_per="method", extend=0, edge="accept"))
    assert (kept.rates_per, kept.extend, kept.edge) == ("method", 0, "accept")
    for content in (study({"checkpoint": "best"}), study({}, checkpoint="best")):
        best = studies.read(content)
        assert (best.checkpoint, best.claims.checkpoint) == ("best", "best")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (study({"seeds": 3}), r"claims.seeds must agree with the study's, 2 \(got 3\)"),
        (study({"checkpoint": "best"}, checkpoint="last"), r"claims.checkpoint must agree with the study's, last"),
        (study({"assay": None}), r"claims.assay must have the parts against, of \(got None\)"),
        ({**STUDY, "claims": {k: v for k, v in CLAIMS.items() if k != "assay"}}, "claims must have the part assay"),
        ({**STUDY, "claims": ["a"]}, r"claims must have the parts .* \(got \['a'\]\)"),
        (
            study({"assay": {"of": "lora", "against": "full"}}),
            r"claims.assay.of must be an arm of the study: full, lora@2",
        ),
        (study({"margins": {"u": 1}}), r"claims.margins must have only the parts t \(got u\)"),
    ],
)
def test_claims_that_do_not_fit_the_study_are_refused(content, message):
    with pytest.raises(SettingError, match=message):
        studies.read(content)


def test_hydra_reads_every_string_as_it_was_meant():
    """A folder with a comma became a sweep over two folders, and é, = and ( were refused."""
    texts = [
        "x/y z",
        "a,b",
        "a=b",
        "(é)",
        "é",
        "it's",
        "back\\",
        "\\'",
        "1e-4",
        "12",
        "true",
        "null",
        "${a}",
        "/a/b.c-d_1",
    ]
    words = studies.words({f"k{i}": text for i, text in enumerate(texts)})
    assert [override.value() for override in OverridesParser.create().parse_overrides(words)] == texts
    assert words[-1] == "k13=/a/b.c-d_1", "plain paths stay readable"


def test_strings_are_quoted_for_hydra():
    assert studies.words({"a": "x/y z", "b": None, "c": True, "d": 1e-3, "e": "plain_1", "arm": "lora@2"}) == [
        "a='x/y z'",
        "b=null",
        "c=true",
        "d=0.001",
        "e=plain_1",
        "arm='lora@2'",
    ]


def test_a_study_that_is_none_is_a_sentence(tmp_path):
    with pytest.raises(SettingError, match=r"study must be a YAML file .* \(got \S+absent.yaml: .*No such file"):
        studies.load(tmp_path / "absent.yaml")
    path = tmp_path / "study.yaml"
    path.write_text("a: [")
    with pytest.raises(SettingError, match=r"study must be a YAML file .* \(got \S+study.yaml: "):
        studies.load(path)
    path.write_text("")
    with pytest.raises(
        SettingError, match=r"the study must have the parts budgets, methods, .* and may have .* no parts"
    ):
        studies.load(path)
    path.write_text(yaml.safe_dump({**{k: v for k, v in STUDY.items() if k != "seeds"}, "sedes": [0]}))
    with pytest.raises(SettingError, match=r"the study must have .* \(got sedes, seeds missing or unknown\)"):
        studies.load(path)
    path.write_text(yaml.safe_dump(STUDY))
    assert studies.load(path).budgets == [2, 8]
    assert studies.load(path).name == "study"


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_the_studies_that_are_there_are_fair(path):
    found = studies.load(path)
    for task, of_task in found.tasks.items():
        assert {**found.settings, **of_task["settings"]}["holdout"], f"the reported rows of {task} would choose rates"
    assert len(found.seeds) >= 3, "a spread needs three pairs"


def test_a_study_that_was_run_without_claims_stays_without():
    """Its rates and its trials stay those of the committed runs."""
    for path in (ROOT / "experiments" / "studies" / "controls.yaml",):
        found = studies.load(path)
        assert (found.claims, found.checkpoint, found.rates_per) == (None, "best", "method")
        assert found.settings["test"] is True


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_method_of_a_study_runs_at_tiny_size(path, tmp_path):
    """Its own settings reach run.py as it takes them, on the embedded task; a map takes the ranks of the run it belongs
    to."""
    loaded = studies.load(path)
    task, about = next(iter(loaded.tasks.items()))
    large = ("task", "holdout", "train.steps")
    kept = {key: value for key, value in about["settings"].items() if not key.startswith(large)}
    settings = {"tiny": True, "holdout": 0.25}
    found = dataclasses.replace(loaded, settings=settings, tasks={task: {**about, "settings": kept}})
    budget = found.budgets[0]
    for name, method in sorted(found.methods.items(), key=lambda item: "map_of" in item[1]):
        asked = found
        if "map_of" in method:
            (source,) = (tmp_path / method["map_of"]).iterdir()
            asked = studies.with_map(found, name, source, seed=3)
        cell = Cell(name, budget if method.get("ranked", True) else None)
        words = studies.words(studies.settings_of(asked, task, cell))
        inside(*words, "seed=3", f"out={tmp_path / name}")
        (summary,) = summaries(tmp_path / name).values()
        assert (summary["status"], summary["arm"]) == ("finished", cell.arm)
        if "map_of" in method:
            final = json.loads((source / "summary.json").read_text())["rank"]["final"]
            assert sorted(summary["rank"]["final"].values()) == sorted(final.values())
