"""Support for other libraries' training loops and formats; importing this package requires none of them."""

from adarank.integrations.trainer import RankTrainerMixin

__all__ = ["RankTrainerMixin"]
