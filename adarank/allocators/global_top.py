"""AdaLoRA's rule: keep the most important triplets over all modules."""

from adarank.allocators.allocator import Allocator
from adarank.allocators.order import keep_top


def global_top(min_rank: int = 0, max_rank: int | None = None) -> Allocator:
    """Keep the triplets with the largest scores that fit into the budget (AdaLoRA, arXiv 2303.10512, eq. 6).

    Ties go to the triplet that comes first. A budget in triplets is kept exactly; one in parameters ends at the first
    triplet that does not fit, so that less than one triplet's cost is left over.

    min_rank, max_rank: the fewest and the most triplets a module keeps (None: no limit); see `Allocator`.

    Example:
        >>> scores, mask = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.ones(4, dtype=torch.bool)
        >>> costs, modules = torch.ones(4, dtype=torch.long), torch.tensor([0, 0, 1, 1])
        >>> global_top()(Request(scores, mask, budget=3, costs=costs, modules=modules)).tolist()
        [True, True, True, False]
    """
    return Allocator(lambda request: keep_top(request, request.scores, min_rank, max_rank), min_rank, max_rank)
