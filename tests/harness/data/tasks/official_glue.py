"""GLUE as its download lays it out, two rows a split."""

INFERENCE = "index\tsentence1\tsentence2\tlabel\n"
MNLI = "index\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
OFFICIAL = {  # folder: (header, two rows)
    "CoLA": ("", 'gj04\t1\t\tA "quote\ngj04\t0\t*\tB two\n'),
    "MNLI": (MNLI, '0\tp\tA "quote\tA\tneutral\tneutral\n1\tp\tB two\tC\tentailment\tentailment\n'),
    "MRPC": (MRPC, '1\t11\t12\tA "quote\tA\n0\t21\t22\tB two\tC\n'),
    "QNLI": (
        INFERENCE.replace("sentence1\tsentence2", "question\tsentence"),
        '0\tA "quote\tA\tentailment\n1\tB two\tC\tnot_entailment\n',
    ),
    "QQP": (QQP, '0\t1\t2\tA "quote\tA\t1\n1\t3\t4\tB two\tC\t0\n'),
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
    "MNLI": MNLI.replace("\tlabel1\tgold_label", "") + "0\tp\tx\ty\n",
    "MRPC": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tx\ty\n",
    "QNLI": "index\tquestion\tsentence\n0\tx\ty\n",
    "QQP": "id\tquestion1\tquestion2\n0\tx\ty\n",
    "RTE": "index\tsentence1\tsentence2\n0\tx\ty\n",
    "STS-B": STSB.replace("\tscore", "") + "0\tg\tf\t2012\t1\tnone\tnone\tx\ty\n",
    "SST-2": "index\tsentence\n0\tx\n",
    "WNLI": "index\tsentence1\tsentence2\n0\tx\ty\n",
}


def write(folder):
    """All nine tasks under `folder`."""
    for name, (header, rows) in OFFICIAL.items():
        (folder / name).mkdir()
        (folder / name / "train.tsv").write_text(header + rows)
        (folder / name / "test.tsv").write_text(UNLABELLED[name])
        for dev in ("dev_matched", "dev_mismatched") if name == "MNLI" else ("dev",):
            (folder / name / f"{dev}.tsv").write_text(header + rows)
    return folder
