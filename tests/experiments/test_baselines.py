"""The baselines as a user types them: tiny runs of each, their counts, budgets, refusals and folders."""

import json

import pytest
import torch

import adarank
from adarank.harness.models import tiny
from tests.experiments.test_run import inside, summaries
from tests.representatives import representatives

D, F, LAYERS = 128, 256, 2  # tiny_bert
HEAD = D * 2 + 2
LINEARS = LAYERS * (4 * 2 * D + 2 * (D + F))  # Σ d_in + d_out, targets=all
QV = LAYERS * 2 * 2 * D
BIASES = LAYERS * (4 * D + F + D + 2 * D) + D + D  # blocks, the embeddings' LayerNorm, the pooler


def bottleneck(rank, places, linears=LINEARS):
    width = max(1, round((rank * linears - places * D) / (places * (2 * D + 1))))
    return places * (2 * width * D + width + D)


ADAPTER = {  # parameters in adapters at rank 4, written out
    "houlsby": bottleneck(4, 2 * LAYERS),
    "pfeiffer": bottleneck(4, LAYERS),
    "bitfit": 0,
    "head": 0,
    "rslora": 4 * LINEARS,
    "lora_plus": 4 * LINEARS,
    "lora_orth": 4 * LINEARS,
    "svd_lora": 4 * (LINEARS + 12),
    "lora_pruned": 6 * LINEARS,  # before pruning
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """{method: (folder, summary)} of every method at rank 4, run once."""
    out = tmp_path_factory.mktemp("sweep")
    inside("-m", f"method={','.join(ADAPTER)}", "rank=4", "tiny=true", "train.steps=6", f"out={out}")
    return {summary["method"]: (out / folder, summary) for folder, summary in summaries(out).items()}


@pytest.mark.slow
def test_methods_without_a_rank_are_one_run_whatever_rank_and_targets(sweep):
    out = sweep["bitfit"][0].parent
    again = ("tiny=true", "train.steps=6", f"out={out}")
    done = inside("-m", "method=bitfit,head", "rank=8", "targets=qv", *again)
    assert done.stdout.count("finished already") == 2
    assert len(summaries(out)) == len(ADAPTER) == len(sweep)


@pytest.mark.slow
def test_counts_and_ranks_in_the_summary_are_right(sweep):
    for method, (_, summary) in sweep.items():
        counts = summary["parameters"]
        assert summary["status"] == "finished"
        assert counts["adapter"] == ADAPTER[method], method
        others = HEAD + BIASES if method == "bitfit" else HEAD
        assert counts["trainable"] == ADAPTER[method] + others, method
        assert (counts["kept"] == ADAPTER[method]) == (method != "lora_pruned")
        if method in ("houlsby", "pfeiffer", "bitfit", "head"):
            assert summary["rank"] is None
            assert summary["scale"] is None
        else:
            assert sum(summary["rank"]["final"].values()) == summary["rank"]["budget_triplets"] == 4 * 12
    pruned = sweep["lora_pruned"][1]
    ranks = pruned["rank"]["final"]
    sides = [2 * D if "attention" in name else D + F for name in ranks]
    assert pruned["parameters"]["kept"] == sum(r * s for r, s in zip(ranks.values(), sides, strict=True))
    assert sweep["rslora"][1]["scale"] == pytest.approx(2 * 2**0.5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["houlsby", "pfeiffer", "bitfit", "head", "lora_pruned", "svd_lora"])
def test_a_saved_run_reloads_into_a_freshly_loaded_base(sweep, method):
    """Twice to equal logits, other than the base's, from what the folder holds."""
    folder, _ = sweep[method]
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        built = tiny("bert").build(2)
        plain = built.model.eval()(**(given := built.tokenizer(["a fine film"], return_tensors="pt"))).logits
        adarank.load_adapter(built.model.eval(), folder / "adapter")
        models.append(built.model)
    logits = [model(**given).logits for model in models]
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], plain)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_distilbert", "tiny_llama"])
def test_bottlenecks_in_other_architectures(tmp_path, model):
    done = inside(
        "-m",
        "method=houlsby,pfeiffer",
        f"model={model}",
        "targets=qv",
        "rank=4",
        "tiny=true",
        "train.steps=2",
        f"out={tmp_path}",
    )
    assert all(f"  {n} bottlenecks of width " in done.stdout for n in (2 * LAYERS, LAYERS))
    found = {summary["method"]: summary["parameters"] for summary in summaries(tmp_path).values()}
    assert found["houlsby"]["adapter"] == bottleneck(4, 2 * LAYERS, QV)
    assert found["pfeiffer"]["adapter"] == bottleneck(4, LAYERS, QV)


@pytest.mark.slow
def test_lora_from_rank_4_to_64_with_alpha_and_dropout(tmp_path):
    inside(
        "-m", "method=lora", "rank=4,64", "adapter.alpha=16", "adapter.dropout=0.1", "tiny=true", "train.steps=3", f"out={tmp_path}"
    )  # fmt: skip
    found = {summary["rank"]["budget"]: summary for summary in summaries(tmp_path).values()}
    assert {rank: summary["scale"] for rank, summary in found.items()} == {4: 4.0, 64: 0.25}
    for rank, summary in found.items():
        assert summary["parameters"]["adapter"] == rank * LINEARS
        assert set(summary["rank"]["final"].values()) == {rank}
    saved = [json.loads(p.read_text()) for p in tmp_path.glob("*/adapter/adapter.json")]
    assert {s["dropout"] for s in saved} == {0.1}


@pytest.mark.parametrize(
    ("overrides", "says"),
    representatives([
        (["method=lora", "rank=129"], "rank must be a whole number from 1 to 128, the smaller side of"),
        (["method=lora_pruned", "rank=100"], "init_rank must be a whole number from 1 to 128, the smaller side of"),
        (["method=rslora", "adapter.alpha=null"], "rslora=true needs alpha"),
        (["method=lora", "adapter.alpha=0"], "alpha must be a number above 0"),
        (["method=bitfit", "model=tiny_llama"], "has no bias, so BitFit would train nothing"),
        (["method=houlsby", "adapter.places=[dens]"], "places='dens' matches no projection or LayerNorm outside the modules in train; similar names: dense"),
        (["method=houlsby", "target_modules=[qurey]"], "'qurey' matches no module"),
        (["method=lora_pruned", "pruned_triplets=trainable"], "pruned_triplets must be frozen or masked with adapter='lora'"),
        (["method=bitfit", "score=adalora"], "score has no effect with method=bitfit: its adapter has no triplets"),
    ], 3),
)  # fmt: skip
def test_bad_input_is_one_sentence_and_no_folder(tmp_path, overrides, says):
    done = inside(*overrides, "tiny=true", f"out={tmp_path / 'out'}", status=2)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert says in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
