import numpy as np
import pytest

from analysis.rank_picture import EIGHTHS, NONE, draw

KINDS = ["query", "key", "attention.output"]
RANKS = np.array([[8.0, 4.0, 0.0], [1.0, 0.2, 8.0], [2.0, np.nan, 6.0]])


def test_every_module_has_a_bar_in_eighths_of_the_largest_rank():
    assert draw(KINDS, ["0", "1", "2"], RANKS, 60) == [
        "                  0   1   2    mean",
        "query             ███ ▄▄▄ ···     4",
        "key               ▁▁▁ ▁▁▁ ███   3.1",
        "attention.output  ▂▂▂     ▆▆▆     4",
    ]


@pytest.mark.parametrize("width", [30, 40, 60, 200])
@pytest.mark.parametrize("blocks", [1, 6, 32, 100])
def test_every_block_is_drawn_in_order_at_every_width(width, blocks):
    ranks = np.arange(2.0 * blocks).reshape(2, blocks) % 9
    lines = draw(["query", "a.long.name.of.a.kind.of.module"], [str(i) for i in range(blocks)], ranks, width)
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if line.startswith("query")]
    bars = "".join(letter for row in rows for letter in row if letter in EIGHTHS + NONE)
    size = len(bars) // blocks
    assert size in (1, 2, 3)
    eighths = [max(1, round(8 * rank / ranks.max())) for rank in ranks[0]]
    assert bars[::size] == "".join(EIGHTHS[n - 1] if rank else NONE for n, rank in zip(eighths, ranks[0], strict=True))
    assert sum("mean" in line for line in lines) == 1


def test_the_header_numbers_the_blocks_of_each_line():
    lines = draw(["q"], [str(i) for i in range(60)], np.ones((1, 60)), 40)
    heads = [line.split() for line in lines if not line.startswith("q")]
    assert heads[0][0] == "0"
    assert heads[-1][-2:] == ["59", "mean"]
    assert int(heads[1][0]) == int(heads[0][1]) + 1


def test_a_map_without_any_rank_is_drawn():
    assert draw(["q"], ["0"], np.zeros((1, 1)), 40)[1] == "q  ···     0"
