"""Conversations as tokens: what the template writes, which tokens count, what is answered, what is refused."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from adarank.errors import SettingError
from adarank.harness.data.task_types import chat_templates, generate
from adarank.harness.data.tasks.chat import chat
from adarank.harness.data.tasks.instruct import instruct
from adarank.harness.models import byte_tokenizer, tiny
from tests.experiments.test_run import inside
from tests.harness.data.task_types.chat_models import (
    CHATML_TEXT,
    DATED,
    TEMPLATES,
    THINKING,
    chat_tokenizer,
    save_model,
)
from tests.representatives import representatives

CPU = torch.device("cpu")
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello there, how are you?"},
    {"role": "assistant", "content": "Fine.\n\nAnd you?"},
    {"role": "user", "content": "Well.\n"},
    {"role": "assistant", "content": "12 é \U0001f600 is the sum"},
]
SHORT = [{"role": "user", "content": "m"}, {"role": "assistant", "content": "m"}]
FORMS = representatives(list(TEMPLATES), ("chatml", "llama3_marked"))


def write(folder, rows, name="train"):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def task(folder, rows=(TALK, SHORT), **settings):
    given = [{"messages": messages} for messages in rows]
    for split in ("train", "dev", "test"):
        write(folder, given, split)
    return chat(str(folder), **settings)


def counted_runs(ids, labels):
    """The counted tokens, one list per run of neighbours."""
    runs, before = [], False
    for token, label in zip(ids, labels, strict=True):
        assert label in (token, -100)
        if label != -100:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = label != -100
    return runs


@pytest.mark.parametrize("form", FORMS)
def test_the_tokens_are_the_template_s_and_assistant_turns_alone_count(form, tmp_path):
    words = chat_tokenizer(form)
    rows = generate.encode(task(tmp_path), "train", words)
    end = {"chatml": "<|im_end|>\n", "chatml_marked": "<|im_end|>"}.get(form, "<|eot_id|>")
    for talk, ids, labels in zip((TALK, SHORT), rows.input_ids, rows.labels, strict=True):
        assert ids == words.apply_chat_template(talk, return_dict=True)["input_ids"]
        said = [turn["content"] for turn in talk if turn["role"] == "assistant"]
        assert [words.decode(run) for run in counted_runs(ids, labels)] == [text + end for text in said]
    assert rows.counted.tolist() == [len(row) - row.count(-100) for row in rows.labels]
    assert words.convert_ids_to_tokens(rows.end) == end.strip() != words.eos_token


@pytest.mark.parametrize("form", FORMS)
def test_the_last_turn_is_the_reference_and_the_others_the_prompt(form, tmp_path):
    words = chat_tokenizer(form)
    rows = generate.encode(task(tmp_path), "test", words)
    assert rows.references == [[TALK[-1]["content"]], ["m"]]
    for talk, prompt in zip((TALK, SHORT), rows.prompts, strict=True):
        assert prompt == words.apply_chat_template(talk[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    first = next(i for i, label in enumerate(rows.labels[1]) if label != -100)
    assert rows.prompts[1] == rows.input_ids[1][:first]  # what training shows before the answer
    assert generate.encode(task(tmp_path), "dev", words).prompts == []
    assert len(generate.encode(task(tmp_path, generate_rows=1), "test", words).prompts) == 1
    assert len(generate.encode(task(tmp_path, metric="exact_match"), "dev", words).prompts) == 2


PUBLISHED = ["llama3", "qwen3_instruct_2507", "gemma", "gemma3", "cohere", "cohere2", "qwen2_5_vl", "qwen3_vl", "lfm2"]


@pytest.mark.parametrize("name", representatives(PUBLISHED, 2))
def test_prefixes_of_published_templates_count_what_their_marked_forms_count(name):
    """TRL ships models' templates and the same ones with generation marks, which Transformers' own masks follow."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None or not (folder := Path(spec.origin).parent / "chat_templates").is_dir():
        pytest.skip("trl, whose templates these are, is not installed")
    words = chat_tokenizer("llama3" if name == "llama3" else "chatml")
    words.bos_token = words.convert_ids_to_tokens(0)
    found = []
    for file in (f"{name}.jinja", f"{name}_training.jinja"):
        words.chat_template = (folder / file).read_text(encoding="utf-8")
        found.append(chat_templates.labelled(words, chat_templates.template_of(words), TALK[1:], "a row"))
    assert found[0] == found[1]
    assert len(counted_runs(*found[0])) == 2


def test_the_loss_is_the_mean_over_the_counted_tokens_of_all_turns(tmp_path):
    from adarank.harness.models import local

    built = local(str(save_model(tmp_path / "lm", "chatml"))).build(0, generate)
    built.tokenizer.model_max_length = 2048
    rows = generate.encode(task(tmp_path / "data"), "train", built.tokenizer)
    total = 0.0
    for ids, labels in zip(rows.input_ids, rows.labels, strict=True):
        with torch.no_grad():
            logits = built.model.eval()(torch.tensor([ids])).logits[0].double()
        for place, label in enumerate(labels):
            if label != -100:
                shifted = logits[place - 1] - logits[place - 1].max()
                total -= float(shifted[label] - math.log(float(shifted.exp().sum())))
    found = generate.loss(built.model, generate.collate(rows, np.arange(2), CPU)).item()
    assert found == pytest.approx(total / rows.counted.sum(), rel=1e-5)


