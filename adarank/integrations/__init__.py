"""adarank in other libraries' training loops and formats; importing this package needs none of them."""

from adarank.integrations.trainer import RankTrainerMixin

__all__ = ["RankTrainerMixin"]
