"""Batched greedy decoding against one prompt at a time, without cache or padding."""

from dataclasses import replace

import pytest
import torch
import transformers

from adarank.harness.data.task_types import generate
from adarank.harness.data.task_types.generate import answers, greedy, left_padded
from adarank.harness.models import tiny
from tests.harness.data.task_types.test_generate import CONFIG

CPU = torch.device("cpu")
PROMPTS = [[2, 5, 9, 40], [2, 77], [2, 8, 100, 33, 12, 7, 60], [2, 12, 30]]


@torch.no_grad()
def slow(model, prompt, end, most):
    ids = list(prompt)
    while len(ids) < len(prompt) + most:
        token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == end:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_batch_gives_what_each_prompt_gives_alone(arch, batch):
    torch.manual_seed(0)
    model = tiny(arch, width=64, layers=2).build(0, generate).model.eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0)  # logits apart enough that rounding decides nothing
    # an end token that some prompts reach and others do not
    end = slow(model, PROMPTS[0], -1, 12)[5]
    expected = [slow(model, prompt, end, 12) for prompt in PROMPTS]
    assert {len(tokens) for tokens in expected} > {12} or len({len(tokens) for tokens in expected}) > 1
    found = answers(model, PROMPTS, end, 0, 12, replace(CONFIG, batch_size=batch), CPU)
    assert found == expected


def test_padding_is_on_the_left():
    ids, mask = left_padded([[5, 6, 7], [8]], 0, CPU)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_checkpoint_s_own_sampling_and_penalties_are_put_aside_and_come_back():
    torch.manual_seed(0)
    model = tiny("llama", width=32, layers=1).build(0, generate).model.eval()
    expected = answers(model, PROMPTS, 3, 0, 8, CONFIG, CPU)
    own = transformers.GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=9.0, num_beams=2)
    model.generation_config = own
    assert answers(model, PROMPTS, 3, 0, 8, CONFIG, CPU) == expected
    assert model.generation_config is own
    with pytest.raises(ZeroDivisionError), greedy(model):
        1 / 0  # noqa: B018
    assert model.generation_config is own
