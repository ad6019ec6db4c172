"""The tasks that generate, on the command line with tiny models."""

import json

import pytest
import torch

import adarank
from adarank.harness.data.task_types import generate
from adarank.harness.models import tiny
from tests.experiments.test_run import inside
from tests.representatives import representatives

TINY = ("model=tiny_llama", "tiny=true", "model.width=32", "rank=2")
ANSWER = "Two and {0} is {1}.\n#### {1}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small folders in the layout of each task."""
    root = tmp_path_factory.mktemp("data")
    rows = [
        f'"name[Pub {i}], area[riverside]","Pub {i} is {word} the river."' for i in range(8) for word in ("by", "on")
    ]
    (root / "devset.csv").write_text("\n".join(["mr,ref", *rows]))
    (root / "testset_w_refs.csv").write_text("\n".join(["mr,ref", *rows[:6]]))
    for split, count in (("train", 12), ("test", 4)):
        lines = [{"question": f"What is two and {i}?", "answer": ANSWER.format(i, i + 2)} for i in range(count)]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = root / "own"
    own.mkdir()
    lines = [{"instruction": f"Say {i}.", "input": "", "output": str(i)} for i in range(12)]
    (own / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (own / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    return {"e2e": root, "gsm8k": root, "instruct": own}


def run(data, task, out, *words, status=0):
    done = inside(f"task={task}", f"task.path={data[task]}", *TINY, *words, f"out={out}", status=status)
    found = list(out.glob("*/summary.json"))
    return done, [json.loads(path.read_text()) for path in found], [path.parent for path in found]


@pytest.mark.parametrize("method", representatives(["adalora", "lora", "full", "qlora"], 1))
def test_every_task_runs(data, method, tmp_path):
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    for task, metrics in (
        ("e2e", {"loss", "bleu", "rougeL", "meteor", "cider"}),
        ("gsm8k", {"loss", "answer_match"}),
        ("instruct", {"loss", "bleu", "rouge1", "rouge2", "rougeL", "exact_match"}),
    ):
        done, (summary,), (folder,) = run(data, task, tmp_path / task, f"method={method}")
        assert summary["metric"]["name"] == "loss"
        assert summary["metric"]["higher_is_better"] is False
        assert set(summary["test"]) == metrics
        assert summary["test"]["loss"] == summary["metric"]["test"] > 0
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert {name: value for name, value in lines[-1].items() if name not in ("step", "split")} == summary["test"]
        for name, why in summary["not_computed"].items():
            assert summary["test"][name] is None
            assert f"{name} not computed ({why})" in done.stdout
        assert summary["metric"]["best"] == min(line["loss"] for line in lines if line["split"] == "dev")
        if method == "adalora":
            assert sum(summary["rank"]["final"].values()) == 2 * len(summary["rank"]["final"])


@pytest.mark.slow
def test_checkpointed_activations_accumulation_and_an_init_that_looks_at_data(data, tmp_path):
    words = ("method=eva", "train.gradient_accumulation_steps=2", "train.batch_size=4")
    _, (plain,), _ = run(data, "instruct", tmp_path / "a", *words)
    _, (again,), _ = run(data, "instruct", tmp_path / "b", *words, "train.gradient_checkpointing=true")
    assert again["test"]["loss"] == pytest.approx(plain["test"]["loss"], rel=1e-5)


@pytest.mark.slow
def test_packed_rows_and_losses_in_chunks_change_the_results_by_rounding_alone(data, tmp_path):
    """Here with recomputed activations and a score that records them; the folder's name says that rows are packed."""
    words = ("method=adalora", "score=output", "train.gradient_accumulation_steps=2", "train.batch_size=4")
    _, (plain,), (folder,) = run(data, "e2e", tmp_path / "a", *words)
    assert (plain["packing"], plain["chunked_loss"]) == (None, False)
    more = ("train.packing=true", "train.chunked_loss=true", "train.gradient_checkpointing=true")
    done, (packed,), (other,) = run(data, "e2e", tmp_path / "b", *words, *more)
    assert (packed["packing"], packed["chunked_loss"]) == ("positions", True)
    assert "packs rows into bins, separated by restarting positions" in done.stdout
    assert "computes the logits in chunks of tokens" in done.stdout
    assert packed["test"]["loss"] == pytest.approx(plain["test"]["loss"], rel=1e-4)
    assert folder.name != other.name


@pytest.mark.slow
def test_what_decides_an_answer_decides_the_folder_s_name(data, tmp_path):
    for words in ([], ["task.max_new_tokens=4"], ["task.generate_rows=2"], ["task.metric=exact_match"]):
        run(data, "instruct", tmp_path, "method=lora", *words)
    assert len({path.name for path in tmp_path.glob("lora-*")}) == 4
    names = [json.loads(p.read_text())["metric"] for p in tmp_path.glob("lora-*/summary.json")]
    assert sorted((m["name"], m["higher_is_better"]) for m in names) == [("exact_match", True)] + [("loss", False)] * 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model=tiny_bert"], "model=tiny_bert must be a causal language model"),
        (["method=head"], "there is no head to train: LlamaForCausalLM has none of its own"),
        (["method=bitfit"], "LlamaForCausalLM has no bias"),
        (["task.max_tokens=20"], "task.max_tokens must exceed 41, the number of tokens of prompt 10 of train"),
        (["task.metric=f1"], "task.metric must be one of loss, bleu"),
        (["task.max_new_tokens=0"], "task.max_new_tokens must be at least 1 (got 0)"),
        (["task.path=/nowhere"], "task.path must be a folder with the task's files (/nowhere does not exist)"),
    ],
)
def test_what_makes_no_sense_gets_one_sentence(words, says, data, tmp_path):
    done, found, _ = run(data, "instruct", tmp_path, *words, status=2)
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not found


@pytest.mark.slow
def test_a_run_s_adapter_merges_and_goes_to_peft_and_says_the_same(data, tmp_path):
    """The text that the run's adapter writes is the merged model's and PEFT's."""
    peft = pytest.importorskip("peft")
    _, _, (folder,) = run(data, "instruct", tmp_path / "out", "method=adalora", "train.steps=30")
    torch.manual_seed(0)
    built = tiny("llama", width=32).build(0, generate)
    built.model.save_pretrained(tmp_path / "base")
    built.tokenizer.save_pretrained(tmp_path / "base")
    before = {name: p.detach().clone() for name, p in built.model.named_parameters()}
    model = built.model.eval()
    adarank.load_adapter(model, folder / "adapter")
    prompt = built.tokenizer("Say 3.", return_tensors="pt")
    prompt.pop("token_type_ids", None)

    def write(one):
        with torch.no_grad():
            return one(**prompt).logits, one.generate(**prompt, max_new_tokens=12, do_sample=False).tolist()

    logits, text = write(model)
    adarank.to_peft(model, tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    adarank.merge(model)
    model.save_pretrained(tmp_path / "merged")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    for other in (AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval(), theirs):
        found, same = write(other)
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)
        assert same == text
