"""What every device of the catalogue can do: steps of a model within bounds, formats that it multiplies or not."""

import pytest

from simulator import catalog
from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.device.timing import time_of
from simulator.errors import InputError
from simulator.model.forward import Work
from simulator.model.layout import Layout
from simulator.model.operators import Gemm
from simulator.model.precision import FORMATS
from simulator.model.split import weight_bytes_per_rank
from simulator.model.transformer import load_model

DEVICES = catalog.names("topologies/devices")
SHEETS = {name: load_accelerator(name) for name in DEVICES}
MODEL = load_model("llama-3.1-8b")


@pytest.mark.parametrize("name", DEVICES)
def test_a_step_is_no_faster_than_the_weights_stream_and_the_products_compute(name: str) -> None:
    # decode of one token reads each weight but the embedding once; a prompt of n tokens computes 2 n per weight
    sheet = SHEETS[name]
    cost = RooflineCost(MODEL, Layout(), sheet)
    weights = weight_bytes_per_rank(MODEL, Layout()) - 2 * MODEL.vocabulary * MODEL.hidden
    floor_ns = weights / sheet.memory.bandwidth * 1e9
    assert floor_ns < cost.step_ns(Work(batch=1, context=1)) < 100 * floor_ns
    tokens = 4096
    inner = weights - 2 * MODEL.vocabulary * MODEL.hidden  # without the head, which sees one row
    floor_ns = 2 * tokens * inner / 2 / sheet.rate("bf16") * 1e9
    assert floor_ns < cost.prefill_ns(tokens, tokens * (tokens + 1) // 2, 1) < 10 * floor_ns


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_device_multiplies_in_its_own_formats_and_refuses_others(name: str, form: str) -> None:
    sheet, compute = SHEETS[name], FORMATS[form].compute
    shape = Gemm(4096, 4096, 4096, form)
    if compute in sheet.peak or compute in ("bf16", "fp16"):
        assert time_of(shape, sheet).ns >= shape.flops / sheet.rate(compute) * 1e9
    else:
        with pytest.raises(InputError, match=f"does not multiply in {compute}"):
            time_of(shape, sheet)


@pytest.mark.parametrize("name", [name for name in DEVICES if SHEETS[name].domain >= 8])
def test_the_more_devices_share_a_step_the_less_each_computes(name: str) -> None:
    # switches: more is always faster; a mesh gives two ranks one link, so from two on; hosts take all of the gain
    sheet = SHEETS[name]
    steps = []
    for tensor in (1, 2, 4, 8):
        cost = RooflineCost(MODEL, Layout(tensor=tensor), sheet)
        steps.append(cost.prefill_ns(4096, 4096 * 4097 // 2, 1))
    if name == "l40s" or sheet.scale_up.like == "l40s":
        assert steps[3] > steps[0] / 4
    else:
        assert steps[3] < 0.6 * steps[0]
        first = 1 if sheet.scale_up.joined == "mesh" else 0
        assert steps[first:] == sorted(steps[first:], reverse=True)
