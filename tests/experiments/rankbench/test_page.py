"""docs/rankbench.md says what the committed result says."""

import re
from pathlib import Path

from experiments.rankbench import read, run
from experiments.rankbench.settings import parse

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "rankbench.md").read_text(encoding="utf-8")
RECORD = run.opened(run.RESULTS, None)
PLANTED = "network,ranks=4x2+2x2"


def test_the_tables_are_those_of_the_committed_result():
    _, between, _ = PAGE.split(read.MARKER)
    titles = re.findall(r"\*\*(\S+): (\d+) triplets", between)
    tables = [
        read.table(RECORD, name, int(budget) // len(RECORD["settings"][name]["modules"])) for name, budget in titles
    ]
    assert between.strip() == "\n".join(tables).strip()
    assert PLANTED in dict(titles)


def test_every_case_of_the_committed_result_was_tuned_by_the_rule_of_today():
    for setting in RECORD["settings"].values():
        for cells in setting["cells"].values():
            for case, cell in cells.items():
                devs = {float(lr): dev for lr, dev in cell["dev"].items() if dev is not None}
                assert cell["rate"] == min(lr for lr, dev in devs.items() if dev <= 1.1 * min(devs.values())), case


def test_every_planted_module_holds_what_its_setting_says():
    for name, setting in RECORD["settings"].items():
        for ranks in setting["planted"].values():
            assert tuple(sorted(filter(None, ranks), reverse=True)) == parse(name).ranks


def test_the_result_is_small_enough_to_be_committed():
    assert run.RESULTS.stat().st_size < 300_000
