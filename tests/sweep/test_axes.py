"""Points of a sweep: the sizes of products, and identities of samples that hold whatever is drawn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.sweep.axes import draw, ends, independent, latin_hypercube, over_seeds, quantity, value_text
from simulator.sweep.axes import settings as settings_of
from simulator.sweep.schema import Distribution, Sample, Sweep


def sweep(**keys) -> Sweep:
    return Sweep.model_validate({"schema": 1, "base": "quickstart", **keys})


def test_grid_zip_and_points_multiply():
    # 2 x 3 of the grid, 2 of the zip, 1 written down: 12 settings, the last axis moving first
    found = settings_of(
        sweep(grid={"a": (1, 2), "b": ("x", "y", "z")}, zip={"c": (1, 2), "d": (3, 4)}, points=({"e": 5},))
    )
    assert len(found) == 12
    assert found[0] == {"a": 1, "b": "x", "c": 1, "d": 3, "e": 5}
    assert found[1] == {"a": 1, "b": "x", "c": 2, "d": 4, "e": 5}
    assert {(row["c"], row["d"]) for row in found} == {(1, 3), (2, 4)}


def test_a_sweep_of_nothing_is_one_point():
    assert settings_of(sweep()) == [{}]
    assert list(over_seeds({}, (3, 4))) == [{"seed": 3}, {"seed": 4}]


def test_seeds_are_a_range_or_a_list():
    assert sweep(seeds="1..4").seeds == (1, 2, 3, 4)
    assert sweep(seeds=(7, 9)).seeds == (7, 9)


def test_too_many_points_are_refused():
    with pytest.raises(InputError, match="1,000,000 points"):
        settings_of(sweep(grid={"a": tuple(range(1000)), "b": tuple(range(1000))}))


LAWS = st.one_of(
    st.tuples(st.integers(-50, 50), st.integers(1, 100)).map(lambda p: {"integer": {"from": p[0], "to": p[0] + p[1]}}),
    st.tuples(st.floats(0.5, 50), st.floats(1, 100)).map(
        lambda p: {"uniform": {"from": f"{p[0]} / s", "to": f"{p[0] + p[1]} / s"}}
    ),
    st.tuples(st.floats(0.5, 50), st.floats(1, 100)).map(
        lambda p: {"log_uniform": {"from": f"{p[0]} ms", "to": f"{p[0] + p[1]} ms"}}
    ),
)


@given(law=LAWS, share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=200, deadline=None)
def test_what_is_drawn_lies_between_the_ends(law, share):
    span = next(iter(law.values()))
    value = draw(Distribution.model_validate(law), share, "a")
    low, high = ends(span["from"], span["to"], "a")
    found = quantity(value, "a")
    assert found.unit == low.unit
    slack = 1e-5 * max(abs(low.number), abs(high.number))  # of six digits
    assert low.number - slack <= found.number <= high.number + slack


@given(points=st.integers(1, 60), seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_a_latin_hypercube_has_one_point_in_each_part_of_each_axis(points, seed):
    # n choices of n points: each of them exactly once, on every axis
    law = {"choice": tuple(range(points))}
    sample = Sample.model_validate({"points": points, "seed": seed, "axes": {"a": law, "b": law}})
    found = latin_hypercube(sample)
    for axis in "ab":
        assert sorted(row[axis] for row in found) == list(range(points))
    assert found == latin_hypercube(sample)


@pytest.mark.parametrize("drawn", [independent, latin_hypercube])
def test_neither_the_order_of_axes_nor_another_one_changes_what_is_drawn(drawn):
    law = {"uniform": {"from": "1 / s", "to": "9 / s"}}
    found = [
        drawn(Sample.model_validate({"points": 5, "seed": 3, "axes": dict.fromkeys(paths, law)}))
        for paths in ("ab", "ba", "bca")
    ]
    assert found[0] == found[1] == [{path: point[path] for path in "ab"} for point in found[2]]


def test_values_read_as_they_are_written():
    assert value_text({"tensor": 4, "data": [1, True]}) == "{tensor: 4, data: [1, true]}"
    assert value_text("1 s") == "1 s"
    assert quantity("2.5 Gbps", "a") == (2.5, "Gbps")
    with pytest.raises(InputError, match="units differ"):
        ends("1 s", "2 ms", "a")
    with pytest.raises(InputError, match="no range"):
        ends(3, 3, "a")
