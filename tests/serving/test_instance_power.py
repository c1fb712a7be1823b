"""Power rows of an engine: phases at their power for as long as they last, whatever the windows; a run's energy."""

import pytest

from simulator import load, simulate
from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.device.power import watts
from simulator.model.layout import Layout
from simulator.model.transformer import load_model
from simulator.results.tables import INSTANCES
from simulator.serving.paging import Paging
from simulator.serving.power import InstancePower

DEVICE = load_accelerator("a100-sxm-80gb")
COST = RooflineCost(load_model("llama-3-8b"), Layout(tensor=2), DEVICE)
METER = InstancePower(COST, Paging(16), prompt_tokens=4096)
LOADED_W = watts(DEVICE).idle + watts(DEVICE).active


def window(start: int, prefill: int, decode: int, idle: int, running: float = 0, kv_blocks: float = 0) -> tuple:
    end = start + prefill + decode + idle
    row = ("a", "colocated", start, end, "idle", prefill, decode, idle, running, 9, 0.0, 0, kv_blocks, 99, 999, 5)
    assert len(row) == len(INSTANCES.columns)
    return row


def test_a_window_without_work_draws_what_a_loaded_device_does() -> None:
    *_, devices, power_w, energy_j = METER.row(window(10**9, 0, 0, 10**9))
    assert devices == 2
    assert power_w == energy_j == pytest.approx(2 * LOADED_W)


def test_phases_add_up() -> None:
    """A window of several phases has the energy of windows of one each, and power is energy over time."""
    whole = METER.row(window(0, 10**9, 0, 3 * 10**9))
    parts = METER.row(window(0, 10**9, 0, 0)), METER.row(window(10**9, 0, 0, 3 * 10**9))
    assert whole[-1] == pytest.approx(sum(part[-1] for part in parts))
    assert whole[-2] == pytest.approx(whole[-1] / 4)


def test_decode_is_taken_at_the_mean_of_its_busy_time() -> None:
    """Half a window idle halves its means and not the power of decode."""
    busy = METER.row(window(0, 0, 10**9, 0, running=32, kv_blocks=4096))
    half = METER.row(window(0, 0, 10**9, 10**9, running=16, kv_blocks=2048))
    assert half[-1] - busy[-1] == pytest.approx(2 * LOADED_W)


def test_every_phase_lies_between_a_loaded_device_and_its_tdp() -> None:
    phases = [METER.row(window(0, 10**9, 0, 0))[-2] / 2]
    phases += [METER.decode_w(batch, batch * context) for batch in (1, 16, 256) for context in (128, 4096)]
    assert all(LOADED_W < drawn <= DEVICE.power.tdp for drawn in phases)
    assert phases[0] == DEVICE.power.tdp  # a long prompt runs into the cap


@pytest.mark.parametrize("layout", [Layout(pipeline=2), Layout(data=2)])
def test_ranks_without_a_sequence_wait(layout: Layout) -> None:
    """One sequence on two ranks is the work of one device, and a second device that holds its engine and waits."""
    one, two = (InstancePower(RooflineCost(COST.model, each, DEVICE), Paging(16), 4096) for each in (Layout(), layout))
    alone, each, full = one.decode_w(1, 1024), two.decode_w(1, 1024), two.decode_w(2, 2048)
    assert 2 * (each - LOADED_W) == pytest.approx(alone - LOADED_W, rel=0.01)
    assert full == pytest.approx(alone, rel=0.01)


def test_a_run_says_what_its_engines_drew(tmp_path) -> None:
    """The rows of `power` are those of `instances`; their energy is the summary's, within idle and TDP."""
    run = simulate(load("quickstart"), out=tmp_path / "run", check=True)
    power, instances = run.table("power").to_pandas(), run.instances
    assert len(power) == len(instances[instances.end_ns > instances.start_ns])
    assert (power.energy_j * 1e9).tolist() == pytest.approx((power.power_w * (power.end_ns - power.start_ns)).tolist())
    energy = run.summary["energy"]
    assert energy["joules"] == pytest.approx(power.energy_j.sum())
    tokens = run.requests.generated_tokens.sum()
    assert energy["joules_per_output_token"] == pytest.approx(energy["joules"] / tokens)
    device = load_accelerator(run.manifest["device"])
    drawn = energy["mean_w"] / run.manifest["devices_leased"]
    assert watts(device).idle + watts(device).active < drawn < device.power.tdp


def test_constants_of_one_s_own_say_nothing_of_power(tmp_path) -> None:
    text = 'cost: {linear: {prefill: {per_token: "20 us"}, decode: {fixed: "10 ms"}}}'
    scenario = load("quickstart", overrides=[f"serving.{text.replace(': ', '=', 1)}"])
    run = simulate(scenario, out=tmp_path / "run")
    assert "power" not in run.manifest["tables"]
    assert run.summary["energy"] == {}
