"""What has become of a run, and why it is not counted."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.files import number, text


def state(status: Mapping[str, Any], summary: Mapping[str, Any], faults: Sequence[str]) -> tuple[str, str]:
    """The state and the reason why the run is not counted ("" for a finished one).

    status, summary: the contents of its two files, empty where missing; faults: of those that cannot be read.
    """
    if faults:
        return "corrupt", "; ".join(faults)
    if not status and not summary:
        return "incomplete", "it has neither status.json nor summary.json"
    found = text(status.get("state", summary.get("status")))
    if found == "running":
        return found, f"at step {text(status.get('step'))}, last heartbeat {text(status.get('heartbeat'))}"
    if found != "finished":
        return found, text(status.get("error") or summary.get("error") or "no reason was recorded")
    if not summary:
        return "incomplete", "it has no summary.json"
    if summary.get("status") != "finished":
        return "incomplete", f"status.json says finished, summary.json {text(summary.get('status'))}"
    fault = _fault(summary)
    return ("corrupt", f"summary.json: {fault}") if fault else ("finished", "")


def _fault(summary: Mapping[str, Any]) -> str:
    """What keeps a finished run's summary from being counted, "" when nothing does."""
    for key in ("method", "model", "task"):
        if not isinstance(summary.get(key), str):
            return f"{key} is missing"
    for key in ("metric", "rank", "parameters", "time", "memory"):
        if not isinstance(summary.get(key) or {}, dict):
            return f"{key} is not an object"
    metric = summary.get("metric") or {}
    if not isinstance(metric.get("name"), str):
        return "metric.name is missing"
    for key in ("best", "last", "test", "test_last"):
        if metric.get(key) is not None and number(metric[key]) is None:
            return f"metric.{key} is not a number"
    if metric.get("test") is None and metric.get("last") is None:
        return "it has neither metric.test nor metric.last"
    final = (summary.get("rank") or {}).get("final") or {}
    if not isinstance(final, dict) or any(number(rank) is None for rank in final.values()):
        return "rank.final is not an object of numbers"
    return ""
