import numpy as np
import pytest

from analysis.load import read_runs
from analysis.plots import rank_map
from analysis.tables import tables


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("bert.encoder.layer.3.attention.self.query", ("3", "attention.self.query")),
        ("model.layers.11.mlp.up_proj", ("11", "mlp.up_proj")),
        ("encoder.block.2.layer.0.SelfAttention.q", ("2", "layer.0.SelfAttention.q")),
        ("bert.pooler.dense", ("bert.pooler.dense", "dense")),
        ("net.0", ("net.0", "0")),
    ],
)
def test_split(module, place):
    assert rank_map.split(module) == place


def test_grid_orders_layers_by_number_and_leaves_gaps():
    ranks = {"l.10.q": 1.0, "l.2.q": 2.0, "l.2.v": 3.0, "pooler.dense": 4.0}
    layers, kinds, values = rank_map.grid(ranks)
    assert layers == ["2", "10", "pooler.dense"]
    assert kinds == ["q", "v", "dense"]
    nan = np.nan
    np.testing.assert_array_equal(values, [[2, 3, nan], [1, nan, nan], [nan, nan, 4]])


def test_every_cell_shows_the_mean_over_the_seeds(quickstart):
    (table,) = tables(read_runs(quickstart))
    row = table.rows[2]
    figure = rank_map.draw(row, "adalora")
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list("012345")
    kinds = [tick.get_text() for tick in axes.get_xticklabels()]
    assert kinds[0] == "attention.self.query"
    assert len(kinds) == 6
    finals = [run.summary["rank"]["final"] for run in row.runs]
    shown = {(int(text.get_position()[1]), kinds[int(text.get_position()[0])]): text.get_text() for text in axes.texts}
    for module, first in finals[0].items():
        layer, kind = module.split(".", 4)[3:]
        assert float(shown[int(layer), kind]) == pytest.approx((first + finals[1][module]) / 2)
    assert len(shown) == 36
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("module", "layer")
    assert figure.axes[1].get_ylabel() == "final rank (triplets)"
    assert "2 seeds" in figure.get_suptitle()


def test_tick_labels_do_not_overlap(quickstart):
    (table,) = tables(read_runs(quickstart))
    figure = rank_map.draw(table.rows[2], "adalora")
    figure.draw_without_rendering()
    page = figure.bbox
    for tick in figure.axes[0].get_xticklabels():
        box = tick.get_window_extent()
        assert box.x0 >= page.x0
        assert box.y0 >= page.y0


def test_ink_contrasts_with_the_cell(quickstart):
    (table,) = tables(read_runs(quickstart))
    axes = rank_map.draw(table.rows[2], "adalora").axes[0]
    image = axes.images[0]
    for text in axes.texts:
        x, y = map(int, text.get_position())
        red, green, blue, _ = image.cmap(image.norm(image.get_array()[y, x]))
        light = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
        ink = 1.0 if text.get_color() == "white" else 0.0
        assert (max(light, ink) + 0.05) / (min(light, ink) + 0.05) > 4  # near WCAG AA for text of this size


def test_no_map_without_ranks(quickstart):
    (table,) = tables(read_runs(quickstart))
    assert rank_map.draw(table.rows[0], "full") is None
