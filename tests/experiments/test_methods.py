"""Methods of conf/method train from the command line; among the slow tests every one, in one sweep as a user types
it."""

import pytest

from adarank.harness.config.validate import conf_folder
from tests.experiments.test_run import inside, summaries
from tests.representatives import representatives

METHODS = sorted(path.stem for path in (conf_folder() / "method").glob("*.yaml"))
WITHOUT_RANK = {"full", "head", "bitfit", "houlsby", "pfeiffer"}
WITHOUT_BUDGET = {"aroma", "geolora", "sora"}


DEFAULT = ("adalora", "increlora", "sora")  # test_baselines.py trains nine more
SMALL = ("tiny=true", "rank=4", "seed=0")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("methods")


@pytest.mark.slow
def test_one_command_runs_every_method(out):
    inside("-m", "method=glob(*)", *SMALL, f"out={out}")
    found = summaries(out).values()
    assert sorted(summary["method"] for summary in found) == METHODS
    assert {summary["status"] for summary in found} == {"finished"}


@pytest.mark.parametrize("method", representatives(METHODS, DEFAULT))
def test_it_keeps_its_budget_and_can_be_loaded_again(method, out):
    inside(f"method={method}", *SMALL, f"out={out}")  # skipped where the sweep has trained it
    ((folder, summary),) = ((out / name, s) for name, s in summaries(out).items() if s["method"] == method)
    assert summary["status"] == "finished"
    rank = summary["rank"]
    if method in WITHOUT_RANK:
        assert rank is None
    elif method in WITHOUT_BUDGET:
        assert rank["budget"] is None
        assert len(rank["final"]) == 12
    else:
        assert sum(rank["final"].values()) == rank["budget_triplets"] == 4 * 12
    assert summary["metric"]["test"] is not None
    assert summary["parameters"]["trainable"] >= summary["parameters"]["adapter"]
    assert (folder / ("checkpoint" if method == "full" else "adapter")).is_dir()
    assert not list(folder.glob("checkpoint/state*"))
