"""`simulate model`: the list, one card, a `config.json`, and the page that is generated from the cards."""

import json
from pathlib import Path

import pytest

from simulator import catalog, cli
from simulator.model.transformer import load_model
from simulator.report.models import page

QWEN3_8B = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


def simulate(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    return int(stop.value.code or 0)


def test_the_list_has_every_shipped_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("model", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(catalog.names("workloads/models"))
    [row] = [line for line in lines if line.startswith("deepseek-v3 ")]
    assert row.split()[1:] == ["671", "B", "36.63", "B", "70,272", "fp8_block"]


def test_the_list_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("model", "list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert sorted(rows) == list(catalog.names("workloads/models"))
    assert rows["llama-3-8b"] == {
        "name": "llama-3-8b",
        "parameters": 8_030_261_248,
        "active_parameters": 8_030_261_248 - 128256 * 4096,
        "draft_parameters": 0,
        "kv_bytes_per_token": 131_072,
        "weight_bytes": 2 * 8_030_261_248,
        "formats": "bf16",
    }
    assert rows["gpt-oss-120b"]["formats"] == "bf16, experts w4a16_mxfp4"


@pytest.mark.parametrize("name", catalog.names("workloads/models"))
def test_every_card_is_shown_with_its_sources(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("model", "show", name) == 0
    shown = capsys.readouterr().out
    model = load_model(name)
    assert f"{model.parameters:,}" in shown
    assert all(source in shown for source in model.sources.values())


def test_a_config_is_shown_by_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "qwen" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(QWEN3_8B))
    assert simulate("model", "show", str(path)) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("qwen\n")
    assert "8,190,735,360" in shown
    assert "config.json: num_hidden_layers" in shown
    assert simulate("model", "show", str(path), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == load_model("qwen3-8b").parameters
    assert found["card"]["checkpoint"]["weights"] == "fp8_block"
    tables = 2 * 151936 * 4096 + (2 * 36 + 1) * 4096  # in 16 bits, as norms are; the rest is in 8 and scales
    assert found["weight_bytes"] == round((found["parameters"] - tables) * (1 + 4 / 16384) + 2 * tables)


def test_what_is_wrong_is_said_and_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("model", "show", "llama-3-9b") == 2
    assert "did you mean 'llama-3-8b'" in capsys.readouterr().err
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "mamba"}))
    assert simulate("model", "show", str(path)) == 2
    assert "state-space layers" in capsys.readouterr().err


def test_the_page_is_the_generated_one() -> None:
    written = Path(__file__).parents[2] / "docs" / "models.md"
    assert written.read_text() == page(), "run: python -m simulator.report.models > docs/models.md"
