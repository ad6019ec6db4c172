"""A small study, and a stand-in for experiments/run.py that leaves finished runs without training."""

import copy
import hashlib
import threading
from pathlib import Path
from types import SimpleNamespace

import yaml

from adarank.runs.files import write_json

STUDY = {
    "settings": {"tiny": True, "holdout": 0.25},
    "tasks": {"t": {"settings": {"task": "t"}, "adaptive": {"schedule.t_i": 0.1}}},
    "budgets": [2, 8],
    "tuning": [100, 101],
    "seeds": [0, 1],
    "methods": {
        "full": {"settings": {"method": "full"}, "ranked": False, "rates": [1e-4, 1e-3, 1e-2]},
        "lora": {"settings": {"method": "lora"}, "rates": [1e-3, 1e-2, 1e-1]},
        "high": {"settings": {"method": "lora"}, "times": 1.5, "tuned_as": "lora"},
        "adalora": {"settings": {"method": "adalora"}, "adaptive": True, "rates": [1e-3, 1e-2, 1e-1]},
        "map": {"settings": {"method": "adalora"}, "map_of": "adalora", "tuned_as": "adalora"},
    },
}
CLAIMS = {
    "margins": {"t": 0.02},
    "contrasts": [
        {"name": "rank", "of": "adalora", "against": "lora"},
        {"name": "map", "of": "map", "against": "high"},
    ],
    "assay": {"of": "lora@8", "against": "lora@2"},
}


def study(claims=None, **parts):
    """The small study, with other parts; claims: what CLAIMS says otherwise (None: the study declares nothing)."""
    declared = {} if claims is None else {"claims": {**copy.deepcopy(CLAIMS), **claims}}
    return {**copy.deepcopy(STUDY), **declared, **parts}


def methods(**changes):
    """The methods of the small study with changes of some."""
    return {name: {**method, **changes.get(name, {})} for name, method in STUDY["methods"].items()}


class Runner:
    """Stands in for subprocess: `run` leaves the folders of finished runs, as experiments/run.py does.

    value(settings, rate, seed) is the metric on dev and test; `calls` are (stage, arm, rates, seeds, settings),
    `trained` the number of runs that were new. before: called before each command; state(settings, rate, seed): how a
    run ends; threads: the values of OMP_NUM_THREADS that commands got."""

    def __init__(self, value=lambda settings, rate, seed: -abs(rate - 1e-2)):
        self.value, self.calls, self.trained, self.before = value, [], 0, lambda: None
        self.threads, self.lock = set(), threading.Lock()
        self.state = lambda settings, rate, seed: "finished"

    def run(self, command, env):
        self.threads.add(env.get("OMP_NUM_THREADS"))
        self.before()
        settings = dict(word.split("=", 1) for word in command[3:])
        out, arm = Path(settings.pop("out").strip("'")), settings.pop("arm").strip("'")
        rates = [float(rate) for rate in settings.pop("train.lr").split(",")]
        seeds = [int(seed) for seed in settings.pop("seed").split(",")]
        self.calls.append((out.parent.parent.name, arm, rates, seeds, settings))
        ends = {self.leave(out, arm, rate, seed, settings) for rate in rates for seed in seeds}
        return SimpleNamespace(returncode=0 if ends == {"finished"} else 1)

    def leave(self, out, arm, rate, seed, settings):
        decides = {key: value for key, value in settings.items() if not key.startswith("hydra/")}
        decisive = {key: value.rpartition("/")[2] for key, value in decides.items()}  # a source by its name
        identity = hashlib.sha256(repr((sorted(decisive.items()), rate)).encode()).hexdigest()[:10]
        folder = out / f"{settings['method']}-{identity}-s{seed}"
        state = self.state({**settings, "arm": arm}, rate, seed)
        with self.lock:  # as a run's own lock
            if folder.exists():
                return state
            folder.mkdir(parents=True)
            self.trained += 1
        rank = int(settings.get("rank", 8))
        if source := settings.get("ranks_from"):
            rank = yaml.safe_load((Path(source.strip("'")) / "config.yaml").read_text())["rank"]
        plain = {key: yaml.safe_load(value) for key, value in settings.items() if key in ("holdout", "tiny")}
        config = {**plain, "method": settings["method"], "arm": arm, "rank": rank, "train": {"lr": rate}, "seed": seed}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        value = self.value({**settings, "arm": arm}, rate, seed)
        tested = {} if settings.get("test") == "false" else {"test": value, "test_last": value}
        metric = {"name": "accuracy", "higher_is_better": True, "best": value, "last": value, **tested}
        time = {"train_s": 60.0, "eval_s": 30.0}
        about = {"method": settings["method"], "model": "m", "task": settings["task"], "targets": "all", "seed": seed}
        summary = {**about, "status": state, "steps": 1, "arm": arm, "metric": metric, "time": time}
        write_json(folder / "summary.json", summary)
        write_json(folder / "status.json", {"state": state})
        return state
