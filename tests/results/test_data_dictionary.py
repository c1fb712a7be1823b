from pathlib import Path

from simulator.results.dictionary import data_dictionary


def test_the_page_is_the_generated_one():
    page = Path(__file__).parents[2] / "docs" / "data-dictionary.md"
    assert page.read_text() == data_dictionary(), (
        "run: python -m simulator.results.dictionary > docs/data-dictionary.md"
    )
