"""LoRA-drop's importance: the size of a whole module's contribution to its layer's output (arXiv 2402.07721)."""

from torch import Tensor

from adarank.adapters.layers import CONV2D
from adarank.adapters.lowrank import LowRank
from adarank.scores.score import Score, averaged_activation


def module_output(beta: float = 0.85) -> Score:
    """The mean of ‖ΔW x‖² over inputs x, the same for every triplet of a module.

    `global_top`, which breaks ties in favour of the first, then keeps whole modules, the largest first; only the last
    of them may keep a part. Unlike the sum of `output` squared it accounts for cancellation between triplets of a
    module. The mean over the rows of x and the forward passes of a step is averaged over steps: A ← β A + (1−β) mean,
    from zero, without bias correction. x is the input of the low-rank path, after its dropout. Steps whose activations
    overflowed are skipped. beta: in [0, 1); else raises SettingError.
    """
    return averaged_activation(mean_square, beta)


def mean_square(adapter: LowRank, x: Tensor) -> Tensor:
    """The mean of ‖ΔW x‖² over the rows (pixels, indices) of the layer's input x, repeated r times, [r]."""
    layer = adapter.layer
    lam = adapter.effective_lam() * adapter.scale
    out = layer.delta(adapter.base, x, adapter.Q, lam, adapter.P)
    if layer is CONV2D:
        out = out.movedim(-3, -1)
    return out.square().sum(-1).mean().expand(adapter.rank)
