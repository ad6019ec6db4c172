import numpy as np

from adarank.harness.tracking.heatmap import rank_grid, rank_heatmap


def test_layers_are_rows_in_numeric_order_and_modules_are_columns():
    ranks = {f"encoder.layer.{n}.{m}": 10 * n + k for n in (10, 2, 0) for k, m in enumerate(("att.query", "att.value"))}
    rows, columns, grid = rank_grid(ranks)
    assert rows == ["0", "2", "10"]
    assert columns == ["att.query", "att.value"]
    np.testing.assert_array_equal(grid, [[0, 1], [20, 21], [100, 101]])


def test_two_stacks_do_not_fall_on_one_another():
    ranks = {"encoder.block.0.q": 1, "decoder.block.0.q": 2, "decoder.block.1.cross.q": 3}
    rows, columns, grid = rank_grid(ranks)
    assert rows == ["decoder.block.0", "decoder.block.1", "encoder.block.0"]
    assert columns == ["q", "cross.q"]
    np.testing.assert_array_equal(grid, [[2, np.nan], [np.nan, 3], [1, np.nan]])


def test_a_module_without_a_layer_and_a_layer_that_is_the_module():
    rows, columns, grid = rank_grid({"pooler.dense": 5, "layers.1": 7, "layers.0": 6})
    assert rows == ["0", "1", "none"]
    assert columns == ["pooler.dense", "layers"]
    np.testing.assert_array_equal(grid, [[np.nan, 6], [np.nan, 7], [5, np.nan]])


def test_the_picture_follows_the_ranks():
    same = rank_heatmap({"layer.0.q": 4, "layer.1.q": 8}, highest=12, title="t")
    other = rank_heatmap({"layer.0.q": 8, "layer.1.q": 4}, highest=12, title="t")
    assert same.dtype == np.uint8
    assert same.ndim == 3
    assert same.shape[2] == 4
    assert same.shape == other.shape
    assert (same != other).any()
