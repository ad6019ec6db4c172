"""Where GLUE's tasks (Wang et al. 2019, arXiv 1804.07461) lie in a folder and on the hub, and what each reports."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Layout:
    """How a folder names its files, and their columns. Columns called `column N` mean: no header.

    test: used where it is there and has labels (GLUE's own test files mostly have none); torn: rows that a line break
    inside a text has torn apart are left out, as everyone leaves them out of QQP.
    """

    train: str
    dev: tuple[str, ...]
    test: str | None
    text: str
    pair: str | None
    label: str
    torn: bool = False


@dataclass(frozen=True)
class Source:
    """folder: as GLUE's download calls it; layouts: the official one, then that of the source repositories; order: the
    classes in the hub's order where it is not the sorted one."""

    folder: str
    metrics: tuple[str, ...]
    layouts: tuple[Layout, ...]
    hub_columns: tuple[str, str | None, str]
    hub_dev: str = "validation"
    hub_test: str | None = None
    order: tuple[str, ...] | None = None


_INFERENCE = Layout("train.tsv", ("dev.tsv",), "test.tsv", "sentence1", "sentence2", "label")
_COLA = Layout("train.tsv", ("dev.tsv",), None, "column 4", None, "column 2")
_MNLI = Layout("train.tsv", ("dev_matched.tsv",), "dev_mismatched.tsv", "sentence1", "sentence2", "gold_label")
_MRPC = Layout("train.tsv", ("dev.tsv",), "msr_paraphrase_test.txt", "#1 String", "#2 String", "Quality")
_STSB = Layout("train.tsv", ("dev.tsv",), "test.tsv", "sentence1", "sentence2", "score")
_QQP = Layout("train.tsv", ("dev.tsv",), "test.tsv", "question1", "question2", "is_duplicate", torn=True)
SOURCES = {
    "cola": Source(
        "CoLA",
        ("matthews", "accuracy"),
        (_COLA, replace(_COLA, train="in_domain_train.tsv", dev=("in_domain_dev.tsv", "out_of_domain_dev.tsv"))),
        ("sentence", None, "label"),
    ),
    "mnli": Source(
        "MNLI",
        ("accuracy",),
        (_MNLI,),
        ("premise", "hypothesis", "label"),
        hub_dev="validation_matched",
        hub_test="validation_mismatched",
        order=("entailment", "neutral", "contradiction"),
    ),
    "mrpc": Source(
        "MRPC",
        ("accuracy", "f1"),
        (_MRPC, replace(_MRPC, train="msr-para-train.tsv", dev=("msr-para-val.tsv",), test="msr-para-test.tsv")),
        ("sentence1", "sentence2", "label"),
        hub_test="test",
    ),
    "qnli": Source(
        "QNLI",
        ("accuracy",),
        (replace(_INFERENCE, text="question", pair="sentence"),),
        ("question", "sentence", "label"),
    ),
    "qqp": Source("QQP", ("accuracy", "f1"), (_QQP,), ("question1", "question2", "label")),
    "rte": Source("RTE", ("accuracy",), (_INFERENCE,), ("sentence1", "sentence2", "label")),
    "stsb": Source(
        "STS-B",
        ("pearson_spearman", "pearson", "spearman"),
        (_STSB, Layout("sts-train.csv", ("sts-dev.csv",), "sts-test.csv", "column 6", "column 7", "column 5")),
        ("sentence1", "sentence2", "label"),
    ),
    "sst2": Source(
        "SST-2",
        ("accuracy",),
        (Layout("train.tsv", ("dev.tsv",), "test.tsv", "sentence", None, "label"),),
        ("sentence", None, "label"),
    ),
    "wnli": Source("WNLI", ("accuracy",), (_INFERENCE,), ("sentence1", "sentence2", "label")),
}
