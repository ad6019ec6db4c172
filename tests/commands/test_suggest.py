"""adarank suggest: from a model and a file to a LoraConfig that PEFT and TRL load."""

import json

import pytest
import torch
import transformers
import yaml

import adarank
from adarank.cli import main
from adarank.harness.models import byte_tokenizer
from adarank.suggestion import methods
from tests.representatives import representatives

pytestmark = pytest.mark.filterwarnings("ignore:init=eva")
SENTENCES = ["a good film", "dull", "what a play", "never again", "warm and wise", "flat", "a joy", "too long"]
ROWS = {
    "chat": [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]}
        for text in SENTENCES
    ],
    "prompts": [{"prompt": text, "response": text[::-1]} for text in SENTENCES],
    "alpaca": [{"instruction": text, "output": text[::-1]} for text in SENTENCES],
    "own": [{"question": text, "answer": text[::-1]} for text in SENTENCES],
    "labels": [{"text": text, "label": i % 2} for i, text in enumerate(SENTENCES)],
}
OWN = ("--set", "task.prompt=question", "task.response=answer")


@pytest.fixture
def folder(tmp_path):
    """base/, a small Llama with a chat template, and a file of rows of every form."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '[SEP]' }}{% endfor %}"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        **sizes, vocab_size=len(tokenizer), intermediate_size=48, pad_token_id=0, eos_token_id=3
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for name, rows in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def suggest(capsys, folder, data, *words, model="base"):
    status = main(["suggest", str(folder / model), str(data), "--out", str(folder / "out"), *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def config_of(folder):
    return json.loads((folder / "out" / "adapter_config.json").read_text())


@pytest.mark.parametrize("method", representatives(methods(), ["gora"]))
def test_a_config_axolotl_s_lines_and_a_picture(folder, capsys, method):
    status, said, _ = suggest(capsys, folder, folder / "prompts.jsonl", "--budget", "3", "--method", method)
    assert status == 0
    config = config_of(folder)
    assert sum(config["rank_pattern"].values()) == 3 * 14
    assert len(config["target_modules"]) == len(config["rank_pattern"])
    assert config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == str(folder / "base")
    lines = yaml.safe_load((folder / "out" / "axolotl.yaml").read_text())
    assert lines["lora_rank_pattern"] == config["rank_pattern"]
    assert lines["lora_alpha_pattern"] == config["alpha_pattern"]
    assert lines["lora_target_modules"] == config["target_modules"]
    assert (folder / "out" / "rank_map.png").read_bytes().startswith(b"\x89PNG")
    largest = max(config["rank_pattern"].values())
    assert f"14 modules, {14 - len(config['target_modules'])} of rank 0, mean rank 3, largest {largest}" in said
    served = int(said.partition("--max-lora-rank ")[2].split()[0])
    assert served == min(rank for rank in (8, 16, 32) if rank >= largest)
    assert list(folder.glob(".*")) == []


@pytest.mark.parametrize(
    ("data", "words", "modules"),
    representatives(
        [
            ("labels", (), 14),
            ("chat", (), 14),
            ("alpaca", ("--set", "targets=qv", "train.batch_size=4"), 4),
            ("own", OWN, 14),
        ],
        1,
    ),
)
def test_every_form_of_rows(folder, capsys, data, words, modules):
    status, _, error = suggest(capsys, folder, folder / f"{data}.jsonl", "--budget", "2", *words)
    assert status == 0, error
    config = config_of(folder)
    assert sum(config["rank_pattern"].values()) == 2 * modules
    assert config["task_type"] == ("SEQ_CLS" if data == "labels" else "CAUSAL_LM")
    assert config["modules_to_save"] == (["score"] if data == "labels" else None)


@pytest.mark.slow
def test_the_ranks_are_those_of_suggest_ranks_on_the_same_rows(folder, capsys):
    """All rows in one batch, so that their order does not matter."""
    words = ("--budget", "3", "--method", "gora", "--steps", "1")
    assert suggest(capsys, folder, folder / "prompts.jsonl", *words)[0] == 0
    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(folder / "base"), byte_tokenizer()
    tokens, labels = [], []
    for text in SENTENCES:
        asked = tokenizer(f"user: {text}[SEP]", add_special_tokens=False)["input_ids"]
        answer = tokenizer(f"assistant: {text[::-1]}[SEP]", add_special_tokens=False)["input_ids"]
        tokens.append(torch.tensor(asked + answer))
        labels.append(torch.tensor([-100] * len(asked) + answer))
    pad = torch.nn.utils.rnn.pad_sequence
    batch = {
        "input_ids": pad(tokens, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in tokens], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }
    expected = adarank.suggest_ranks(model, [batch], budget=3, method="gora")
    assert config_of(folder)["rank_pattern"] == expected.rank_pattern


@pytest.mark.parametrize(
    ("data", "words", "why"),
    [
        ("labels.jsonl", ("--budget", "0"), "--budget must be a whole number of at least 1 (got 0)"),
        ("prompts.jsonl", ("--budget", "33"), "budget must be a whole number from 1 to 32 (got 33)"),
        ("prompts.jsonl", ("--budget", "2", "--steps", "0"), "--steps must be a whole number of at least 1 (got 0)"),
        ("prompts.jsonl", ("--budget", "2", "--method", "pissa"), "--method must be one of eva, "),
        ("prompts.jsonl", ("--budget", "2", "--set", "task.limit=some"), "task.limit"),
        ("none.jsonl", ("--budget", "2"), "DATA must be a file ("),
        ("base/config.json", ("--budget", "2"), "config.json must be a list of JSON objects"),
        ("other.jsonl", ("--budget", "2"), "DATA must have the columns messages; prompt and response; "),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(folder, capsys, data, words, why):
    (folder / "other.jsonl").write_text('{"body": "x"}\n')
    status, _, error = suggest(capsys, folder, folder / data, *words)
    assert status == 2
    assert error.startswith(f"error: {why}")
    assert error.count("\n") == 1
    assert not (folder / "out").exists()
    assert list(folder.glob(".*")) == []


def test_of_a_wide_table_a_message_names_the_nearest_columns(folder, capsys):
    wide = {f"v{i}": str(i) for i in range(40)} | {"Texts": "a", "labels": "b", "prompt_id": "c"}
    (folder / "wide.csv").write_text(",".join(wide) + "\n" + ",".join(wide.values()) + "\n")
    _, _, error = suggest(capsys, folder, folder / "wide.csv", "--budget", "2")
    named = error.partition("(its columns are ")[2].partition(")")[0]
    assert named.endswith(" and 37 others")
    assert {"Texts", "labels", "prompt_id"} <= {*named.replace(" and", ",").split(", ")}
    _, _, error = suggest(capsys, folder, folder / "wide.csv", "--budget", "2", "--set", "task.text=text")
    assert "has no column text; its columns are Texts, " in error
    assert error.endswith(" and 37 others\n")


@pytest.mark.slow
def test_trl_trains_a_step_with_the_folder(folder, capsys):
    peft, trl = pytest.importorskip("peft"), pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    assert suggest(capsys, folder, folder / "prompts.jsonl", "--budget", "3", "--method", "gora")[0] == 0
    config, tokenizer = peft.LoraConfig.from_pretrained(folder / "out"), byte_tokenizer()
    tokenizer.eos_token = "[SEP]"
    rows = datasets.Dataset.from_dict({"prompt": SENTENCES, "completion": SENTENCES[::-1]})
    options = {"max_steps": 1, "report_to": [], "use_cpu": True, "bf16": False, "save_strategy": "no"}
    trainer = trl.SFTTrainer(
        transformers.AutoModelForCausalLM.from_pretrained(folder / "base"),
        trl.SFTConfig(str(folder / "run"), **options),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=config,
    )
    trainer.train()
    layers = {n: m for n, m in trainer.model.named_modules() if hasattr(m, "lora_A")}
    found = {n.removeprefix("base_model.model.").replace(".", "\\."): m.r["default"] for n, m in layers.items()}
    assert found == config_of(folder)["rank_pattern"]
    assert all(m.lora_B["default"].weight.abs().sum() > 0 for m in layers.values())