def test_a_turn_s_own_special_token_ends_the_answer(tmp_path):
    """Phi 3's form: the whole conversation ends with the end token, too, which no answer does."""
    words = chat_tokenizer("chatml")
    template = words.chat_template + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    turns = [{"role": "user", "content": "a"}]
    assert chat_templates.turn_end(words, template, turns, "a row") == words.convert_tokens_to_ids("<|im_end|>")
    assert chat_templates.turn_end(words, template.replace("<|im_end|>", ""), turns, "a row") == words.eos_token_id
    assert chat_templates.turn_end(words, "{{ messages[-1].content }}", turns, "a row") is None
    with pytest.raises(SettingError, match="omits the text of assistant turns, perhaps because it expects a list"):
        chat_templates.turn_end(
            words, "{% for part in messages[-1].content %}{{ part.text }}{% endfor %}", turns, "a row"
        )


def test_a_template_with_today_s_date_writes_the_same_tomorrow():
    words = chat_tokenizer("llama3")
    words.chat_template = DATED
    text = chat_templates.render(words, chat_templates.template_of(words), SHORT)
    assert text.startswith("<|begin_of_text|>Today is 26 Jul 2024\n<|start_header_id|>user")
    words.chat_template = (
        "{{ strftime_now('%Y-%m-%d') }} {% macro f() %}{{ strftime_now('%B') }}{% endmacro %}{{ f() }}"
    )
    assert chat_templates.render(words, chat_templates.template_of(words), SHORT) == "2024-07-26 July"


def test_cached_tokens_are_those_of_the_same_template(tmp_path, monkeypatch):
    monkeypatch.setenv("ADARANK_CACHE", str(tmp_path / "cache"))
    words, given = chat_tokenizer("chatml"), task(tmp_path / "data")
    first = generate.encode(given, "train", words)
    again = generate.encode(given, "train", words)
    assert (first.input_ids, first.labels) == (again.input_ids, again.labels)
    words.chat_template = TEMPLATES["chatml_marked"]
    other = generate.encode(given, "train", words)
    assert other.input_ids == first.input_ids
    assert other.labels != first.labels
    assert len(list((tmp_path / "cache").iterdir())) == 2


def refused(template, rows, folder, **settings):
    words = chat_tokenizer("chatml")
    words.chat_template = template or words.chat_template
    with pytest.raises(SettingError) as error:
        generate.encode(task(folder, rows, **settings), "train", words)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_templates_and_rows_that_cannot_be_used(tmp_path):
    assert refused(None, (SHORT, TALK), tmp_path, max_tokens=5) == (
        "task.max_tokens must exceed 31, the tokens before the first that counts in row 2 of train (got 5; the row "
        "begins 'Be brief.')"
    )
    said = refused(THINKING, (SHORT, TALK), tmp_path)
    assert said.startswith("the chat template writes turn 3 of row 2 of train differently when more turns follow")
    asked_twice = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    assert refused(asked_twice + TEMPLATES["chatml"], (SHORT, TALK), tmp_path) == (
        "the chat template cannot write row 2 of train (System role not supported)"
    )
    none = TEMPLATES["chatml"].replace(CHATML_TEXT, "{% generation %}{% endgeneration %}" + CHATML_TEXT)
    assert refused(none, (SHORT,) * 2, tmp_path).startswith("the chat template marks no token of row 1 of train as the")
    assert refused("{% for", (SHORT, TALK), tmp_path).startswith("the chat template cannot write row 1 of train (")
    several = {"tool_use": TEMPLATES["chatml"]}
    assert refused(several, (SHORT, TALK), tmp_path).startswith("the chat template of the model's tokenizer (")
    with pytest.raises(SettingError, match=r"^the model's tokenizer \(\w+\) has no chat template, which task=chat"):
        generate.encode(task(tmp_path), "train", byte_tokenizer())


def test_one_answer_after_another_form_of_thoughts_nests(tmp_path):
    words = chat_tokenizer("chatml")
    words.chat_template = THINKING
    rows = generate.encode(task(tmp_path, (SHORT, SHORT)), "train", words)
    (run,) = counted_runs(rows.input_ids[0], rows.labels[0])
    assert words.decode(run) == "<think>\n\n</think>\n\nm<|im_end|>\n"


def test_a_conversation_that_is_cut_keeps_its_first_answers(tmp_path):
    rows = generate.encode(task(tmp_path, max_tokens=60), "train", chat_tokenizer("chatml"))
    assert rows.lengths.tolist()[0] == 60
    assert 0 < rows.counted[0] < generate.encode(task(tmp_path), "train", chat_tokenizer("chatml")).counted[0]


