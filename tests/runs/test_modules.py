"""Where a module stands: no two modules of a model share a cell, whatever the architecture calls its blocks."""

import numpy as np
import pytest

from adarank.runs.modules import Place, describe_modules, place_of, rank_grid

NAMES = {
    "bert": [
        f"bert.encoder.layer.{n}.{m}"
        for n in range(2)
        for m in ("attention.self.query", "attention.self.key", "attention.output.dense", "intermediate.dense", "output.dense")
    ],
    "mpnet": [f"mpnet.encoder.layer.{n}.{m}" for n in range(2) for m in ("attention.attn.q", "attention.attn.o", "output.dense")],
    "bart": [f"model.{side}.layers.{n}.self_attn.{p}_proj" for side in ("encoder", "decoder") for n in range(2) for p in "qv"]
    + [f"model.decoder.layers.{n}.encoder_attn.{p}_proj" for n in range(2) for p in "qv"],
    "t5": [f"{side}.block.{n}.layer.0.SelfAttention.{p}" for side in ("encoder", "decoder") for n in range(2) for p in "qv"]
    + [f"decoder.block.{n}.layer.1.EncDecAttention.{p}" for n in range(2) for p in "qv"]
    + [f"{side}.block.{n}.layer.{k}.DenseReluDense.wi" for side, k in (("encoder", 1), ("decoder", 2)) for n in range(2)],
    "llama": [f"model.layers.{n}.{m}" for n in range(2) for m in ("self_attn.q_proj", "mlp.gate_proj")],
    "gpt2": [f"transformer.h.{n}.{m}" for n in range(2) for m in ("attn.c_attn", "attn.c_proj", "mlp.c_proj")],
    "vit": [f"vit.encoder.layer.{n}.{m}" for n in range(2) for m in ("attention.attention.query", "output.dense")],
    "stacked": [f"model.layers.{n}.mlp.experts.{p}_proj.{e}" for n in range(2) for p in ("gate_up", "down") for e in range(12)],
    "experts": [f"model.layers.{n}.mlp.experts.{e}.{p}" for n in range(2) for e in range(3) for p in ("w1", "w2")],
}  # fmt: skip


