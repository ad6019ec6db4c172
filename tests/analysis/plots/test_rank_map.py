import numpy as np
import pytest

from analysis.load import read_runs
from analysis.plots import rank_map
from analysis.tables import tables

BERT = ["attention.self.query", "attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense"]
MPNET = ["attention.attn.q", "attention.attn.v", "attention.attn.o", "intermediate.dense", "output.dense"]
SELF = ["self_attn.q_proj", "self_attn.v_proj", "fc1", "fc2"]
CROSS = ["encoder_attn.q_proj", "encoder_attn.v_proj"]
T5 = ["layer.0.SelfAttention.q", "layer.0.SelfAttention.v"]
ARCHITECTURES = {  # {name: [(what stands before the block's number, the modules of a block, rows)]}
    "BERT": [("bert.encoder.layer", BERT)],
    "MPNet": [("mpnet.encoder.layer", MPNET)],
    "BART": [("model.encoder.layers", SELF), ("model.decoder.layers", SELF + CROSS)],
    "T5": [
        ("encoder.block", [*T5, "layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wo"]),
        ("decoder.block", [*T5, "layer.1.EncDecAttention.q", "layer.2.DenseReluDense.wi", "layer.2.DenseReluDense.wo"]),
    ],
    "Llama": [
        ("model.layers", ["self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"])
    ],
    "GPT-2": [("transformer.h", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"])],
    "ViT": [("vit.encoder.layer", ["attention.attention.query", "attention.output.dense", "intermediate.dense"])],
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_module_has_a_cell_of_its_own_with_its_rank(tmp_path, write_run, architecture):
    stacks = ARCHITECTURES[architecture]
    names = [f"{stack}.{block}.{kind}" for stack, kinds in stacks for block in (0, 1, 10) for kind in kinds]
    ranks = {name: i + 1 for i, name in enumerate(names)}  # all different: a swapped cell is found
    write_run(tmp_path, "adalora", rank__final=ranks)
    (table,) = tables(read_runs(tmp_path))
    axes = rank_map.draw(table.rows[0], "adalora").axes[0]
    rows, columns = ([tick.get_text() for tick in ticks] for ticks in (axes.get_yticklabels(), axes.get_xticklabels()))
    assert len(rows) == 3 * len(stacks)
    cells = {}
    for text in axes.texts:
        x, y = text.get_position()
        cells[rows[int(y)], columns[int(x)]] = text.get_text()
    assert len(cells) == len(axes.texts) == len(names)
    for name, rank in ranks.items():
        stack, block = next(
            (stack, name.removeprefix(f"{stack}.").split(".")[0]) for stack, _ in stacks if name.startswith(f"{stack}.")
        )
        path = name.removeprefix(f"{stack}.{block}.")
        kind = ".".join(part for part in path.split(".") if not part.isdecimal())
        assert cells[block if len(stacks) == 1 else f"{stack}.{block}", kind] == str(rank)


def test_many_experts_have_narrow_cells_and_some_labels(tmp_path, write_run):
    names = [
        f"model.layers.{n}.mlp.experts.{p}.{e}"
        for n in (0, 1)
        for p in ("gate_up_proj", "down_proj")
        for e in range(64)
    ]
    write_run(tmp_path, "adalora", rank__final={name: i for i, name in enumerate(names)})
    (table,) = tables(read_runs(tmp_path))
    figure = rank_map.draw(table.rows[0], "adalora")
    axes = figure.axes[0]
    assert axes.images[0].get_array().shape == (2, 128)
    assert figure.get_figwidth() < 20
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels == [f"mlp.experts.{p}.{e}" for p in ("gate_up_proj", "down_proj") for e in range(0, 64, 8)]
    assert not axes.texts


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
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("module", "block")
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


def test_maps_of_one_table_share_their_colours_and_a_difference_has_its_own(tmp_path, write_run):
    for seed in (0, 1):
        write_run(tmp_path, "adalora", seed)
        write_run(tmp_path, "sora", seed + 2)
        write_run(tmp_path, "adalora", seed, 2)
    (table,) = tables(read_runs(tmp_path))
    small, adalora, sora = sorted(table.rows, key=lambda row: (row.final_rank, row.method))
    shades = rank_map.shared(table.rows)
    limits = {rank_map.draw(row, "a", shades).axes[0].images[0].get_clim() for row in table.rows}
    assert limits == {(0.0, max(rank for row in table.rows for rank in row.ranks.values()))}
    assert rank_map.to_compare([small, adalora, sora]) == (adalora, sora)
    assert rank_map.to_compare([small, adalora]) is None
    axes = rank_map.draw_difference(adalora, sora, "adalora − sora").axes[0]
    grid, (low, high) = axes.images[0].get_array(), axes.images[0].get_clim()
    assert (
        grid[3, 0]
        == adalora.ranks["bert.encoder.layer.3.attention.self.query"]
        - sora.ranks["bert.encoder.layer.3.attention.self.query"]
    )
    assert high == -low == np.abs(grid).max()


def test_no_map_without_ranks(quickstart):
    (table,) = tables(read_runs(quickstart))
    assert rank_map.draw(table.rows[0], "full") is None
