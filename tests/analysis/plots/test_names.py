from analysis.plots.names import MORE, SINGLE, WIDTH, broken, row_height

LONG = "adalora 2, allocator rank_map, shuffle none, schedule null  (10\u00a0seeds)"


def test_long_names_are_broken_and_nothing_of_them_is_lost():
    lines = broken(LONG).split("\n")
    assert max(map(len, lines)) <= WIDTH
    assert lines[-1].endswith("(10 seeds)")
    assert " ".join(lines).split() == LONG.split()
    assert broken("lora 8  (2\u00a0seeds)") == "lora 8  (2 seeds)"


def test_a_dollar_sign_starts_no_formula():
    assert broken("a $1") == r"a \$1"


def test_rows_are_as_high_as_the_longest_name_needs():
    assert row_height(["full"]) == row_height([]) == SINGLE
    assert row_height(["full", LONG]) == SINGLE + MORE
