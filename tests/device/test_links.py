from hypothesis import given
from hypothesis import strategies as st

from simulator import catalog
from simulator.device.accelerator import load_accelerator
from simulator.device.links import collective
from simulator.model.operators import Collective

DEVICES = [
    device for device in map(load_accelerator, catalog.names("topologies/devices")) if device.scale_up is not None
]
device_of = st.sampled_from(DEVICES)


@given(device_of, st.integers(1, 10**10), st.integers(0, 10**9), st.integers(2, 8))
def test_collectives_grow_with_the_message_and_a_gather_moves_half(device, message, more, ranks) -> None:
    reduce, gather = (
        collective(Collective(what, message, ranks, "tensor"), device) for what in ("all_reduce", "all_gather")
    )
    assert collective(Collective("all_reduce", message + more, ranks, "tensor"), device).ns >= reduce.ns
    assert gather.link_ns * 2 == reduce.link_ns
    assert reduce.fixed_ns == gather.fixed_ns > 0


def test_a_large_message_is_bound_by_the_link() -> None:
    h100 = load_accelerator("h100-sxm-80gb")
    assert collective(Collective("all_reduce", 1 << 30, 8, "tensor"), h100).bound == "link"
