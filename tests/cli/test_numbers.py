"""Numbers as people write them: one rule in C and in Python."""

from __future__ import annotations

import argparse
import decimal
from fractions import Fraction

import pytest
from conftest import lib
from hypothesis import example, given
from hypothesis import strategies as st

from pyllmc.engine._ffi import InvalidArgument
from pyllmc.tables import options as as_text
from pyllmc.trainer import Options


@given(st.floats(0, 1000))
def test_a_number_is_told_in_the_fewest_digits_that_read_back(x):
    options = Options(lib)
    options.set("lr", repr(x))
    text = options.get("lr")
    assert (
        float(text) == x and len(text.strip("0.").split("e")[0]) <= len(repr(x).strip("0.").split("e")[0]) + 1
    )


WHOLE = [
    "1e4",
    "1.5e3",
    "1E+4",
    "10_000",
    "1.0",
    "10e-1",
    "+7",
    "0e5",
    "0.0",
    "9223372036854775807",
    "1e18",
    "007",
    "5.",
]


NO_WHOLE = [
    "1e-1",
    "1.5",
    "1e",
    "e5",
    ".",
    "",
    "-",
    "1_",
    "_1",
    "1__0",
    "0x10",
    "nan",
    "inf",
    "1 0",
    "٣",
    "1e1.5",
    "1,000",
]


def refused(text: str) -> bool:
    try:
        as_text.whole(text)
    except argparse.ArgumentTypeError:
        return True
    return False


@example("0E30")
@given(st.one_of(st.sampled_from(WHOLE + NO_WHOLE), st.text("0123456789.eE+-_ ", max_size=9)))
def test_whole_numbers_have_one_rule_in_c_and_python(text):
    options = Options(lib)
    try:
        options.set("seed", text)
    except InvalidArgument as error:
        assert refused(text) or ("is not in" in str(error) and not 0 <= as_text.whole(text) < 2**63)
    else:
        assert int(options.get("seed")) == as_text.whole(text)


@given(st.from_regex(r"(0|[1-9][0-9]{0,2})(\.[0-9]{1,3})?[eE]-?[0-9]{1,3}", fullmatch=True))
@example("1e-400")
@example("0e-400")
@example("0.000e-9999")
@example("5e-324")
@example("1e400")
def test_a_number_that_a_type_cannot_hold_is_refused_in_c_and_python(text):
    options, exact = Options(lib), Fraction(decimal.Decimal(text))
    try:
        options.set("lr", text)
    except InvalidArgument as error:
        with pytest.raises(argparse.ArgumentTypeError, match=str(error).partition("=")[2].partition(" ")[2]):
            as_text.options()["lr"].read(text)
        assert exact > 1000 or 0 < exact < Fraction(5e-324)
    else:
        value = as_text.options()["lr"].read(text)
        assert float(options.get("lr")) == value and (value > 0) == (exact > 0)


@pytest.mark.parametrize("text", ["9223372036854775808", "99999999999999999999", "-1"])
def test_the_bounds_of_whole_numbers_are_exact(text):
    with pytest.raises(InvalidArgument, match=r"is not in 0\.\.9223372036854775807$"):
        Options(lib).set("seed", text)
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not in 0\.\.9223372036854775807$"):
        as_text.options()["seed"].read(text)
    assert as_text.options()["seed"].read("9223372036854775807") == 2**63 - 1


def test_a_count_has_an_end():
    assert as_text.at_least(1)("9223372036854775807") == 2**63 - 1
    for text in ("1e400", "9223372036854775808"):
        with pytest.raises(
            argparse.ArgumentTypeError, match="not a whole number of at most 9223372036854775807"
        ):
            as_text.at_least(1)(text)


def test_whole_numbers_as_people_write_them():
    assert [as_text.whole(text) for text in WHOLE[:6]] == [10000, 1500, 10000, 10000, 1, 1]
    assert all(map(refused, NO_WHOLE)) and as_text.at_least(1)("1e4") == 10000
    with pytest.raises(argparse.ArgumentTypeError, match="whole number of at least 1"):
        as_text.at_least(1)("1e-1")
