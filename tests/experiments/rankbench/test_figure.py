"""The phase diagram shows every measured cell in its place, with its ratio and whether that decides anything."""

import math

import pytest

from experiments.rankbench import figure
from experiments.rankbench.measure import mean_rank
from experiments.rankbench.settings import DIAGRAM, GROUPS, NOISES, SPREADS, parse

SEEDS = ("0", "1", "2")


def cell(loss, spread=0.0, map_loss=None):
    rows = {seed: {"loss": loss * (1 + spread * i), "ranks": [1]} for i, seed in enumerate(SEEDS)}
    if map_loss is not None:
        rows = {seed: {**row, "map_loss": map_loss} for seed, row in rows.items()}
    return {"rank": 1, "budgeted": True, "rate": 0.05, "dev": {}, "seeds": rows}


def record(control=True):
    """AdaLoRA's loss ÷ its control's is budget / modules, at the second noise twice that; the control's is 2, uniform LoRA's
    1, the planted map's 0.5, and AdaLoRA's map retrained has 0.25. The largest budget is missing where all are planted."""
    found = {}
    for name, budgets in [(name, GROUPS[group].budgets) for group in DIAGRAM for name in GROUPS[group].settings]:
        setting = parse(name)
        cells = {}
        for budget in budgets:
            modules, most = len(setting.ranks), 12 if setting.base == "network" else 36
            if (modules, budget) == (most, budgets[-1]):
                continue
            ratio = budget / modules * (1 + NOISES.index(setting.noise))
            at = {"lora": cell(1.0), "oracle": cell(0.5), "adalora": cell(2 * ratio, 0, 0.25)}
            if control:
                at["adalora, allocator=uniform"] = cell(2.0, 50.0 if budget == 2 else 0.0)
            cells[str(mean_rank(setting, budget, most))] = at
        found[name] = {"modules": [], "planted": {}, "cells": cells, "skipped": {}}
    return {"settings": found}


def shown(axes):
    """{(budget, modules): text} by the axes' own labels."""
    budgets, spreads = (
        [tick.get_text() for tick in ticks] for ticks in (axes.get_xticklabels(), axes.get_yticklabels())
    )
    return {(budgets[int(t.get_position()[0])], spreads[int(t.get_position()[1])]): t for t in axes.texts}


def test_every_cell_has_its_ratio_in_its_place():
    drawn = figure.draw(record())
    panels = drawn.axes[:12]  # the network at both noises and the encoder at one
    for number, axes in enumerate(panels[::4]):
        texts, (most, budgets) = shown(axes), ((12, (0.5, 1, 4)), (12, (0.5, 1, 4)), (36, (0.5, 1)))[number]
        rows = [most] + [most // part for part in ((2, 4, 12) if most == 12 else (4, 12))]
        assert len(texts) == len(rows) * (len(budgets) + 1) - 1
        assert ("4×" if most == 12 else "2×", f"{most} of {most}") not in texts
        for budget in budgets:
            for modules in rows[1:]:
                value = budget / modules * (1 + number % 2)
                text = texts[f"{budget:g}×", f"{modules} of {most}"]
                assert text.get_text() == f"{value:.2g}"
                assert text.get_fontweight() == ("bold" if not 1 / 1.1 <= value <= 1.1 else "normal")
        assert all(text.get_text().endswith("?") for (budget, _), text in texts.items() if budget == "2×")
    assert shown(panels[1])["1×", "3 of 12"].get_text() == "0.67"
    assert {text.get_text() for text in shown(panels[2]).values()} == {"0.25"}
    assert {text.get_text() for text in shown(panels[3]).values()} == {"0.5"}


def test_the_colour_is_the_log_of_the_ratio_and_a_missing_cell_is_blank():
    axes = figure.draw(record()).axes[0]
    grid = axes.images[0].get_array().filled(math.nan)
    assert grid[SPREADS.index(3)][1] == pytest.approx(math.log2(1 / 3))
    assert math.isnan(grid[SPREADS.index(12)][3])


def test_titles_name_the_contrast_the_base_and_the_noise():
    titles = [axes.get_title().replace("\n", " ") for axes in figure.draw(record()).axes]
    assert titles[0] == f"adalora ÷ adalora with uniform ranks, network, noise {NOISES[0]:g}"
    assert titles[1] == f"adalora ÷ uniform LoRA, network, noise {NOISES[0]:g}"
    assert titles[6] == f"LoRA with adalora's final map ÷ uniform LoRA, network, noise {NOISES[1]:g}"
    assert titles[11] == f"LoRA with the planted map ÷ uniform LoRA, minilm_l6, noise {NOISES[0]:g}"


def test_without_a_control_that_panel_is_left_out():
    titles = [panel.title for panel in figure.panels(record(control=False))]
    assert len(titles) == 3 * 3
    assert titles[0] == "adalora ÷ uniform LoRA"


def test_a_method_that_was_not_measured_has_no_diagram():
    assert figure.draw(record(), "sora") is None
