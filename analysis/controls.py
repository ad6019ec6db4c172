"""Is it where the rank went? An adaptive method against itself with the same rank everywhere."""

from analysis.tables import Table
from analysis.verdicts import Verdict, between

TITLE = "Against the uniform control: the same method and budget, the same rank everywhere"
CONTROL = "uniform"


def verdicts(table: Table) -> list[Verdict]:
    """Every tuned row against the tuned row of its method and ranks whose allocator is the uniform one; none without such
    rows. Maps are left to their own comparison."""
    controls = {(row.method, row.asked): row for row in table.tuned if row.settings.get("allocator") == CONTROL}
    pairs = [
        (row, controls[row.method, row.asked])
        for row in table.tuned
        if row.settings.get("allocator") not in (CONTROL, "rank_map") and (row.method, row.asked) in controls
    ]
    return between(table, pairs)
