import pytest

from adarank.errors import SettingError
from adarank.harness.tasks.glue import SOURCES, glue

INFERENCE = "index\tsentence1\tsentence2\tlabel\n"
MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
OFFICIAL = {  # folder: (header, two rows), as GLUE's download has them
    "CoLA": ("", 'gj04\t1\t\tA "quote\ngj04\t0\t*\tB two\n'),
    "MRPC": (MRPC, '1\t11\t12\tA "quote\tA\n0\t21\t22\tB two\tC\n'),
    "RTE": (INFERENCE, '0\tA "quote\tA\tentailment\n1\tB two\tC\tnot_entailment\n'),
    "STS-B": (
        STSB,
        '0\tg\tf\t2012\t1\tnone\tnone\tA "quote\tA\t5.000\n1\tg\tf\t2012\t2\tnone\tnone\tB two\tC\t0.250\n',
    ),
    "SST-2": ("sentence\tlabel\n", 'A "quote\t1\nB two\t0\n'),
    "WNLI": (INFERENCE, '0\tA "quote\tA\t1\n1\tB two\tC\t0\n'),
}
UNLABELLED = {
    "CoLA": "index\tsentence\n0\tx\n",
    "MRPC": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tx\ty\n",
    "RTE": "index\tsentence1\tsentence2\n0\tx\ty\n",
    "STS-B": STSB.replace("\tscore", "") + "0\tg\tf\t2012\t1\tnone\tnone\tx\ty\n",
    "SST-2": "index\tsentence\n0\tx\n",
    "WNLI": "index\tsentence1\tsentence2\n0\tx\ty\n",
}


@pytest.fixture
def official(tmp_path):
    for name, (header, rows) in OFFICIAL.items():
        (tmp_path / name).mkdir()
        for split in ("train", "dev"):
            (tmp_path / name / f"{split}.tsv").write_text(header + rows)
        (tmp_path / name / "test.tsv").write_text(UNLABELLED[name])
    return tmp_path


@pytest.mark.parametrize("name", SOURCES)
def test_the_official_layout(official, name):
    task = glue(name, path=str(official), max_length=99)
    assert task.train.text == ['A "quote', "B two"]
    assert task.train.pair == (None if name in ("cola", "sst2") else ["A", "C"])
    labels = {"stsb": [5.0, 0.25], "rte": [0, 1]}
    assert task.train.label.tolist() == labels.get(name, [1, 0])
    assert task.test is None
    assert (task.name, task.max_length, task.metrics) == (name, 99, SOURCES[name].metrics)
    own = glue(name, path=str(official / SOURCES[name].folder), max_length=99)
    assert own.fingerprint == task.fingerprint


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


@pytest.mark.parametrize("name", SOURCES)
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
        f"task.path={official} holds no CoLA; valid: CoLA/train.tsv and CoLA/dev.tsv, or CoLA/in_domain_train.tsv and "
        "CoLA/in_domain_dev.tsv and CoLA/out_of_domain_dev.tsv (CoLA: it holds: test.tsv, train.tsv)"
    )
    with pytest.raises(SettingError, match=r"^task\.path=/nowhere is not there"):
        glue("cola", path="/nowhere")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train.tsv", "", "train.tsv (task.path={d}) has no rows"),
        ("train.tsv", "a\tb\nx\t1\n", "train.tsv (task.path={d}) has no sentence; valid: sentence and label"),
        ("dev.tsv", "sentence\tlabel\nx\t3\n", "dev.tsv (task.path={d}): the label 3 (row 1) does not occur in train"),
        ("dev.tsv", "sentence\tlabel\nx\n", "dev.tsv (task.path={d}): row 1 has 1 fields, the header has 2"),
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
    assert message.endswith("valid: task.path=FOLDER with RTE/train.tsv and RTE/dev.tsv")
    assert "\n" not in message


def test_limits_are_checked_before_anything_is_read():
    with pytest.raises(SettingError, match=r"task\.limit=-1"):
        glue("rte", limit=-1)
