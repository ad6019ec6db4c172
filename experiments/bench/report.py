"""Turns the committed figures of step.py and real_text.py into a Markdown table and a picture.

python experiments/bench/report.py experiments/results/step_cpu.json docs/step_cpu.png
python experiments/bench/report.py experiments/results/real_text_cpu.json docs/real_text_cpu.png
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

NAMES = {
    "floor": "frozen base, forward and backward",
    "lora": "adarank LoRA, r = 12",
    "adalora": "adarank AdaLoRA 12 → 8, allocating",
    "adalora_compacted": "adarank AdaLoRA, compacted to 8",
    "peft_adalora": "PEFT AdaLoRA 12 → 8",
    "full": "full fine-tuning",
}
COLOURS = {"encoder_6x384": "#0072B2", "encoder_12x768": "#D55E00", "decoder_6x384": "#009E73"}
MARKERS = {"encoder_6x384": "o", "encoder_12x768": "s", "decoder_6x384": "^"}

ON_TEXT = {
    "trainer_lora": "Trainer + PEFT LoRA",
    "trainer_adalora": "Trainer + PEFT AdaLoRA",
    "peft_lora": "plain loop + PEFT LoRA",
    "full": "adarank, full fine-tuning",
    "lora_one_pass": "adarank LoRA, one pass",
    "adalora_one_pass": "adarank AdaLoRA, one pass",
    "lora": "adarank LoRA",
    "adalora": "adarank AdaLoRA",
}
TASKS = {"rotten_tomatoes": "#0072B2", "sst2": "#D55E00", "rte": "#009E73"}
BATCHES = "os^D"


def table(found: dict[str, Any]) -> str:
    """Every contender's step ÷ PEFT LoRA's, and AdaLoRA's ÷ our own LoRA's and PEFT's AdaLoRA's."""
    models = found["models"]
    lines = ["| step ÷ PEFT LoRA's, r = 12 | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]

    def cell(ratio: dict[str, float]) -> str:
        return f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"

    lines += [
        f"| {NAMES[w]} | " + " | ".join(cell(m["ratios"][f"{w} / peft_lora"]) for m in models.values()) + " |"
        for w in NAMES
    ]
    for rank in (12, 8):
        bounds = [m["bound"][f"floor + products at r = {rank} / peft_lora"] for m in models.values()]
        lines.append(
            f"| lower bound: frozen base + low-rank matmuls, r = {rank} | " + " | ".join(map(cell, bounds)) + " |"
        )
    lines += ["| **AdaLoRA 12 → 8 ÷ …** |" + " |" * len(models)]
    for other, name in (("lora", "our own LoRA, r = 12"), ("peft_adalora", "PEFT's AdaLoRA")):
        lines.append(
            f"| {name} | " + " | ".join(cell(m["ratios"][f"adalora / {other}"]) for m in models.values()) + " |"
        )
    shares = [sum(m["controller"]["adalora"].values()) for m in models.values()]
    lines.append("| allocator and penalty, of the step | " + " | ".join(f"{share:.2%}" for share in shares) + " |")
    return "\n".join(lines)


def text_table(found: dict[str, Any]) -> str:
    """One row per cell: the plain loop's seconds per 100 rows, and the median ratio of every other contender to it."""
    others = {which: name for which, name in ON_TEXT.items() if which != "peft_lora"}
    heads = ["rows ÷ plain loop's time", "plain loop, s per 100 rows", *others.values()]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for cell in found["cells"]:
        ratios = (cell["ratios"].get(f"{which} / peft_lora") for which in others)
        lines.append(
            f"| {cell['task']}, {cell['batch']} rows, {cell['precision']} "
            f"| {cell['seconds_per_100_rows']['peft_lora']:.2f} | "
            + " | ".join("" if r is None else f"{r['median']:.2f}" for r in ratios)
            + " |"
        )
    return "\n".join(lines)


def draw_text(found: dict[str, Any], target: Path) -> None:
    """One panel per precision: every contender's ratio to the plain loop, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    others = [which for which in ON_TEXT if which != "peft_lora"]
    precisions = list(dict.fromkeys(c["precision"] for c in found["cells"]))
    batches = sorted({c["batch"] for c in found["cells"]})
    with matplotlib.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, panels = plt.subplots(
            1, len(precisions), figsize=(1 + 5 * len(precisions), 4.6), sharey=True, squeeze=False, layout="constrained"
        )
        for panel, precision in zip(panels[0], precisions, strict=True):
            cells = [c for c in found["cells"] if c["precision"] == precision]
            for i, cell in enumerate(cells):
                ratios = {
                    row: cell["ratios"][f"{which} / peft_lora"]
                    for row, which in enumerate(others)
                    if f"{which} / peft_lora" in cell["ratios"]
                }
                middle = [r["median"] for r in ratios.values()]
                spread = [
                    [r["median"] - r["low"] for r in ratios.values()],
                    [r["high"] - r["median"] for r in ratios.values()],
                ]
                places = [row + 0.7 * ((i + 0.5) / len(cells) - 0.5) for row in ratios]
                panel.errorbar(
                    middle, places, xerr=spread, linestyle="none", marker=BATCHES[batches.index(cell["batch"])],
                    markersize=5, capsize=2, color=TASKS[cell["task"]],
                    label=f"{cell['task'].replace('_', ' ')}, {cell['batch']} rows",
                )  # fmt: skip
            panel.axvline(1.0, color="#555555", linewidth=1)
            panel.set_title(precision, loc="left")
            panel.set_xlabel("time of the same rows ÷ plain loop + PEFT LoRA")
            panel.grid(axis="x", color="#dddddd", linewidth=0.6)
        panels[0][0].set_yticks(range(len(others)), [ON_TEXT[which] for which in others])
        panels[0][0].invert_yaxis()
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(target, dpi=140)
        plt.close(figure)


def draw(found: dict[str, Any], target: Path) -> None:
    """Medians with their intervals, with one row per contender and one mark per model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=(8.5, 4.2), layout="constrained")
        for i, (name, model) in enumerate(found["models"].items()):
            ratios = [model["ratios"][f"{which} / peft_lora"] for which in NAMES]
            middle = [r["median"] for r in ratios]
            spread = [[r["median"] - r["low"] for r in ratios], [r["high"] - r["median"] for r in ratios]]
            places = [row + 0.22 * (i - 1) for row in range(len(NAMES))]
            axes.errorbar(
                middle, places, xerr=spread, linestyle="none", marker=MARKERS.get(name, "D"), markersize=6, capsize=3,
                color=COLOURS.get(name, "#000000"), label=name.replace("_", " "),
            )  # fmt: skip
        axes.axvline(1.0, color="#555555", linewidth=1)
        axes.set_yticks(range(len(NAMES)), list(NAMES.values()))
        axes.invert_yaxis()
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_xlabel("time of a training step ÷ PEFT LoRA's (r = 12), median and 95 % interval")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(target, dpi=140)
        plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    if not options.json.is_file():
        print(
            f"error: JSON must be a file that step.py or real_text.py wrote (got {options.json}, which does not exist)",
            file=sys.stderr,
        )
        return 2
    found = json.loads(options.json.read_text(encoding="utf-8"))
    as_table, as_picture = (text_table, draw_text) if "cells" in found else (table, draw)
    print(as_table(found))
    as_picture(found, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
