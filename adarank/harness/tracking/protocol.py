"""What the training loop calls, and what may follow along."""

from collections.abc import Mapping
from typing import Any, Protocol


class Log(Protocol):
    """What the training loop calls, and what the local files and every copy receive."""

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Metrics by name, measured on `split` ("train" | "dev" | "test") after optimiser step `step`."""

    def allocation(self, record: Mapping[str, Any]) -> None:
        """An allocation: step, budget and kept (triplets), parameters, ranks {module: rank}, score_quantiles."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run's summary (HOUSE's summary.json); nothing may be logged afterwards."""

    def close(self) -> None:
        """End without a summary, as after an exception; does nothing after `finish`."""


class Copy(Log, Protocol):
    """A log that may fail. Its calls may raise; then it is abandoned and the run goes on."""

    def abandon(self) -> None:
        """Release what a failed copy still holds; never raises an Exception."""

    def recovery(self) -> str:
        """How to bring the copy up to date later, as half a sentence."""
