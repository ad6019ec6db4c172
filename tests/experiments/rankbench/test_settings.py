"""A setting is one line of knobs, and every line that cannot be one is refused in a sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adarank.errors import SettingError
from experiments.rankbench.measure import mean_rank
from experiments.rankbench.settings import DEPTHS, GROUPS, Setting, parse

RANKS = st.lists(st.integers(1, 24), min_size=1, max_size=12).map(lambda ranks: tuple(sorted(ranks, reverse=True)))
SIZES = st.sampled_from([0.25, 0.5, 1.0])


@given(RANKS, SIZES, SIZES, st.sampled_from([0.0, 0.1, 3.0]), st.sampled_from(DEPTHS))
def test_a_settings_name_is_read_as_that_setting(ranks, strength, decay, noise, depth):
    setting = Setting("network", ranks, strength, decay, noise, depth)
    assert parse(setting.name) == setting


def test_knobs_at_their_defaults_are_not_part_of_the_name():
    assert parse("network,ranks=2+4+2,strength=1,noise=0,depth=any").name == "network,ranks=4x1+2x2"


def test_the_settings_of_a_group_are_named_as_they_are_written():
    for group in GROUPS.values():
        assert [parse(text).name for text in group.settings] == list(group.settings)


MODULES = {"network": 12, "linear": 12, "minilm_l6": 36, "smollm2_135m": 210}


@pytest.mark.parametrize("group", GROUPS)
def test_every_budget_of_a_group_is_a_whole_mean_rank(group):
    for setting in map(parse, GROUPS[group].settings):
        for budget in GROUPS[group].budgets:
            assert mean_rank(setting, budget, MODULES[setting.base]) >= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "nosuch",
            "--setting must be one of planted, linear, even, phase, start, strength, depth, encoder, decoder, or a base with ranks",
        ),
        ("network,ranks=0x3", r"such as network,ranks=8x3 \(got network,ranks=0x3\)"),
        ("network,ranks=8x3,size=2", r"--setting knobs must be among ranks, .* depth \(got size\)"),
        ("network,ranks=8x3,noise=-1", r"noise must be a number of at least 0 \(got -1.0\)"),
        ("network,ranks=8x3,decay=2", r"decay must be a number above 0 and at most 1 \(got 2.0\)"),
        ("network,ranks=8x3,strength=much", r"strength must be a number above 0 \(got much\)"),
        ("network,ranks=8x3,depth=deep", r"depth must be one of any, early, late \(got deep\)"),
    ],
)
def test_a_line_that_is_no_setting_is_refused(text, message):
    with pytest.raises(SettingError, match=message):
        parse(text)
