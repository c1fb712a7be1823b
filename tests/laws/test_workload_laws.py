"""Arrival processes and length laws against their theory, at fixed seeds, within several standard errors."""

import math
from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from simulator.randomness import stream
from simulator.units import NS_PER_S
from simulator.workload.arrivals import Arrivals, Constant, Diurnal, Gamma, Mmpp, Poisson
from simulator.workload.lengths import Exponential, Lengths, Lognormal, Uniform
from simulator.workload.sampling import Part
from simulator.workload.schema import make_batch

BLOCKS = 40


def times(process: Arrivals, blocks: int = BLOCKS, seed: int = 1) -> NDArray[np.int64]:
    return np.concatenate(list(islice(process.times(stream(seed, "arrivals")), blocks)))


def dispersion(arrival_ns: NDArray[np.int64], window_ns: int) -> float:
    counts = np.bincount(arrival_ns // window_ns)[:-1]
    return float(counts.var() / counts.mean())


PROCESSES: list[Arrivals] = [
    Constant(7.0),
    Poisson(120.0),
    Gamma(30.0, 2.5),
    Gamma(30.0, 0.3),
    Mmpp((5.0, 80.0), (2 * NS_PER_S, NS_PER_S // 2)),
    Mmpp((0.0, 50.0, 10.0), (NS_PER_S, NS_PER_S, 3 * NS_PER_S)),
    Diurnal(200.0, 1.8, 60 * NS_PER_S),
]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_times_never_go_back_and_are_the_same_again(process: Arrivals) -> None:
    first, again = times(process, 6), times(process, 6)
    assert first.dtype == np.int64
    assert first[0] >= 0
    assert (np.diff(first) >= 0).all()
    assert (first == again).all()
    if not isinstance(process, Constant):
        assert not np.array_equal(first[:99], times(process, 6, seed=2)[:99])


@pytest.mark.parametrize("rate", [0.01, 3.0, 1e6])
def test_constant_arrivals_are_exact(rate: float) -> None:
    index = np.arange(BLOCKS * 8192)
    assert np.abs(times(Constant(rate)) - index * (NS_PER_S / rate)).max() <= 0.5 + 1e-16 * index[-1] * NS_PER_S / rate


@pytest.mark.parametrize(("process", "cv"), [(Poisson(120.0), 1.0), (Gamma(30.0, 2.5), 2.5), (Gamma(30.0, 0.3), 0.3)])
def test_renewal_processes_have_their_rate_and_cv(process: Poisson | Gamma, cv: float) -> None:
    gaps = np.diff(times(process))
    error = cv / math.sqrt(len(gaps))
    assert gaps.mean() * process.rate_per_s / NS_PER_S == pytest.approx(1, abs=5 * error)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 5 / math.sqrt(len(gaps))


def test_the_counts_of_a_poisson_process_have_a_dispersion_of_one() -> None:
    assert dispersion(times(Poisson(120.0)), NS_PER_S) == pytest.approx(1, abs=0.12)


def test_a_gamma_process_with_cv_1_is_a_poisson_process() -> None:
    gaps = np.sort(np.diff(times(Gamma(50.0, 1.0)))) * 50.0 / NS_PER_S
    empirical = np.arange(1, len(gaps) + 1) / len(gaps)
    assert np.abs(empirical - (1 - np.exp(-gaps))).max() < 2 / math.sqrt(len(gaps))


@pytest.mark.parametrize("window_s", [0.25, 1.0, 10.0])
def test_the_mmpp_has_its_mean_and_index_of_dispersion(window_s: float) -> None:
    # Fischer and Meier-Hellstern (1993), the variance of the counts of a stationary two-state MMPP.
    slow, fast, out_slow, out_fast = 5.0, 80.0, 1 / 2.0, 1 / 0.5
    process = Mmpp((slow, fast), (2 * NS_PER_S, NS_PER_S // 2))
    assert process.mean_rate_per_s == pytest.approx((slow * out_fast + fast * out_slow) / (out_slow + out_fast))
    arrival_ns = times(process, 100)
    assert len(arrival_ns) / arrival_ns[-1] * NS_PER_S == pytest.approx(process.mean_rate_per_s, rel=0.03)
    total = out_slow + out_fast
    limit = 2 * (slow - fast) ** 2 * out_slow * out_fast / (total**2 * (slow * out_fast + fast * out_slow))
    expected = 1 + limit * (1 - (1 - math.exp(-total * window_s)) / (total * window_s))
    assert dispersion(arrival_ns, int(window_s * NS_PER_S)) == pytest.approx(expected, rel=0.08)


def test_an_mmpp_of_equal_rates_is_a_poisson_process() -> None:
    arrival_ns = times(Mmpp((40.0, 40.0), (NS_PER_S, NS_PER_S)))
    gaps = np.diff(arrival_ns)
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.02)
    assert gaps.mean() == pytest.approx(NS_PER_S / 40, rel=0.01)
    assert dispersion(arrival_ns, NS_PER_S) == pytest.approx(1, abs=0.1)


def test_a_silent_state_of_an_mmpp_is_silent() -> None:
    # Rate 1e6 for 10 us on average: gaps inside a burst are about 1 us, those between bursts about 1 s.
    gaps = np.diff(times(Mmpp((0.0, 1e6), (NS_PER_S, 10_000)), 4))
    assert ((gaps < 100_000) | (gaps > 1_000_000)).mean() > 0.999
    assert (gaps > 100_000).mean() == pytest.approx(
        1 / 11, rel=0.05
    )  # a burst is geometric with mean 10, empty ones too


def test_diurnal_counts_follow_the_integral_of_the_rate() -> None:
    rate, swing, period_s = 200.0, 0.8, 60.0
    arrival_s = times(Diurnal(rate, 1 + swing, int(period_s * NS_PER_S)), 80) / NS_PER_S
    periods = int(arrival_s[-1] // period_s)
    phase = arrival_s[arrival_s < periods * period_s] % period_s
    edges = np.linspace(0, period_s, 13)
    omega = 2 * math.pi / period_s
    integral = rate * edges - swing * rate / omega * (np.cos(omega * edges) - 1)
    expected = np.diff(integral) * periods
    found = np.histogram(phase, edges)[0]
    assert (np.abs(found - expected) < 5 * np.sqrt(expected)).all()
    assert expected.max() / expected.min() > 5


def test_a_flat_diurnal_process_has_the_mean_rate() -> None:
    arrival_ns = times(Diurnal(50.0, 1.0, NS_PER_S))
    assert len(arrival_ns) == BLOCKS * 8192
    assert np.diff(arrival_ns).mean() == pytest.approx(NS_PER_S / 50, rel=0.01)


def test_centuries_of_arrivals_are_no_coarser_than_one_block() -> None:
    # Gaps of 1 h: a block is 0.9 years, whose floats step by 4 ns; floats from time 0 would step by 256 ns here.
    arrival_ns = times(Gamma(1 / 3600, 0.001), 40)
    assert arrival_ns[-1] > 2**60
    assert np.diff(arrival_ns).std() == pytest.approx(3.6e9, rel=0.02)
    assert len(np.unique(arrival_ns[-1000:] % 1024)) > 200


def thinned(arrival_ns: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    ones = np.ones(len(arrival_ns), np.int64)
    whole = make_batch({"arrival_ns": arrival_ns, "prompt_tokens": ones, "output_tokens": ones}, len(ones))
    [batch] = Part(fraction=fraction, seed=5).of([whole])
    kept: NDArray[np.int64] = batch.column("arrival_ns").to_numpy()
    return kept


@pytest.mark.parametrize("fraction", [0.5, 0.05])
@pytest.mark.parametrize(("process", "cv"), [(Poisson(120.0), 1.0), (Gamma(30.0, 2.5), 2.5), (Gamma(30.0, 0.3), 0.3)])
def test_a_thinned_renewal_process_is_nearer_to_poisson(process: Poisson | Gamma, cv: float, fraction: float) -> None:
    """A gap is a geometric number of gaps: its squared coefficient of variation less 1 shrinks by the fraction."""
    gaps = np.diff(thinned(times(process, 200), fraction))
    assert gaps.mean() * fraction * process.rate_per_s / NS_PER_S == pytest.approx(1, abs=5 * cv / math.sqrt(len(gaps)))
    assert (gaps.std() / gaps.mean()) ** 2 == pytest.approx(1 + fraction * (cv**2 - 1), rel=0.04)


@pytest.mark.parametrize("fraction", [0.5, 0.1])
def test_thinned_counts_are_dispersed_less(fraction: float) -> None:
    """Of any process, over any window: variance over mean less 1 shrinks by the fraction."""
    arrival_ns, window_ns = times(Mmpp((5.0, 80.0), (2 * NS_PER_S, NS_PER_S // 2)), 200), 2 * NS_PER_S
    expected = 1 + fraction * (dispersion(arrival_ns, window_ns) - 1)
    assert expected > 1.5
    assert dispersion(thinned(arrival_ns, fraction), window_ns) == pytest.approx(expected, rel=0.05)


def draws(law: Lengths, n: int = 200_000) -> NDArray[np.int64]:
    return law.draw(stream(3, "prompt_tokens"), n)


def test_the_lognormal_has_its_median_sigma_and_mass_at_the_cap() -> None:
    law = Lognormal(700, 0.9, 8000)
    values = draws(law)
    assert np.median(values) == pytest.approx(700, rel=0.01)
    assert np.log(draws(Lognormal(700, 0.9))).std() == pytest.approx(0.9, rel=0.01)
    assert law.mass_at_max == pytest.approx(0.5 * math.erfc(math.log(7999.5 / 700) / 0.9 / math.sqrt(2)))
    error = math.sqrt(law.mass_at_max / len(values))
    assert (values == 8000).mean() == pytest.approx(law.mass_at_max, abs=5 * error)
    assert values.max() == 8000
    assert draws(Lognormal(1, 3.0, 50)).min() == 1


def test_a_cap_far_into_the_body_clips_half() -> None:
    values = draws(Lognormal(100, 1.0, 100))
    assert (values == 100).mean() == pytest.approx(Lognormal(100, 1.0, 100).mass_at_max, abs=0.006)
    assert (draws(Lognormal(100, 0.0, 200)) == 100).all()


@pytest.mark.parametrize("mean", [1.0, 1.5, 200.0])
def test_the_exponential_is_geometric_with_its_exact_mean(mean: float) -> None:
    values = draws(Exponential(mean))
    assert values.min() == 1
    assert values.mean() == pytest.approx(mean, abs=5 * mean / math.sqrt(len(values)))
    assert (values == 1).mean() == pytest.approx(1 / mean, abs=0.006)
    longer = values[values > 1] - 1  # no memory
    if len(longer):
        assert longer.mean() == pytest.approx(mean, rel=0.03)


def test_the_uniform_law_covers_both_ends_evenly() -> None:
    values, counts = np.unique(draws(Uniform(3, 9)), return_counts=True)
    assert values.tolist() == list(range(3, 10))
    expected = 200_000 / 7
    assert ((counts - expected) ** 2 / expected).sum() < 22.5  # chi-square, 6 degrees of freedom, 0.1 %
