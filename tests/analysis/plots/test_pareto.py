import pytest

from analysis.load import read_runs
from analysis.plots import pareto
from analysis.tables import tables


def drawn(out):
    (table,) = tables(read_runs(out))
    return table, pareto.draw(table, pareto.COSTS["parameters"])


def legend_of(figure):
    return {text.get_text(): handle for text, handle in zip(
        figure.legends[0].get_texts(), figure.legends[0].legend_handles, strict=True)}  # fmt: skip


@pytest.mark.parametrize("seeds", [2, 6])
def test_points_bars_and_names(tmp_path, write_quickstart, seeds):
    table, figure = drawn(write_quickstart(tmp_path / "runs", seeds=seeds))
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "parameters kept beyond the frozen base (log scale)"
    assert axes.get_ylabel() == "accuracy on test, mean and 95% t interval"
    names = legend_of(figure)
    assert set(names) == {"Pareto front", *table.labels.values()}
    seen = {tuple(line.get_xydata()[:, 1]) for line in axes.get_lines()}
    low, high = axes.get_ylim()
    for row, bars in zip(table.rows, axes.containers, strict=True):
        (point,) = bars.lines[0].get_xydata()
        assert tuple(point) == (row.kept, row.mean)
        assert bars.get_label() == table.labels[row]
        assert tuple(row.scores.values()) in seen
        assert all(low < score < high for score in row.scores.values())
        ends = [row.mean - row.half_width, row.mean + row.half_width]
        fits = low <= ends[0] and ends[1] <= high
        assert bars.has_yerr == fits  # an interval of two seeds is wider than the frame
        if fits:
            (segment,) = bars.lines[2][0].get_segments()
            assert segment[:, 1] == pytest.approx(ends)


def test_one_seed_has_no_bar(tmp_path, write_quickstart):
    _, figure = drawn(write_quickstart(tmp_path / "runs", seeds=1))
    assert not figure.axes[0].collections


def test_up_to_sixteen_points_have_names_and_looks_of_their_own_and_more_those_of_their_kind(
    tmp_path, write_quickstart
):
    def looks(figure):
        bars = figure.axes[0].containers
        return {(line.get_color(), line.get_marker()) for line in (bar.lines[0] for bar in bars)}

    table, figure = drawn(write_quickstart(tmp_path / "few", seeds=1, ranks=(2, 4, 8, 16)))
    assert len(looks(figure)) == len(table.rows) == 9
    assert set(legend_of(figure)) == {"Pareto front", *table.labels.values()}
    table, figure = drawn(write_quickstart(tmp_path / "many", seeds=1, ranks=range(2, 10)))
    assert len(figure.axes[0].containers) == len(table.rows) == 17
    assert len(looks(figure)) == 3
    assert set(legend_of(figure)) == {"Pareto front", "full", "lora", "adalora"}


@pytest.mark.parametrize("long", [False, True])
def test_the_legend_covers_nothing_and_nothing_of_it_is_cut(tmp_path, write_run, long):
    """Coincident points are the worst case for names beside them; names below them cannot collide with them."""
    for i, method in enumerate(("lora", "adalora", "sora", "uniform", "random")):
        for seed in range(2):
            parameters = {"total": 10**7, "trainable": 10**5, "adapter": 10**5, "kept": 10**5}
            name = f"{method}_with_a_name_that_is_far_too_long_for_one_column_of_a_legend_{i}" if long else method
            write_run(tmp_path, name, seed, metric__test=0.7 + 0.01 * seed, parameters=parameters)
    _, figure = drawn(tmp_path)
    figure.draw_without_rendering()
    box, frame = figure.legends[0].get_window_extent(), figure.bbox
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= frame.width
    assert box.y1 <= figure.axes[0].get_tightbbox().y0 + 1
    texts = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    assert not any(text.count_overlaps(texts[:i]) for i, text in enumerate(texts))


def test_nothing_to_draw_without_counts(tmp_path, write_run):
    write_run(tmp_path, "lora", 0, parameters=None)
    assert drawn(tmp_path)[1] is None


