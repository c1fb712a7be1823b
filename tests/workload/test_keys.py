"""Keys of prompts: full hash blocks only, contexts of sessions and prefixes, numbers of sessions."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.serving.prefix_cache import session_keys
from simulator.workload.keys import context_keys, hash_keys, session_number
from simulator.workload.schema import make_batch


def batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    plain = {"prompt_tokens": 1000, "output_tokens": 100}
    full = [{"arrival_ns": 0} | plain | row for row in rows]
    names = {name for row in full for name in row}
    return make_batch({name: [row.get(name) for row in full] for name in names}, len(full))


chains = st.lists(st.one_of(st.none(), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6)), min_size=1, max_size=9)


@settings(max_examples=200)
@given(chains=chains, prompts=st.integers(1, 400), begin=st.integers(0, 8))
def test_a_block_that_the_prompt_does_not_fill_has_no_key(
    chains: list[list[int] | None], prompts: int, begin: int
) -> None:
    rows = batch([{"prompt_tokens": prompts + 60 * i, "prefix_hashes": chain} for i, chain in enumerate(chains)])
    expected = [tuple((chain or [])[: (prompts + 60 * i) // 64]) for i, chain in enumerate(chains)]
    begin = min(begin, len(chains) - 1)
    assert list(hash_keys(rows.slice(begin), 64)) == expected[begin:]


def test_hashes_of_many_rows_come_in_order() -> None:
    rows = batch([{"prompt_tokens": 128, "prefix_hashes": [i, i + 1]} for i in range(10_000)])
    assert list(hash_keys(rows, 64)) == [(i, i + 1) for i in range(10_000)]


def test_turns_of_a_session_begin_with_the_context_of_the_turn_before() -> None:
    rows = batch(
        [
            {"session": "s", "prompt_tokens": 500, "output_tokens": 140},
            {"session": "t", "prompt_tokens": 900, "output_tokens": 1},
            {"session": "s", "prompt_tokens": 700, "output_tokens": 60},
            {},
        ]
    )
    first, other, second, alone = (tuple(keys) for keys in context_keys(rows, 64, session_keys))
    assert [len(keys) for keys in (first, other, second, alone)] == [10, 14, 11, 0]
    assert second[:10] == first
    assert not set(first) & set(other)


def test_prefixes_are_shared_by_sessions_and_lone_requests() -> None:
    shared = {"prefix": 3, "prefix_tokens": 200}
    rows = batch([shared | {"session": "s"}, shared | {"session": "t"}, shared, {"session": "s"}])
    first, second, alone, without = (tuple(keys) for keys in context_keys(rows, 64, session_keys))
    assert len(first) == len(second) == len(without) == 17
    assert first[:3] == second[:3] == alone
    assert len(alone) == 3
    assert not set(first[3:]) & set(second[3:])
    assert first[3:] == without[3:]
    assert len(set(first)) == 17


@pytest.mark.parametrize("name", ["0", "7", "123456789"])
def test_small_numbers_stand_for_themselves(name: str) -> None:
    assert session_number(name) == int(name)


@given(st.lists(st.text(), unique=True, max_size=30))
def test_sessions_have_numbers_of_their_own(names: list[str]) -> None:
    numbers = [session_number(name) for name in [*names, "0" * 3, "01", "1"] if name]
    assert numbers == [session_number(name) for name in [*names, "000", "01", "1"] if name]
    assert len(set(numbers)) == len({*filter(None, names), "000", "01", "1"})
    # The keys of one never reach those of the next, whatever its context.
    assert session_keys(5, 2**31, 1)[-1] > session_keys(6, 1, 1)[0]
