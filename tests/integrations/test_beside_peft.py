"""PEFT's own AdaLoRA, measured (tests/integrations/peft_faults.py): its cells in docs/ecosystem.md's table.

Where a later PEFT does better a test fails, and the table has to say so.
"""

import json

import pytest

pytestmark = pytest.mark.slow  # they test PEFT, which changes with its version alone


@pytest.fixture
def found(made):
    return json.loads((made / "faults.json").read_text())


def test_it_does_not_become_a_plain_lora(found):
    assert "do not support LoRA conversion" in found["convert"]


def test_it_does_not_merge_4_bits(found):
    assert "NotImplementedError" in found["merge_4bit"]


def test_it_prunes_too_much_after_resuming(found):
    once, halfway, resumed = found["resume"]
    assert resumed < once / 2
    assert halfway >= once


def test_it_has_no_embeddings(found):
    assert "Embedding" in found["embedding"]
    assert "not supported" in found["embedding"]


def test_it_ignores_alpha_patterns_and_rslora(found):
    for setting in ("alpha_pattern", "rslora"):
        without, with_it = found[setting]
        assert without == with_it


def test_equal_ranks_are_an_error(found):
    assert "kthvalue" in found["equal_ranks"]


def test_tied_scores_keep_nothing(found):
    assert found["ties"] == 0  # of a budget of 8


def test_another_loss_drops_the_penalty(found):
    own, other = found["orthogonality"]
    assert own > 1e-3
    assert other == 0


def test_accumulation_multiplies_the_penalty(found):
    one, four = found["accumulation"]
    assert four == pytest.approx(4 * one, rel=1e-3)


def test_a_forgotten_call_is_silent(found):
    allocated, forgotten = found["kept"]
    assert allocated == 8
    assert forgotten == 16


def test_pruning_frees_nothing(found):
    fresh, pruned = found["memory"]
    assert fresh == pruned


def test_it_loses_the_statistics_of_norms(found):
    after_loading, without_adapters = found["statistics"]
    assert after_loading > 0.1
    assert without_adapters > 0.1


def test_another_checkpoint_is_silent(found):
    assert not [message for message in found["other_base"] if "checkpoint" in message or "base" in message]


def test_the_names_of_a_compiled_model_are_lost(found):
    (message,) = [message for message in found["compiled"] if "missing adapter keys" in message]
    assert "base_model.model.0.lora_A" in message


def test_an_average_of_weights_keeps_too_much(found):
    kept, averaged = found["averaged"]
    assert averaged > kept


def test_a_numpy_rank_cannot_be_saved(found):
    assert "not JSON serializable" in found["numpy_rank"]
