"""SalientLoRA's score against its algorithm written out: pairs of series, a graph without cycles, recursion."""

import networkx
import numpy as np
import pytest
import torch

import adarank
from adarank.bank import Bank
from adarank.penalties import orthogonality_value
from adarank.scores import salience
from tests.conftest import Net


def de_cycled(graph):
    """The paper's Algorithm 1: while there is a cycle, remove its weakest edge."""
    while True:
        try:
            cycle = networkx.find_cycle(graph)
        except networkx.NetworkXNoCycle:
            return graph
        graph.remove_edge(*min(cycle, key=lambda edge: graph.edges[edge]["slope"]))


def domain(series, correlation, slope):
    """The influence of every series, before it is normalised; the graph before and after Algorithm 1."""
    n = len(series)
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(n))
    for i in range(n):
        for j in range(n):
            if i == j or np.ptp(series[i]) == 0 or np.ptp(series[j]) == 0:
                continue
            b = np.polyfit(series[i], series[j], 1)[0]
            if np.corrcoef(series[i], series[j])[0, 1] >= correlation and b >= slope:
                graph.add_edge(i, j, slope=b)
    before = graph.copy()
    graph = de_cycled(graph)

    def influence(i):
        return sum(graph.edges[i, j]["slope"] * influence(j) for j in graph[i]) if graph[i] else 1.0

    return [influence(i) if graph[i] else 0.0 for i in range(n)], before, graph


def expected(series, losses, sizes, correlation, slope, weight):
    """series: [triplets, steps]; losses: [steps]; sizes: triplets per module."""
    R = [sum(losses) / loss for loss in losses]
    R = [(r - min(R)) / (max(R) - min(R)) for r in R]
    d, _, _ = domain(series, correlation, slope)
    found, first = [], 0
    for size in sizes:
        m = [sum(abs(x) * r for x, r in zip(series[i], R, strict=True)) for i in range(first, first + size)]
        found += [a / sum(m) + (weight * d[i] / sum(d) if sum(d) else 0.0) for i, a in enumerate(m, start=first)]
        first += size
    return found


def walk(bank, draw, steps, score, buffers):
    """λ that move together in groups, at several speeds; returns their series and the losses."""
    series, losses = [], []
    speeds = torch.tensor([0.1, 0.25, 0.6, 1.5, 4.0, -2.0]).double().repeat(bank.triplets)[: bank.triplets]
    for _ in range(steps):
        common = torch.randn((), generator=draw).double()
        noise = torch.randn(bank.triplets, generator=draw).double()
        bank.weight.normal_(0, 0.5, generator=draw)
        bank.lam.copy_(1 + speeds * (common + 0.2 * noise))
        score.observe(buffers, bank)
        series.append(bank.lam.clone())
        losses.append(orthogonality_value(bank, 0.1).item())  # a common factor has no effect
    return torch.stack(series, 1).numpy(), losses


@pytest.mark.parametrize(("correlation", "slope", "weight"), [(0.9, 2.0, 1.0), (0.5, 1.1, 0.3)])
def test_it_is_the_algorithm_written_out(correlation, slope, weight):
    bank = Bank(adarank.adapt(Net().double(), rank=3))
    draw = torch.Generator().manual_seed(1)
    score = salience(window=50, correlation=correlation, slope=slope, influence=weight)
    buffers = score.init(bank)
    series, losses = walk(bank, draw, 12, score, buffers)
    _, before, after = domain(series, correlation, slope)
    assert before.number_of_edges() > 20
    assert networkx.dag_longest_path_length(after, weight=None) >= 2
    assert after.number_of_edges() == before.number_of_edges()  # Algorithm 1 never has a cycle to break
    found = score.score(buffers, bank)
    np.testing.assert_allclose(found, expected(series, losses, [3] * 6, correlation, slope, weight), rtol=1e-8)


def test_the_series_begins_again_after_an_allocation_and_is_no_longer_than_the_window():
    bank = Bank(adarank.adapt(Net().double(), rank=3))
    draw = torch.Generator().manual_seed(2)
    score = salience(window=9)
    buffers = score.init(bank)
    walk(bank, draw, 6, score, buffers)
    held = score.score(buffers, bank)
    score.restart(buffers, bank)
    assert torch.equal(score.score(buffers, bank), held)  # until there is a new step
    for steps, remembered in ((5, 5), (20, 9)):
        score.restart(buffers, bank)
        series, losses = walk(bank, draw, steps, score, buffers)
        reference = expected(series[:, -remembered:], losses[-remembered:], [3] * 6, 0.9, 2.0, 1.0)
        np.testing.assert_allclose(score.score(buffers, bank), reference, rtol=1e-8)


def test_a_controller_restarts_it_at_the_schedule_s_beginning_and_after_each_allocation():
    torch.manual_seed(0)
    net = Net()
    adapters = adarank.adapt(net, rank=4)
    schedule = adarank.schedules.widening(24, 12, t_i=3, t_f=4, total=24, interval=2, last_interval=6)
    controller = adarank.RankController(adapters, score=salience(), schedule=schedule, pruned_triplets="frozen")
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    controller.attach(optimizer)
    lengths = {}
    for step in range(24):
        net(torch.randn(8, 8)).square().mean().backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        last = controller.last_allocation
        if last is not None and last.step == step:
            lengths[step] = int(controller.buffers["count"])
    steps = schedule.allocations()
    assert list(lengths) == steps
    assert [lengths[t] for t in steps[:-1]] == np.diff([3, *steps[:-1]]).tolist()
    assert sum(adarank.ranks(net).values()) == 12


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"window": 0}, r"score\.window must be a whole number of at least 1 \(got 0\)"),
        ({"correlation": 0}, r"score\.correlation must be above 0 and at most 1 \(got 0\)"),
        ({"slope": 1.0}, r"score\.slope must be above 1 \(got 1.0\)"),
        ({"influence": -1.0}, r"score\.influence must be at least 0 \(got -1.0\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, says):
    with pytest.raises(adarank.SettingError, match=says):
        salience(**settings)
