"""Two processes answer, and train on, prompts as one does: the mean is over the tokens of both."""

import json

import pytest

from tests.experiments.test_run import inside
from tests.harness.run.test_distributed import assert_alike, launched


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "fsdp2"])
def test_two_processes_give_the_run_of_one(shard, tmp_path):
    lines = [{"prompt": f"Say {i}.", "response": "ab" * (1 + 5 * (i % 4))} for i in range(24)]
    for split, count in (("train", 24), ("dev", 5), ("test", 5)):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:count]))
    words = ["task=instruct", f"task.path={tmp_path}", "model=tiny_llama", "model.width=32", "tiny=true", "rank=2"]
    words += [
        "method=adalora",
        "train.gradient_accumulation_steps=2",
        "train.log_every=1",
        "train.batch_size=2",
        "task.metric=rougeL",
    ]
    inside(*words, f"out={tmp_path / 'one'}")
    launched(*words, *([f"train.shard={shard}"] if shard != "none" else []), f"out={tmp_path / 'two'}")
    assert_alike(tmp_path / "one", tmp_path / "two")
    found = [json.loads(next((tmp_path / n).glob("*/summary.json")).read_text())["test"] for n in ("one", "two")]
    assert found[0] == pytest.approx(found[1], abs=1e-5)
