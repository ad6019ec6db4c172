"""Every method of conf/method trains from the command line: one sweep, as a user types it."""

import pytest

from adarank.harness.settings import conf_folder
from tests.experiments.test_run import inside, summaries

METHODS = sorted(path.stem for path in (conf_folder() / "method").glob("*.yaml"))
WITHOUT_RANK = {"full", "head", "bitfit", "houlsby", "pfeiffer"}
WITHOUT_BUDGET = {"sora"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("methods")
    inside("-m", "method=glob(*)", "tiny=true", "rank=4", "seed=0", f"out={out}")
    return {summary["method"]: (out / name, summary) for name, summary in summaries(out).items()}


def test_one_command_runs_every_method(found):
    assert sorted(found) == METHODS
    assert {summary["status"] for _, summary in found.values()} == {"finished"}


@pytest.mark.parametrize("method", METHODS)
def test_it_keeps_its_budget_and_can_be_loaded_again(method, found):
    folder, summary = found[method]
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
