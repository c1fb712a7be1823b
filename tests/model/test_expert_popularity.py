"""Popularities: rows sum to the experts of a token, none above one; the laws' ratios; drift only swaps."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simulator.model.expert_popularity import counted, power_law, redrawn, scaled, uniform, zipf
from simulator.randomness import stream


@given(
    weights=st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=40),
    part=st.floats(0, 1),
)
@example(weights=[287381.7185845717] * 3, part=1.0)  # all are needed, and a third of the sum rounds up
def test_scaled_weights_sum_to_the_choices_and_none_passes_one(weights, part):
    active = 1 + int(part * (len(weights) - 1))
    found = scaled(np.array(weights), active)
    assert found.sum() == pytest.approx(active)
    assert found.max() <= 1 + 1e-12
    order = np.argsort(weights)
    assert (np.diff(found[order]) >= -1e-12).all()  # who has more weight is chosen no less
    below = found < 1 - 1e-9
    ratios = found[below] / np.array(weights)[below]
    assert len(ratios) == 0 or np.ptp(ratios) <= 1e-9 * ratios.max()  # in proportion below certainty


def test_laws_have_their_ratios():
    random = stream(1, "test")
    even, law = uniform(3, 64, 6), zipf(3, 64, 6, 0.5, random)
    assert (even == 6 / 64).all()
    for row in law:
        falling = -np.sort(-row)
        assert falling[0] / falling[3] == pytest.approx(2)  # 4^0.5
    assert not np.array_equal(law[0], law[1])  # each layer has its own order
    assert zipf(2, 64, 6, 0.0, random) == pytest.approx(uniform(2, 64, 6))
    loads = np.sort(power_law(1, 2000, 8, 1.2, 50.0, random)[0])
    assert loads[-1] / loads[0] == pytest.approx(50, rel=0.02)
    # the density x^-1.2: as many experts below x as its integral says
    share = (1 - 10**-0.2) / (1 - 50**-0.2)
    assert (loads < 10 * loads[0]).mean() == pytest.approx(share, abs=0.01)


@given(share=st.floats(0, 1), seed=st.integers(0, 99))
def test_drift_swaps_a_share_of_the_experts(share, seed):
    before = zipf(2, 16, 2, 0.8, stream(0, "p"))
    after = redrawn(before, share, stream(seed, "drift"))
    assert np.array_equal(np.sort(after, axis=1), np.sort(before, axis=1))
    assert ((after != before).sum(axis=1) <= round(share * 16)).all()
    assert np.array_equal(after, redrawn(before, share, stream(seed, "drift")))


def test_counts_become_shares():
    assert counted([[10, 30, 20, 0]], 1)[0] == pytest.approx([1 / 6, 1 / 2, 1 / 3, 0])
    assert counted([[10, 90, 10, 10]], 2)[0] == pytest.approx([1 / 3, 1, 1 / 3, 1 / 3])
    with pytest.raises(ValueError, match="layer 0 uses 1 experts, and each token 2"):
        counted([[10, 0]], 2)
