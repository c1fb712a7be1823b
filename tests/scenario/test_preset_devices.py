"""Every preset's device has a data sheet, and a small serving scenario is valid on it."""

from pathlib import Path

import pytest

from simulator import catalog
from simulator.device.accelerator import load_accelerator
from simulator.scenario.load import load
from simulator.topology.presets import resolve_preset

PRESETS = catalog.names("topologies")


@pytest.mark.parametrize("name", PRESETS)
def test_the_device_of_a_preset_has_a_sheet(name: str) -> None:
    parameters = resolve_preset(name).model_dump()
    assert load_accelerator(parameters["device"]).name == parameters["device"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_serves_a_small_model_over_the_devices_of_a_node(name: str, tmp_path: Path) -> None:
    parameters = resolve_preset(name)
    node = parameters.devices_per_node
    tensor = max(degree for degree in (1, 2, 4) if degree <= node)
    file = tmp_path / "small.yaml"
    file.write_text(
        "schema: 1\n"
        f"topology: {{preset: {name}}}\n"
        "workload:\n"
        "  requests: 10\n"
        "  arrivals: {poisson: {rate: 1 / s}}\n"
        "  prompt_tokens: 100\n"
        "  output_tokens: 10\n"
        "serving:\n"
        "  model: llama-3.1-8b\n"
        f"  colocated: {{instances: 1, layout: {{tensor: {tensor}}}}}\n"
    )
    scenario = load(file)
    assert scenario.topology.parameters["device"] == parameters.device