def test_a_dollar_in_a_setting_is_drawn_as_it_is(tmp_path, write_run):
    for name in ("a$b$", r"c$\frac$"):
        write_run(tmp_path, "lora", 0, config={"task_path": name})
    _, figure = drawn(tmp_path)
    assert [name.count(r"\$") for name in legend_of(figure) if "lora" in name] == [2, 2]


def test_the_front_is_what_nothing_beats_at_its_cost():
    points = [(1, 0.5), (2, 0.4), (3, 0.7), (3, 0.6), (4, 0.7), (9, 0.9)]
    assert pareto.front(points, higher_is_better=True) == [(1, 0.5), (3, 0.7), (9, 0.9)]
    assert pareto.front(points, higher_is_better=False) == [(1, 0.5), (2, 0.4)]


@pytest.mark.parametrize(("name", "value"), [("time", "step_ms"), ("memory", "peak_mib")])
def test_time_and_memory_are_drawn_where_one_device_measured_them(quickstart, write_run, name, value):
    (table,) = tables(read_runs(quickstart))
    axes = pareto.draw(table, pareto.COSTS[name]).axes[0]
    points = [tuple(bars.lines[0].get_xydata()[0]) for bars in axes.containers]
    assert points == [(getattr(row, value), row.mean) for row in table.rows]
    (line,) = [line for line in axes.get_lines() if line.get_label() == "Pareto front"]
    best = max(row.mean for row in table.rows)
    assert line.get_ydata()[-1] == best
    write_run(quickstart, "sora", 0, device="cuda")
    (table,) = tables(read_runs(quickstart))
    assert pareto.draw(table, pareto.COSTS[name]) is None
    assert pareto.draw(table, pareto.COSTS["parameters"]) is not None


def test_ranks_of_a_method_are_joined_and_trials_of_a_rate_left_out(tmp_path, write_quickstart, write_run):
    out = write_quickstart(tmp_path / "runs", seeds=1, ranks=(2, 4, 8))
    write_run(out, "lora", 0, 8, config={"train.lr": 1.0}, metric__best=0.0)
    table, figure = drawn(out)
    assert len(figure.axes[0].containers) == len(table.rows) - 1
    joined = [line for line in figure.axes[0].get_lines() if line.get_linewidth() == 0.9]
    expected = [[row for row in table.tuned if row.method == method] for method in ("full", "lora", "adalora")]
    for line, rows in zip(joined, expected, strict=True):
        assert line.get_xydata().tolist() == [[row.kept, row.mean] for row in rows]


@pytest.fixture
def methods(tmp_path, write_run):
    """Ten methods of two seeds at one cost, another far cheaper and worse."""
    for place, method in enumerate(("lora", *"abcdefghi")):
        for seed in (0, 1):
            write_run(tmp_path, method, seed, metric__test=0.7 + 0.01 * place + 0.001 * seed, rank=None,
                      parameters={"total": 10**7, "trainable": 10**5, "adapter": 10**5, "kept": 10**5})  # fmt: skip
            if place == 0:
                write_run(tmp_path, "head", seed, metric__test=0.5, rank=None,
                          parameters={"total": 10**7, "trainable": 10**3, "adapter": 0, "kept": 0})  # fmt: skip
    return tmp_path


def test_many_methods_are_listed_with_metric_and_cost_side_by_side(methods):
    table, figure = drawn(methods)
    left, right = figure.axes
    best_first = sorted(table.rows, key=lambda row: -row.mean)
    assert [tick.get_text() for tick in left.get_yticklabels()] == [table.labels[row] for row in best_first]
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first on top
    dots = [line for line in right.get_lines() if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in dots] == [row.kept for row in best_first]
    filled = [best_first[y].method for y, line in enumerate(dots) if line.get_markerfacecolor() == line.get_color()]
    assert filled == ["i", "head"]
    seeds = [line for line in left.get_lines() if line.get_marker() == "|"]
    assert [tuple(line.get_xdata()) for line in seeds] == [tuple(row.scores.values()) for row in best_first]
    assert (right.get_xscale(), right.get_xlabel().split()) == ("log", pareto.COSTS["parameters"].label.split())
