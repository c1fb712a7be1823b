"""Laws of the number and time parsers: equal to slow, obviously exact twins on everything hypothesis can think of."""

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.workload import fields
from simulator.workload.fields import BadValueError

DIGITS = st.text("0123456789", min_size=1, max_size=12)
UNITS = st.sampled_from(sorted(fields.UNITS_NS.values()))


@given(st.integers(0, 9 * 10**8), st.text("0123456789", max_size=15), UNITS)
def test_decimal_times_equal_exact_fractions(before: int, after: str, unit_ns: int) -> None:
    text = f"{before}.{after}"
    exact = Fraction(before) + (Fraction(int(after), 10 ** len(after)) if after else 0)
    assert fields.decimal_ns(unit_ns)(text) == round(exact * unit_ns)


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)),
    st.text("0123456789", max_size=9),
    st.sampled_from([None, 0, 90, -330, 720]),
    st.sampled_from(" T"),
)
def test_calendar_times_equal_the_standard_library(
    moment: datetime, fraction: str, offset: int | None, separator: str
) -> None:
    moment = moment.replace(microsecond=0)
    text = moment.strftime(f"%Y-%m-%d{separator}%H:%M:%S") + (f".{fraction}" if fraction else "")
    zone = UTC if offset is None else timezone(timedelta(minutes=offset))
    if offset is not None:
        text += f"{'-' if offset < 0 else '+'}{abs(offset) // 60:02d}:{abs(offset) % 60:02d}"
    seconds = round((moment.replace(tzinfo=zone) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    assert fields.iso_ns(text) == seconds * 10**9 + int(fraction.ljust(9, "0"))
    if offset is not None and offset % 60 == 0:  # hours alone, as ISO 8601 and some data bases have them
        assert fields.iso_ns(text.removesuffix(":00")) == fields.iso_ns(text)


@given(st.integers(0, 10**15))
def test_whole_numbers_come_back(number: int) -> None:
    assert fields.whole(str(number)) == fields.whole(f"{number}.0") == fields.whole(f" {number} ") == number


@pytest.mark.parametrize(
    "text",
    ["", "2024-05-10", "2024-13-10 00:00:00", "2024-05-32 00:00:00", "2024-05-10 24:00:00", "2024-05-10 00:00:60",
     "2024-05-10 00:00:60.5", "2024-05-10 00:00:0", "2024-05-10 00:00:00.", "2024-05-10 00:00:00 pm", "1715299200",
     "2300-01-01 00:00:00", "1960-01-01 00:00:00", "2024-05-10 00:00:00.1x", "2024-05-10 00:00:00.5+00:00+00:00"],
)  # fmt: skip
def test_what_is_not_a_time_is_refused(text: str) -> None:
    with pytest.raises(BadValueError):
        fields.iso_ns(text)


def test_a_date_long_ago_is_negative_and_a_far_one_out_of_range() -> None:
    with pytest.raises(BadValueError, match="negative"):
        fields.iso_ns("1960-01-01 00:00:00.0")
    with pytest.raises(BadValueError, match="out of range"):
        fields.iso_ns("2300-01-01 00:00:00.0")
