"""Turns conversations into tokens with the chat template of the tokenizer.

Only assistant turns count in the loss. A template with {% generation %} marks identifies their tokens itself. For all
others the conversation is rendered up to each assistant turn, once with the generation prompt and once with the turn,
and the difference counts: the answer, its end token, and any text that the template writes after it.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from adarank.errors import SettingError
from adarank.harness.data.losses import IGNORED
from adarank.harness.data.tasks.base import Turn

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
PROBE = "an answer that nobody gives, 8731"
# Some templates write the current date, so that the same settings would give different tokens tomorrow. This is the
# fallback date of Llama 3's own template.
DATE = {"%Y": "2024", "%y": "24", "%m": "07", "%B": "July", "%b": "Jul", "%d": "26", "%A": "Friday", "%a": "Fri"}
FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f".replace('{code}', '{text}')" for code, text in DATE.items())
    + " }}{% endmacro +%}"
)


def template_of(tokenizer: Any) -> str:
    """The tokenizer's chat template, with a fixed date. Raises SettingError if it has none or no default."""
    name = type(tokenizer).__name__
    if not tokenizer.chat_template:
        raise SettingError(
            f"the model's tokenizer ({name}) has no chat template, which task=chat and task.template=chat need; choose "
            "a model that was tuned on conversations, or save the model with a tokenizer whose chat_template is set"
        )
    if not tokenizer.is_fast:
        raise SettingError(
            f"model: {name} does not report where its tokens are in the text, which conversations need; choose a model "
            "with a fast tokenizer"
        )
    with refusing(f"the chat template of the model's tokenizer ({name}) cannot be used"):
        template: str = tokenizer.get_chat_template()
    return FIXED_DATE + template if "strftime_now" in template else template


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever a template raises into one sentence that begins with `what`."""
    import jinja2

    try:
        yield
    except SettingError:
        raise
    except (jinja2.TemplateError, ImportError, TypeError, ValueError) as error:
        raise SettingError(f"{what} ({str(error).strip().partition(chr(10))[0].rstrip('.')})") from None


def render(tokenizer: Any, template: str, turns: Sequence[Turn], prompt: bool = False) -> str:
    """The conversation as text. prompt: append the beginning of an assistant turn for the model to continue."""
    text: str = tokenizer.apply_chat_template(
        list(turns), chat_template=template, add_generation_prompt=prompt, tokenize=False
    )
    return text


def prompt_tokens(tokenizer: Any, template: str, turns: Sequence[Turn]) -> list[int]:
    """The tokens of the turns and the beginning of the model's answer."""
    ids: list[int] = tokenizer(render(tokenizer, template, turns, prompt=True), add_special_tokens=False)["input_ids"]
    return ids


def labelled(tokenizer: Any, template: str, turns: Sequence[Turn], what: str) -> tuple[list[int], list[int]]:
    """(tokens, labels) of a conversation; a token that does not count has the label IGNORED.

    what: names the row in messages. Raises SettingError if the template refuses the conversation, or if it has no marks
    and writes a turn differently when other turns follow.
    """
    with refusing(f"the chat template cannot write {what}"):
        if GENERATION.search(template):
            out = tokenizer.apply_chat_template(
                list(turns), chat_template=template, return_dict=True, return_assistant_tokens_mask=True
            )
            ids, counts = out["input_ids"], np.array(out["assistant_masks"], dtype=bool)
        else:
            text, spans = _assistant_spans(turns, lambda *given: render(tokenizer, template, *given), what)
            out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids, offsets = out["input_ids"], np.array(out["offset_mapping"]).reshape(-1, 2)
            counts = np.zeros(len(ids), dtype=bool)
            for begin, end in spans:
                counts |= (offsets[:, 0] < end) & (offsets[:, 1] > begin)
    return ids, np.where(counts, ids, IGNORED).tolist()


def _assistant_spans(turns: Sequence[Turn], write: Callable[..., str], what: str) -> tuple[str, list[tuple[int, int]]]:
    """(the text, the characters [begin, end) of every assistant turn in it)"""
    text = write(turns)
    spans = []
    for number, turn in enumerate(turns):
        if turn["role"] == "assistant":
            before, after = write(turns[:number], True), write(turns[: number + 1])
            if not (text.startswith(after) and after.startswith(before)):
                raise SettingError(
                    f"the chat template writes turn {number + 1} of {what} differently when more turns follow, or not "
                    "after its generation prompt, so that the assistant's tokens cannot be told from the others; use a "
                    "template with {% generation %} marks, or rows with a single assistant turn"
                )
            spans.append((len(before), len(after)))
    return text, spans


def turn_end(tokenizer: Any, template: str, turns: Sequence[Turn], what: str) -> int | None:
    """The special token that the template writes right after an answer to the turns; None if there is none.

    what: names the row in messages. Raises SettingError for a template that omits the answer's text, as templates for
    texts with pictures may do.
    """
    with refusing(f"the chat template cannot write {what}"):
        text = render(tokenizer, template, [*turns, {"role": "assistant", "content": PROBE}])
    if PROBE not in text:
        raise SettingError(
            "the chat template omits the text of assistant turns, perhaps because it expects a list of texts and "
            "pictures; choose a model whose template takes plain texts"
        )
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    after = tokenizer(text.rpartition(PROBE)[2], add_special_tokens=False)["input_ids"]
    return next((int(number) for number in after if number in special), None)
