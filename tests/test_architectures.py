"""Whole transformers, tiny and random: adapt, prune with AdaLoRA, merge, save, load."""

import pytest
import torch
import transformers
from torch.nn import functional as F

import adarank
from adarank import SettingError
from adarank.adaptation import reach
from adarank.harness.models import tiny
from tests.representatives import representatives

STEPS = 20


def text(arch):
    def build():
        torch.manual_seed(0)
        return tiny(arch, width=32, layers=1).build(3).model

    ids = torch.randint(4, 200, (6, 9), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 3  # the end token, by which encoder-decoders pool
    return build, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def image():
    def build():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3)
        return transformers.ViTForImageClassification(config)

    return build, {"pixel_values": torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))}


# linears in the blocks: BERT-likes 6 a layer, GPT-2 4, Llama 7, T5 6 in the encoder's and 10 in the decoder's, ViT 2 ·
# 6
COUNTS = {"bert": 6, "deberta_v2": 6, "roberta": 6, "gpt2": 4, "llama": 7, "t5": 16, "vit": 12}
COUNTS |= {"distilbert": 6, "gpt_neox": 4, "bart": 16, "modernbert": 4}


@pytest.mark.filterwarnings("ignore:no adapter can wrap")  # DeBERTa's relative positions are no layer
@pytest.mark.parametrize("arch", representatives(COUNTS, ("bert", "gpt2", "t5", "vit")))
def test_a_transformer_end_to_end(arch, tmp_path):
    build, inputs = image() if arch == "vit" else text(arch)
    model, labels = build(), torch.arange(6) % 3
    head = [n for n, c in model.named_children() if c is not model.base_model and any(True for _ in c.parameters())]
    adapters = adarank.adapt(model, rank=3, targets="all-linear", train=head)
    n = COUNTS[arch]
    assert len(adapters) == n
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.adalora(),
        schedule=adarank.schedules.cubic(initial=3 * n, final=2 * n - 1, t_i=3, t_f=6, total=STEPS, interval=2),
        penalty=adarank.penalties.orthogonality(),
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    controller.attach(optimizer)
    model.train()
    for _ in range(STEPS):
        F.cross_entropy(model(**inputs).logits, labels).backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(adarank.ranks(model).values()) == 2 * n - 1
    moved = [a for a in adapters.values() if a.mask.any() and a.effective_lam().abs().max() > 1e-4]
    assert len(moved) == sum(a.mask.any() for a in adapters.values()) > n // 2  # every kept one learned

    model.eval()
    with torch.no_grad():
        expected = model(**inputs).logits
        with adarank.disabled(model):
            assert not torch.allclose(model(**inputs).logits, expected, atol=1e-3)
        adarank.save_adapter(model, tmp_path)
        fresh = build()
        adarank.load_adapter(fresh, tmp_path)
        torch.testing.assert_close(fresh.eval()(**inputs).logits, expected, rtol=1e-4, atol=1e-5)
        adarank.merge(model)
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-3, atol=1e-4)


SIZES = {"vocab_size": 50, "pad_token_id": 0}


def test_a_decoder_tied_to_the_embedding_is_refused_and_all_linear_leaves_it_alone():
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, **SIZES))
    bert_config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, **SIZES
    )
    bert = transformers.BertForMaskedLM(bert_config)
    for model, tied, to in (
        (gpt2, "lm_head", "transformer.wte"),
        (gpt2, "wte", "lm_head"),
        (bert, "cls.predictions.decoder", "bert.embeddings.word_embeddings"),
    ):
        with pytest.raises(SettingError, match=f"cannot be adapted: its weight is tied to {to}'s"):
            adarank.adapt(model, targets=[tied], rank=2)
    assert len(adarank.adapt(gpt2, rank=2)) == 4
    assert len(adarank.adapt(bert, rank=2)) == 6


def test_one_module_under_two_names_is_not_tied():
    torch.manual_seed(0)
    bert = tiny("bert", width=32, layers=1).build(2).model
    bert.alias = bert.bert.encoder
    ids = torch.randint(4, 200, (2, 5))
    adapters = adarank.adapt(bert, rank=2, targets=["query"])
    before = bert.eval()(ids).logits
    for adapter in adapters.values():
        torch.nn.init.constant_(adapter.lam, 1000.0)
    assert not torch.allclose(bert(ids).logits, before)


@pytest.mark.parametrize("arch", ["mixtral", "qwen2_moe"])
def test_stacked_experts_are_named_and_the_share_is_exact(arch):
    sizes = dict.fromkeys(("hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size"), 32)
    sizes |= dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 2)
    sizes |= {"num_hidden_layers": 1, "intermediate_size": 64, "num_local_experts": 4, "num_experts": 4, **SIZES}
    known = transformers.AutoConfig.for_model(arch)
    config = transformers.AutoConfig.for_model(arch, **{k: v for k, v in sizes.items() if hasattr(known, k)})
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    matrices = {n: p.numel() for n, p in model.named_parameters() if p.ndim > 1}
    with pytest.warns(UserWarning, match=r"the targets leave out the experts in .*mlp\.experts\.gate_up_proj"):
        adapters = adarank.adapt(model, rank=1, targets=["q_proj", "v_proj"])
    reached = reach(model)
    wrapped = sum(matrices[f"{name}.weight"] for name in adapters)
    assert reached.share == wrapped / sum(matrices.values())
    assert reached.missed == [
        f"model.layers.0.mlp.{name}" for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
    ]
