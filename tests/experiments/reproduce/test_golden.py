"""The original's trajectories, recorded: ours here, the shared ones where they are."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.reproduce import golden

SHIPPED = Path(__file__).resolve().parents[2] / "golden"


def command(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["golden.py", *map(str, arguments)])
        return golden.main()


def test_the_shipped_cases_pass(tmp_path, capsys):
    assert command(SHIPPED, "--json", tmp_path / "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())["cases"]
    assert set(found) == set(golden.CASES)
    assert capsys.readouterr().out.count("pass  ") == len(found)
    for case in found.values():
        assert case["mismatches"]["schedule"] == 0
        assert case["largest_error"]["parameter"] < case["limit"]


def test_the_shared_cases_pass(shared):
    assert command(shared / "golden") == 0


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_follows_the_same_trajectory(accumulation):
    spec = json.loads((SHIPPED / "spec.json").read_text())
    for name in ("adamw", "binding_clip"):
        with np.load(SHIPPED / f"{name}.npz") as arrays:
            found = golden.check(spec, spec["cases"][name], dict(arrays), accumulation)
        assert found["passed"], found


def test_the_shipped_cases_bind_and_prune():
    """Cases that could not tell right from wrong would be no test."""
    spec = json.loads((SHIPPED / "spec.json").read_text())
    assert {case["opt"] for case in spec["cases"].values()} == {"adamw", "sgd"}
    for name, case in spec["cases"].items():
        with np.load(SHIPPED / f"{name}.npz") as arrays:
            masks = arrays["step/keep"][arrays["step/is_mask_step"].astype(bool)]
            assert masks[-1].sum() == case["target"] * len(spec["dims"])
            assert len({m.tobytes() for m in masks}) > 3
            assert not np.isnan(arrays["step/lam_after"]).any()


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("step/keep", lambda a: ~a),
        ("step/lam_after", lambda a: a + 1e-6),
        ("step/scores", lambda a: a * 1.001),
        ("step/curr_rank", lambda a: a - 1),
        ("param_after/l1.lora_B", lambda a: a + 1e-6),
    ],
)
def test_a_wrong_trajectory_fails(tmp_path, key, change, capsys):
    spec = json.loads((SHIPPED / "spec.json").read_text())
    with np.load(SHIPPED / "adamw.npz") as arrays:
        np.savez(tmp_path / "adamw.npz", **{**arrays, key: change(arrays[key])})
    (tmp_path / "spec.json").write_text(json.dumps({**spec, "cases": {"adamw": spec["cases"]["adamw"]}}))
    assert command(tmp_path) == 1
    assert capsys.readouterr().out.startswith("FAIL  adamw")


def test_the_reference_reproduces_what_is_shipped(tmp_path):
    golden.make(tmp_path)
    for name in golden.CASES:
        with np.load(SHIPPED / f"{name}.npz") as shipped, np.load(tmp_path / f"{name}.npz") as again:
            assert shipped.files == again.files
            for key in shipped.files:
                np.testing.assert_allclose(shipped[key], again[key], rtol=1e-5, atol=1e-7, err_msg=key)


def test_a_folder_without_cases_is_one_sentence_and_status_2(tmp_path, capsys):
    assert command(tmp_path) == 2
    assert "must hold a spec.json" in capsys.readouterr().err
