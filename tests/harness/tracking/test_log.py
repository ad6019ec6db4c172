import logging

import pytest

from adarank.errors import SettingError
from adarank.harness.tracking import no_copy, open_log

RECORD = {"step": 1, "budget": 2, "kept": 2, "parameters": 10, "ranks": {"layer.0": 2}, "score_quantiles": {}}


class Recorder:
    """A real copy that lives in memory; it raises `error` at the call named `fails`."""

    def __init__(self, fails: str = "", error: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self.fails, self.error = fails, error

    def __call__(self, **_: object) -> "Recorder":
        self._note("start")
        return self

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fails and self.error is not None:
            raise self.error

    def metrics(self, step, split, values):
        self._note("metrics")

    def allocation(self, record):
        self._note("allocation")

    def finish(self, summary):
        self._note("finish")

    def close(self):
        self._note("close")

    def abandon(self):
        self._note("abandon")

    def recovery(self):
        return "an angel copies it"


def run(tracker, folder) -> None:
    with open_log(tracker, folder=folder, config={}, name="lora-r8-s0", group="g") as log:
        log.metrics(1, "train", {"loss": 1.0})
        log.allocation(RECORD)
        log.metrics(2, "train", {"loss": 0.5})
        log.finish({"status": "finished"})


def complete(folder) -> bool:
    files = {name: (folder / name).read_text() for name in ("metrics.jsonl", "allocations.jsonl", "summary.json")}
    return files["metrics.jsonl"].count("\n") == 2 and files["allocations.jsonl"].count("\n") == 2


def test_a_copy_receives_every_call_once(tmp_path):
    copy = Recorder()
    run(copy, tmp_path)
    assert complete(tmp_path)
    assert copy.calls == ["start", "metrics", "allocation", "metrics", "finish"]


def test_no_copy_is_the_folder_alone(tmp_path):
    run(no_copy, tmp_path)
    assert complete(tmp_path)


@pytest.mark.parametrize("call", ["start", "metrics", "allocation", "finish"])
def test_a_failing_copy_warns_once_and_is_called_no_more(tmp_path, caplog, call):
    copy = Recorder(call, OSError("the cat ate it.\nAnd more."))
    run(copy, tmp_path)
    assert complete(tmp_path)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "the cat ate it" in record.message
    assert str(tmp_path) in record.message
    assert "\n" not in record.message
    if call != "start":
        assert "an angel copies it" in record.message
        assert copy.calls[-2:] == [call, "abandon"]


@pytest.mark.parametrize("call", ["start", "metrics", "finish"])
def test_an_interrupt_passes_through(tmp_path, call):
    with pytest.raises(KeyboardInterrupt):
        run(Recorder(call, KeyboardInterrupt()), tmp_path)


def test_an_exception_in_the_run_closes_the_copy_and_writes_no_summary(tmp_path):
    copy = Recorder()
    with (
        pytest.raises(ZeroDivisionError),
        open_log(copy, folder=tmp_path, config={}, name="n", group="g") as log,
    ):
        log.metrics(1, "train", {"loss": 1 / 0})
    assert copy.calls == ["start", "close"]
    assert not (tmp_path / "summary.json").exists()


def test_a_wrong_setting_is_raised_before_any_file_is_touched(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(SettingError):
        run(Recorder("start", SettingError("tracker.mode=x")), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"


def test_a_folder_that_cannot_be_written_is_an_error_and_ends_the_copy(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    copy = Recorder()
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        run(copy, tmp_path)
    assert copy.calls == ["start", "abandon"]
