from analysis.load import read_runs
from analysis.plots import learning_rates
from analysis.tables import tables


def drawn(out):
    (table,) = tables(read_runs(out))
    return learning_rates.draw(table)


def test_a_line_over_the_grid_with_its_best_ringed(tmp_path, write_run):
    for lr, best in ((4e-3, 0.75), (1e-3, 0.7), (2e-3, 0.8)):
        for seed in (0, 1):
            write_run(tmp_path, "lora", seed, config={"train.lr": lr}, metric__last=best + 0.01 * seed)
    write_run(tmp_path, "full", 0)  # one rate: no curve
    axes = drawn(tmp_path).axes[0]
    (line,) = [line for line in axes.get_lines() if line.get_label() == "lora 8"]
    assert list(line.get_xdata()) == [1e-3, 2e-3, 4e-3]
    assert [round(y, 4) for y in line.get_ydata()] == [0.705, 0.805, 0.755]
    (ring,) = [line for line in axes.get_lines() if line.get_markersize() == 14]
    assert ring.get_xdata()[0] == 2e-3
    dots = [tuple(line.get_ydata()) for line in axes.get_lines() if line.get_marker() == "."]
    assert dots == [(0.7, 0.71), (0.8, 0.81), (0.75, 0.76)]
    assert axes.get_xscale() == "log"


def test_no_figure_without_a_search(quickstart):
    assert drawn(quickstart) is None
