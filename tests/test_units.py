"""Quantities: exact parsing against hand-made values, one meaning per unit, and text that reads back to the same."""

from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import units
from simulator.units import UnitError


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("250 ms", 250_000_000),
        ("1h", 3600 * 10**9),
        ("1.5 us", 1500),
        ("2 µs", 2000),
        ("30 d", 30 * 86400 * 10**9),
        ("0 s", 0),
        ("1_000 ns", 1000),
        ("1e3 s", 10**12),
        (" 5  min ", 300 * 10**9),
        ("2600 ps", 3),
        ("+1 s", 10**9),
    ],
)
def test_durations(text: str, ns: int) -> None:
    assert units.parse_duration_ns(text) == ns


@pytest.mark.parametrize(
    ("text", "size"),
    [("80 GiB", 80 * 2**30), ("80 GB", 80 * 10**9), ("512 B", 512), ("1.5 KiB", 1536), ("0 B", 0), ("1 kB", 1000)],
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [("400 Gbps", 50 * 10**9), ("400 Gb/s", 50 * 10**9), ("50 GB/s", 50 * 10**9), ("8 bps", 1), ("1 GiB/s", 2**30)],
)
def test_bandwidths_keep_bits_and_bytes_apart(text: str, bytes_per_s: int) -> None:
    assert units.parse_bandwidth(text) == bytes_per_s


@pytest.mark.parametrize(("text", "rate"), [("120 / s", 120.0), ("120/s", 120.0), ("6 / min", 0.1), ("36 /  h", 0.01)])
def test_rates(text: str, rate: float) -> None:
    assert units.parse_rate(text) == rate


def test_compute_and_power() -> None:
    assert units.parse_compute("989.4 TFLOPS") == 989.4e12
    assert units.parse_power("0.7 kW") == 700.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "s",
        "5 S",
        "5 sec",
        "5 Gb",
        "5 GB",
        "-1 s",
        "nan s",
        "inf s",
        ".nan",
        "1e99 s",
        "1e9999999 s",
        "5 s s",
        "1,5 s",
        "--5 s",
        "5e s",
        "0x10 s",
        "10 000 s",
        "٣ s",
        "0.4 ns",
        "1 ps",
        "9e18 ns9",
        "9.3e18 ns",
        "1 s" + " " * 200,
        "9" * 99 + " s",
    ],
)
def test_text_that_is_no_duration(text: str) -> None:
    with pytest.raises(UnitError):
        units.parse_duration_ns(text)


@pytest.mark.parametrize("value", [5, 5.0, True, None, [], {"s": 1}, float("nan")])
def test_values_without_a_unit(value: object) -> None:
    with pytest.raises(UnitError, match="no unit"):
        units.parse_duration_ns(value)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (units.parse_size_bytes, "80 Gib"),
        (units.parse_size_bytes, "80 Gb"),
        (units.parse_size_bytes, "0.2 B"),
        (units.parse_bandwidth, "400 GB"),
        (units.parse_bandwidth, "400 Gb"),
        (units.parse_bandwidth, "1 bps"),
        (units.parse_rate, "5"),
        (units.parse_rate, "5 s"),
        (units.parse_rate, "5 / year"),
        (units.parse_rate, "-1 / s"),
        (units.parse_compute, "0 FLOPS"),
        (units.parse_power, "-1 W"),
    ],
)
def test_wrong_units_and_values(parse: object, text: str) -> None:
    with pytest.raises(UnitError):
        parse(text)  # type: ignore[operator]


whole = st.integers(0, 2**63 - 1)


@given(whole)
def test_exact_text_reads_back(value: int) -> None:
    assert units.parse_duration_ns(units.exact_duration(value)) == value
    assert units.parse_size_bytes(units.exact_size(value)) == value
    assert units.parse_bandwidth(units.exact_bandwidth(value)) == value


@given(st.decimals(0, 10**5, places=9), st.sampled_from(sorted(units.TIME_NS)))
def test_a_duration_is_the_nearest_whole_nanosecond(number: object, unit: str) -> None:
    exact = Fraction(str(number)) * units.TIME_NS[unit]
    if 0 < exact <= Fraction(1, 2):
        with pytest.raises(UnitError, match="rounds to zero"):
            units.parse_duration_ns(f"{number} {unit}")
    else:
        assert abs(units.parse_duration_ns(f"{number} {unit}") - exact) <= Fraction(1, 2)


@given(st.text(max_size=40))
def test_any_text_is_a_duration_or_a_unit_error(text: str) -> None:
    with suppress(UnitError):
        assert units.parse_duration_ns(text) >= 0


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1250, "1.25 us"),
        (1.25e6, "1.25 ms"),
        (10**9, "1 s"),
        (150e9, "2.5 min"),
        (7500e9, "2 h 05 min"),
        (float("nan"), "-"),
    ],
)
def test_durations_for_people(ns: float, text: str) -> None:
    assert units.format_duration(ns) == text


def test_sizes_for_people() -> None:
    assert units.format_bytes(1536) == "1.5 KiB"
    assert units.format_bytes(512) == "512 B"
    assert units.format_bandwidth(50e9) == "50 GB/s"