ALPACA = [
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Sing.", "input": "", "output": "La"},
    {"instruction": "Sing.", "input": "", "output": "Li"},
]


def own(folder, rows=ALPACA, **settings):
    for split in ("train", "dev"):
        write(folder, rows, split)
    return instruct(str(folder), **settings)


def test_instructions_take_the_tokenizer_s_template_where_it_has_one(tmp_path):
    given, words = own(tmp_path), chat_tokenizer("llama3")
    rows = generate.encode(given, "train", words)
    asked = ("Add.\n\n1 2", "Sing.", "Sing.")
    for text, row, ids in zip(asked, ALPACA, rows.input_ids, strict=True):
        talk = [{"role": "user", "content": text}, {"role": "assistant", "content": row["output"]}]
        assert ids == words.apply_chat_template(talk, return_dict=True)["input_ids"]
    assert [words.decode(counted_runs(*pair)[0]) for pair in zip(rows.input_ids, rows.labels, strict=True)] == [
        "3<|eot_id|>",
        "La<|eot_id|>",
        "Li<|eot_id|>",
    ]
    same = generate.encode(own(tmp_path, template="chat"), "train", words)
    assert (same.input_ids, same.labels) == (rows.input_ids, rows.labels)


@pytest.mark.parametrize("template", ["auto", "alpaca", "plain"])
def test_the_other_forms_of_instructions(template, tmp_path):
    forms = {
        "alpaca": ["### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3", "### Instruction:\nSing.\n\n### Response:\nLa"],
        "plain": ["Add.\n\n1 2\n3", "Sing.\nLa"],
    }  # fmt: skip
    words = byte_tokenizer() if template == "auto" else chat_tokenizer("chatml")  # forced: whatever it has
    rows = generate.encode(own(tmp_path, template=template), "train", words)
    texts = [words.decode(ids, skip_special_tokens=True) for ids in rows.input_ids]
    assert texts[:2] == forms["alpaca" if template == "auto" else template]
    asked = own(tmp_path, [{"prompt": "Say.", "response": "La"}], template=template)
    assert asked.train.prompt == ["### Instruction:\nSay.\n\n### Response:\n" if template == "alpaca" else "Say.\n"]


def test_a_forced_template_is_part_of_the_identity_and_has_to_be_there(tmp_path):
    """The digest is that of the rows before there were templates."""
    auto = own(tmp_path)
    assert auto.fingerprint == "47cb5ce886d5df817241bbe5a1f0edfe93a87e299d2e380c215213539496055f"
    assert auto.options == {"max_new_tokens": 128, "generate_rows": None}
    forced = own(tmp_path, template="chat")
    assert (forced.fingerprint, forced.options["template"]) == (auto.fingerprint, "chat")
    with pytest.raises(SettingError, match=r"has no chat template, which task=chat and task.template=chat"):
        generate.encode(forced, "train", byte_tokenizer())
    generate.encode(auto, "train", byte_tokenizer())


def test_it_runs_on_a_model_from_a_folder(tmp_path):
    model = save_model(tmp_path / "lm", "llama3")
    for split in ("train", "test"):
        write(tmp_path / "data", [{"messages": TALK}, {"messages": SHORT}] * 6, split)
    words = ["task=chat", f"task.path={tmp_path / 'data'}", "tiny=true", "method=adalora", "rank=2", "model=local"]
    inside(*words, f"model.path={model}", f"out={tmp_path / 'out'}")
    (file,) = (tmp_path / "out").glob("*/summary.json")
    summary = json.loads(file.read_text())
    assert (summary["status"], summary["task"], summary["metric"]["name"]) == ("finished", "data", "loss")
    assert set(summary["test"]) == {"loss", "bleu", "rouge1", "rouge2", "rougeL", "exact_match"}
    assert summary["test"]["loss"] == summary["metric"]["test"] > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model=tiny_llama"], "has no chat template, which task=chat and task.template=chat need; choose a model"),
        (["task.messages=turns"], "task.messages=turns: train.jsonl"),
        (["task.max_tokens=9"], "task.max_tokens must exceed "),
    ],
)
def test_what_makes_no_sense_gets_one_sentence(words, says, tmp_path):
    write(tmp_path / "data", [{"messages": TALK}, {"messages": SHORT}])
    model = (
        [] if "model=tiny_llama" in words else ["model=local", f"model.path={save_model(tmp_path / 'lm', 'chatml')}"]
    )
    given = ["task=chat", f"task.path={tmp_path / 'data'}", "tiny=true", *model, *words, f"out={tmp_path / 'out'}"]
    said = inside(*given, status=2).stderr
    assert said.startswith("error: ")
    assert says in said
    assert said.count("\n") == 1
    assert not list((tmp_path / "out").glob("*/summary.json"))


def test_a_tiny_model_has_no_template_and_takes_instructions_all_the_same(tmp_path):
    built = tiny("llama", width=32).build(0, generate)
    assert generate.encode(own(tmp_path), "train", built.tokenizer).lengths.min() > 20
