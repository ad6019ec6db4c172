"""What every triplet of a finished run is worth: the rise of the dev loss without it, beside what each score says.

    python experiments/probe.py runs/demo/adalora-3bedfa94ae-s0

Writes probe.json into the run's folder; `analysis/report.py` shows rank correlation and top-b overlap of every score.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adarank.errors import RunFailed, SettingError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run of a low-rank method")
    parser.add_argument("--rows", type=int, default=256, help="rows of dev, the first ones (256)")
    parser.add_argument("--passes", type=int, default=20, help="training batches for the scores that look at data (20)")
    options = parser.parse_args()
    try:
        path = probe(options.run, options.rows, options.passes)
    except (SettingError, RunFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunFailed) else 2
    print(path)
    return 0


def probe(folder: Path, rows: int, passes: int) -> Path:
    """Write FOLDER/probe.json and return its path. Raises SettingError for a folder that holds no such run."""
    from dataclasses import replace

    import torch

    import adarank
    from adarank.harness.data import encode
    from adarank.harness.files import write_json
    from adarank.harness.measure import choose_device
    from adarank.harness.prepare import configured
    from adarank.harness.worth import rises, scores_at_the_end

    if rows < 1 or passes < 1:
        raise SettingError(f"rows={rows} passes={passes} measure nothing; valid: whole numbers of at least 1")
    settings = _settings(folder)
    device = choose_device()
    task, base = configured(settings["task"]), configured(settings["model"])
    if task.kind != "classify":
        raise SettingError(
            f"{folder} is a run on {task.name}, whose kind of task is {task.kind}; valid: classification"
        )
    torch.manual_seed(settings["seed"])
    built = base.build(max(len(task.labels), 1))
    configured(settings["quantization"], model=built.model, device=device, precision=settings["train"]["precision"])
    adapters = adarank.load_adapter(built.model, folder / "adapter")
    if not adarank.ranks(built.model):
        raise SettingError(f"{folder} is a run without triplets; valid: a finished run of a low-rank method")
    dev, train = (encode(split, built.tokenizer, task.max_length) for split in (task.dev, task.train))
    few = {name: tokens[:rows] for name, tokens in dev.tokens.items()}
    dev = replace(dev, tokens=few, label=dev.label[:rows])
    model, batch = built.model.to(device), settings["train"]["batch_size"]
    loss, rise = rises(model, adapters, dev, batch)
    scores = scores_at_the_end(model, adapters, train, batch, passes, settings["seed"])
    counts = [adapter.rank for adapter in adapters.values()]
    modules = dict(zip(adapters, counts, strict=True))
    head = {"split": "dev", "rows": len(dev), "passes": passes, "loss": loss, "modules": modules}
    found = {**head, "rise": rise, "scores": scores}
    write_json(folder / "probe.json", found)
    return folder / "probe.json"


def _settings(folder: Path) -> dict[str, Any]:
    import yaml

    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        settings: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        raise SettingError(f"{folder} holds no finished run; valid: a run's folder") from None
    if summary.get("status") != "finished" or not (folder / "adapter" / "adapter.json").is_file():
        raise SettingError(f"{folder} holds no finished run with an adapter; valid: that of a low-rank method")
    return settings


if __name__ == "__main__":
    sys.exit(main())