def tiny_model(name):
    """The module names of a real model of the architecture, at its smallest."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 16,
    }
    seq = {"d_model": 8, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "vocab_size": 16,
           "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_position_embeddings": 16}  # fmt: skip
    config, model = {
        "bert": lambda: (transformers.BertConfig(**sizes), transformers.BertModel),
        "mpnet": lambda: (transformers.MPNetConfig(**sizes), transformers.MPNetModel),
        "bart": lambda: (transformers.BartConfig(**seq, pad_token_id=1), transformers.BartModel),
        "t5": lambda: (transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, vocab_size=16),
                       transformers.T5Model),
        "llama": lambda: (transformers.LlamaConfig(**sizes, num_key_value_heads=2), transformers.LlamaModel),
        "gpt2": lambda: (transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=16), transformers.GPT2Model),
        "vit": lambda: (transformers.ViTConfig(**{k: v for k, v in sizes.items() if k != "vocab_size"}, image_size=4,
                                               patch_size=2), transformers.ViTModel),
    }[name]()  # fmt: skip
    weighted = [
        n for n, m in model(config).named_modules() if getattr(m, "weight", None) is not None and m.weight.ndim == 2
    ]
    return [n for n in weighted if "embed" not in n and "wte" not in n and "wpe" not in n and n != "shared"]


def assert_no_shared_cell(names):
    rows, columns, grid = rank_grid({name: i for i, name in enumerate(names)})
    assert sorted(grid[~np.isnan(grid)]) == list(range(len(names)))
    assert grid.shape == (len(rows), len(columns))
    assert len(set(rows)) == len(rows)
    assert len(set(columns)) == len(columns)
    return rows, columns


@pytest.mark.parametrize("name", NAMES)
def test_no_two_modules_share_a_cell(name):
    assert_no_shared_cell(NAMES[name])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("experts", "stacked")])
def test_nor_do_those_of_a_real_model(name):
    names = tiny_model(name)
    rows, _ = assert_no_shared_cell(names)
    stacks = {place_of(name).stack for name in names} - {""}
    assert len(stacks) == (2 if name in ("bart", "t5") else 1)
    assert len([row for row in rows if row != "outside"]) == 2 * len(stacks)


def test_encoder_and_decoder_are_two_stacks():
    rows, columns = assert_no_shared_cell(NAMES["bart"])
    assert rows == [f"model.{side}.layers.{n}" for side in ("encoder", "decoder") for n in range(2)]
    assert columns == ["self_attn.q_proj", "self_attn.v_proj", "encoder_attn.q_proj", "encoder_attn.v_proj"]


def test_layers_are_rows_in_numeric_order_and_kinds_are_columns():
    ranks = {f"encoder.layer.{n}.{m}": 10 * n + k for n in (10, 2, 0) for k, m in enumerate(("att.query", "att.value"))}
    rows, columns, grid = rank_grid(ranks)
    assert rows == ["0", "2", "10"]
    assert columns == ["att.query", "att.value"]
    np.testing.assert_array_equal(grid, [[0, 1], [20, 21], [100, 101]])


def test_two_stacks_keep_their_ranks():
    ranks = {"encoder.block.0.q": 1, "decoder.block.0.q": 2, "decoder.block.1.cross.q": 3}
    rows, columns, grid = rank_grid(ranks)
    assert rows == ["encoder.block.0", "decoder.block.0", "decoder.block.1"]
    assert columns == ["q", "cross.q"]
    np.testing.assert_array_equal(grid, [[1, np.nan], [2, np.nan], [np.nan, 3]])


def test_modules_outside_every_block_share_the_last_row():
    rows, columns, grid = rank_grid({"pooler.dense": 5, "layers.1.q": 7, "layers.0.q": 6, "classifier": 8})
    assert rows == ["0", "1", "outside"]
    assert columns == ["pooler.dense", "q", "classifier"]
    np.testing.assert_array_equal(grid, [[np.nan, 6, np.nan], [np.nan, 7, np.nan], [5, np.nan, 8]])


def test_layers_that_are_modules_themselves_are_outside_of_blocks():
    """As in nn.Sequential: no number has a module inside."""
    rows, columns, grid = rank_grid({"layers.0": 6, "layers.1": 7})
    assert rows == ["outside"]
    assert columns == ["layers.0", "layers.1"]
    np.testing.assert_array_equal(grid, [[6, 7]])


def test_experts_are_of_one_kind_and_have_a_column_each():
    place = place_of("model.layers.1.mlp.experts.2.w1")
    assert place == Place("model.layers", 1, "mlp.experts.2.w1", "mlp.experts.w1")
    _, columns = assert_no_shared_cell(NAMES["experts"])
    assert columns == [f"mlp.experts.{e}.{p}" for e in range(3) for p in ("w1", "w2")]


def test_modules_in_a_few_words():
    bert = [f"bert.encoder.layer.{n}.attention.self.{m}" for n in range(12) for m in ("query", "key", "value")]
    assert describe_modules(bert) == "query, key, value in 12 blocks"
    dense = ["bert.encoder.layer.0.attention.output.dense"]
    others = [*dense, "bert.encoder.layer.0.output.dense", "bert.encoder.layer.0.intermediate.dense"]
    assert describe_modules(dense) == "dense in 1 block"
    assert describe_modules(dense, others) == "attention.output.dense in 1 block"
    assert describe_modules(others) == "attention.output.dense, output.dense, intermediate.dense in 1 block"
    assert describe_modules(["bert.pooler.dense"]) == "dense"
    sides = [f"{side}.layers.{n}.self_attn.q_proj" for side in ("encoder", "decoder") for n in range(2)]
    assert describe_modules(sides) == "q_proj in 4 blocks"
    many = [f"layers.0.expert_{n}" for n in range(10)]
    assert describe_modules(many).endswith("expert_7 and 2 more kinds in 1 block")


def test_a_stacked_expert_s_number_is_not_the_block_s():
    place = place_of("model.layers.1.mlp.experts.gate_up_proj.11")
    assert place == Place("model.layers", 1, "mlp.experts.gate_up_proj.11", "mlp.experts.gate_up_proj")
    rows, columns = assert_no_shared_cell(NAMES["stacked"])
    assert rows == ["0", "1"]
    assert columns == [f"mlp.experts.{p}_proj.{e}" for p in ("gate_up", "down") for e in range(12)]
