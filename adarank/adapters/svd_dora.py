"""AdaDoRA: AdaLoRA's triplets W + s·Pᵀ diag(λ) Q (arXiv 2303.10512), with DoRA's magnitude (arXiv 2402.09353)."""

from adarank.adapters.magnitude import with_magnitude
from adarank.adapters.svd import PARAMETRISATION as SVD

PARAMETRISATION = with_magnitude("svd_dora", SVD)
