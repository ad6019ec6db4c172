import pytest

from adarank.errors import SettingError
from adarank.harness.data.tasks import glue as module
from adarank.harness.data.tasks import hub
from adarank.harness.data.tasks.glue import SOURCES, glue
from tests.harness.data.tasks.official_glue import MRPC, OFFICIAL, write


@pytest.fixture
def official(tmp_path):
    return write(tmp_path)


@pytest.mark.parametrize("name", SOURCES)
def test_the_official_layout(official, name):
    task = glue(name, path=str(official), max_length=99)
    assert task.train.text == ['A "quote', "B two"]
    assert task.train.pair == (None if name in ("cola", "sst2") else ["A", "C"])
    labels = {"stsb": [5.0, 0.25], "rte": [0, 1], "qnli": [0, 1]}
    assert task.train.label.tolist() == labels.get(name, [1, 0])
    assert (task.test is None) == (name != "mnli")
    assert (task.name, task.max_length, task.metrics) == (name, 99, SOURCES[name].metrics)
    own = glue(name, path=str(official / SOURCES[name].folder), max_length=99)
    assert own.fingerprint == task.fingerprint


def test_there_are_the_nine_tasks(official):
    assert {source.folder for source in SOURCES.values()} == set(OFFICIAL)
    assert len(SOURCES) == 9


def test_mnli_s_test_is_its_mismatched_dev_and_its_classes_are_in_the_hub_s_order(official):
    header, _ = OFFICIAL["MNLI"]
    for file, text in {"dev_matched": "matched", "dev_mismatched": "mismatched"}.items():
        (official / "MNLI" / f"{file}.tsv").write_text(f"{header}0\tp\t{text}\tC\tneutral\tcontradiction\n")
    with (official / "MNLI" / "train.tsv").open("a") as train:
        train.write("2\tp\tD\tE\tneutral\tcontradiction\n")
    task = glue("mnli", path=str(official))
    assert task.labels == ("entailment", "neutral", "contradiction")
    assert task.train.label.tolist() == [1, 0, 2]
    assert task.test is not None
    assert (task.dev.text, task.test.text) == (["matched"], ["mismatched"])
    assert task.dev.label.tolist() == task.test.label.tolist() == [2]


def test_mnli_of_the_hub_is_that_of_the_files(official, monkeypatch):
    datasets = pytest.importorskip("datasets")
    names = ["entailment", "neutral", "contradiction"]
    kinds = {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string")}
    features = datasets.Features({**kinds, "label": datasets.ClassLabel(names=names)})
    rows = {"premise": ['A "quote', "B two"], "hypothesis": ["A", "C"], "label": [1, 0]}
    found = datasets.Dataset.from_dict(rows, features=features)
    asked = []
    splits = dict.fromkeys(("train", "validation_matched", "validation_mismatched"), found)
    monkeypatch.setattr(hub, "download", lambda *given: asked.append(given[:3]) or splits)
    task = glue("mnli")
    assert asked == [("nyu-mll/glue", "mnli", module.REPOSITORY[1])]
    local = glue("mnli", path=str(official))
    assert (task.fingerprint, task.labels) == (local.fingerprint, local.labels)
    assert task.labels == ("entailment", "neutral")  # those that occur


def test_qqp_s_torn_rows_are_left_out_and_those_of_others_refused(official):
    torn = "7\t8\t9\tthe first half\nand the second?\tC\t1\n"
    for name in ("QQP", "RTE"):
        with (official / name / "train.tsv").open("a") as train:
            train.write(torn)
    assert glue("qqp", path=str(official)).train.text == ['A "quote', "B two"]
    with pytest.raises(SettingError, match=r"^train\.tsv .*row 4 has 3 fields, but the header has 4"):
        glue("rte", path=str(official))


def test_labelled_test_rows_are_used(official):
    (official / "SST-2" / "test.tsv").write_text("sentence\tlabel\nx\t1\n")
    (official / "MRPC" / "msr_paraphrase_test.txt").write_text("\ufeff" + MRPC + "1\t1\t2\tx\ty\n")
    for name in ("sst2", "mrpc"):
        task = glue(name, path=str(official))
        assert task.test is not None
        assert (task.test.text, task.test.label.tolist()) == (["x"], [1])


COUNTS = {
    "cola": (8551, 1043, None),
    "mrpc": (3576, 500, 1725),
    "rte": (2490, 277, None),
    "stsb": (5749, 1500, 1379),
    "sst2": (60614, 6735, 872),
    "wnli": (518, 71, None),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_layout_of_the_source_repositories(shared, name):
    task = glue(name, path=str(shared / "data"))
    assert (len(task.train), len(task.dev), task.test and len(task.test)) == COUNTS[name]
    assert len(task.labels) == (0 if name == "stsb" else 2)
    if name == "mrpc":
        assert task.train.pair is not None
        assert (
            task.train.text[0]
            == 'Amrozi accused his brother, whom he called "the witness", of deliberately distorting his evidence.'
        )
        assert task.train.pair[0].startswith('Referring to him as only "the witness", Amrozi')
    if name == "stsb":
        assert (task.train.label.min(), task.train.label.max()) == (0.0, 5.0)
        assert (task.train.text[1], task.train.label[1]) == ("A man is playing a large flute.", pytest.approx(3.8))
    if name == "cola":  # in-domain first, then out of domain
        assert (task.dev.text[0], task.dev.text[527]) == (
            "The sailors rode the breeze clear of the rocks.",
            "Somebody just left - guess who.",
        )


def test_a_folder_without_the_task_says_what_was_looked_for(official):
    (official / "CoLA" / "dev.tsv").unlink()
    with pytest.raises(SettingError) as error:
        glue("cola", path=str(official))
    assert str(error.value) == (
        f"task.path={official} holds no CoLA; it must hold CoLA/train.tsv and CoLA/dev.tsv, or "
        "CoLA/in_domain_train.tsv and "
        "CoLA/in_domain_dev.tsv and CoLA/out_of_domain_dev.tsv (CoLA: it holds test.tsv, train.tsv)"
    )
    with pytest.raises(SettingError, match=r"^task\.path must be a folder .*/nowhere does not exist"):
        glue("cola", path="/nowhere")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train.tsv", "", "train.tsv (task.path={d}) has no rows"),
        ("train.tsv", "a\tb\nx\t1\n", "train.tsv (task.path={d}) has no column sentence; its columns are a, b"),
        ("dev.tsv", "sentence\tlabel\nx\t3\n", "dev.tsv (task.path={d}): the label 3 of row 1 does not occur in train"),
        ("dev.tsv", "sentence\tlabel\nx\n", "dev.tsv (task.path={d}): row 1 has 1 fields, but the header has 2"),
        ("test.tsv", "sentence\tlabel\n", "test.tsv (task.path={d}) has no rows"),
    ],
)
def test_files_that_are_not_glues(official, file, text, message):
    (official / "SST-2" / file).write_text(text)
    with pytest.raises(SettingError) as error:
        glue("sst2", path=str(official))
    assert str(error.value).startswith(message.format(d=official))


def test_without_a_path_and_without_the_hub_it_says_what_to_do(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(SettingError) as error:
        glue("rte")
    message = str(error.value)
    assert message.startswith("task=rte without task.path: nyu-mll/glue (config rte) could not be loaded (")
    assert message.endswith("use task.path=FOLDER with RTE/train.tsv and RTE/dev.tsv")
    assert "\n" not in message


def test_limits_are_checked_before_anything_is_read():
    with pytest.raises(SettingError, match=r"task\.limit must be at least 1.*got -1"):
        glue("rte", limit=-1)
