"""Flows of a network alone: laws of the sizes and patterns, and files that say where they are wrong."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.randomness import stream
from simulator.workload.flows import (
    Constant,
    Lognormal,
    Pareto,
    all_to_all,
    incast,
    permutation,
    poisson,
    read_changes,
    read_flows,
)


@pytest.mark.parametrize(
    "sizes",
    [
        Constant(5000),
        Lognormal(64_000, 1.5, 10**7),
        Lognormal(64_000, 0, 10**7),
        Lognormal(10**6, 1.0, 10**6),
        Pareto(1.2, 1000, 10**8),
        Pareto(1.0, 1000, 10**6),
        Pareto(2.5, 10**6, 10**9),
    ],
)
def test_the_mean_is_that_of_the_law(sizes):
    # Standard error from the sample itself; heavy tails make it wide, so many draws.
    drawn = sizes.draw(stream(3, "sizes"), 400_000).astype(float)
    assert abs(drawn.mean() - sizes.mean) < 4 * drawn.std() / np.sqrt(len(drawn)) + 0.5
    assert drawn.min() >= 1


def test_a_bounded_pareto_by_hand():
    # Shape 1 on [1, e]: density 1 / (x^2 (1 - 1/e)), mean = 1 / (1 - 1/e) = 1.582; scaled by 10^6.
    law = Pareto(1.0, 10**6, round(10**6 * np.e))
    assert law.mean == pytest.approx(10**6 / (1 - 1 / np.e), rel=1e-6)


@pytest.mark.parametrize("load", [0.1, 0.6])
def test_poisson_flows_offer_their_load(load):
    devices, port = 64, 50 * 10**9
    flows = list(poisson(stream(1, "flows"), devices, 40_000, load, port, Lognormal(10**6, 1.0, 10**8)))
    offered = sum(flow.size_bytes for flow in flows) * 10**9 / flows[-1].start_ns
    assert offered == pytest.approx(load * devices * port, rel=0.03)
    assert all(flow.source != flow.target for flow in flows)
    assert [flow.flow_id for flow in flows] == list(range(40_000))
    starts = [flow.start_ns for flow in flows]
    assert starts == sorted(starts)
    gaps = np.diff(starts)
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.03)
    targets = np.bincount([flow.target for flow in flows], minlength=devices)
    assert targets.min() > 0.7 * targets.mean()


def test_fewer_flows_are_a_prefix():
    law = Pareto(1.3, 1000, 10**7)
    long, short = (list(poisson(stream(1, "flows"), 16, n, 0.3, 10**9, law)) for n in (9000, 100))
    assert long[:100] == short


@given(st.integers(2, 200), st.integers(0, 100))
def test_a_permutation_is_one_cycle(devices, seed):
    after = {flow.source: flow.target for flow in permutation(stream(seed, "flows"), devices, 1)}
    assert sorted(after.values()) == list(range(devices))
    at, seen = 0, set()
    while at not in seen:
        seen.add(at)
        at = after[at]
    assert len(seen) == devices


@given(st.integers(2, 40))
def test_counts_of_patterns(devices):
    pairs = {(flow.source, flow.target) for flow in all_to_all(devices, 1)}
    assert len(pairs) == devices * (devices - 1)
    flows = list(incast(devices, devices - 1, devices - 1, 1))
    assert {flow.target for flow in flows} == {devices - 1}
    assert {flow.source for flow in flows} == set(range(devices - 1))


def write(tmp_path, text):
    path = tmp_path / "flows.csv"
    path.write_text(text)
    return path


def test_a_file_is_read_exactly_and_in_order_of_start(tmp_path):
    text = "flow_id,src,dst,bytes,start_s,path\n7,b,a,100,0.000000003,b>x>a\n3,a,b,1e6,0,\n"
    flows = read_flows(write(tmp_path, text))
    assert [(f.flow_id, f.source, f.target, f.size_bytes, f.start_ns, f.path) for f in flows] == [
        (3, "a", "b", 10**6, 0, ""),
        (7, "b", "a", 100, 3, "b>x>a"),
    ]
    assert read_flows(write(tmp_path, "bytes,flow_id,start_s,dst,src\n5,1,0.5,b,a\n"))[0].start_ns == 5 * 10**8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column flow_id"),
        ("flow_id,src,dst,bytes,start_s\n", "no flows"),
        ("flow_id,src,dst,size,start_s\n1,a,b,1,0\n", "no column bytes"),
        ("flow_id,src,dst,bytes,start_s\n1,a,b,-1,0\n", ":2: bytes: "),
        ("flow_id,src,dst,bytes,start_s\n1,a,b,1.5,0\n", ":2: bytes: "),
        ("flow_id,src,dst,bytes,start_s\n1,a,b,nan,0\n", ":2: bytes: "),
        ("flow_id,src,dst,bytes,start_s\n1,a,b,1,-2\n", ":2: start_s: "),
        ("flow_id,src,dst,bytes,start_s\n1,a,b,1,inf\n", ":2: start_s: "),
        ("flow_id,src,dst,bytes,start_s\n1,,b,1,0\n", ":2: src: "),
        ("flow_id,src,dst,bytes,start_s\n1,a,b,1\n", "4 values for 5 columns"),
        ("flow_id,src,dst,bytes,start_s\n1,a,b,1,0\n1,a,c,1,0\n", "appears on line 2 too"),
        ("flow_id,src,dst,bytes,start_s\nx,a,b,1,0\n", ":2: flow_id: "),
    ],
)
def test_bad_files_say_where(tmp_path, text, says):
    with pytest.raises(InputError) as caught:
        read_flows(write(tmp_path, text))
    assert says in str(caught.value)
    assert "flows.csv" in str(caught.value)


def test_every_bad_row_is_told_at_once(tmp_path):
    text = "time_s,src,dst,bandwidth_Bps\n1,a,b,-5\n2,,b,5\n3,a,b,5\n"
    with pytest.raises(InputError) as caught:
        read_changes(write(tmp_path, text))
    assert len(caught.value.problems) == 2
    good = read_changes(write(tmp_path, "time_s,src,dst,bandwidth_Bps\n3,a,b,5\n1,a,b,0\n"))
    assert [(c.time_ns, c.capacity_bytes_per_s) for c in good] == [(10**9, 0), (3 * 10**9, 5)]


def test_an_absent_file_is_one_problem(tmp_path):
    with pytest.raises(InputError):
        read_flows(tmp_path / "none.csv")


@given(
    st.one_of(
        st.floats(1e-12, 1e6).map(repr),
        st.decimals(0, 10**6, places=12, allow_nan=False).map(str),
        st.integers(0, 10**9).map(str),
    )
)
def test_times_are_read_exactly_and_rounded_half_to_even(text):
    from simulator.workload.flows import _time_ns

    assert _time_ns(text) == round(Fraction(text) * 10**9)
