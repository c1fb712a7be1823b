"""docs/query.md: every block runs, and SQL and pandas give the same rows."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

PAGE = Path(__file__).parent.parent / "docs" / "query.md"
BLOCKS = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the page from its top, and return its names and, under `pairs`, what each pair of blocks found."""
    names: dict[str, Any] = {}
    pairs: list[tuple[pd.DataFrame, pd.DataFrame]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("query"))
        for code in BLOCKS.findall(PAGE.read_text(encoding="utf-8")):
            exec(compile(code, str(PAGE), "exec"), names)
            if "frame" in names:
                pairs.append((names.pop("sql"), names.pop("frame")))
    return {**names, "pairs": pairs}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_sql_and_pandas_find_the_same_rows(session) -> None:
    assert len(session["pairs"]) == 6
    for sql, frame in session["pairs"]:
        assert len(sql)
        pd.testing.assert_frame_equal(sql, frame.reset_index(drop=True), check_dtype=False, rtol=1e-12)


def test_the_answers_are_those_of_the_summary(session) -> None:
    minutes, fullest, roles, slowest, *_ = (sql for sql, _ in session["pairs"])
    summary = session["run"].summary
    assert minutes.requests.sum() == summary["requests"]["total"]
    assert minutes.ttft_p99_ms.min() / 1e3 <= summary["ttft"]["p99"] <= minutes.ttft_p99_ms.max() / 1e3
    assert fullest.kv_max[0] == summary["utilisation"][fullest.role[0]]["kv_max"]
    assert roles.kwh.sum() == pytest.approx(summary["energy"]["kwh"])
    assert slowest.total_ms.max() / 1e3 == pytest.approx(summary["e2e"]["max"])


def test_the_parts_of_a_request_are_all_of_its_time(session) -> None:
    parts = session["parts"].set_index("request_id")
    assert (parts.drop(columns="total_ms") >= 0).all(axis=None)
    assert (parts.drop(columns="total_ms").sum(axis=1) == parts.total_ms).all()
