"""Tables of chosen experts: counts and choices say the same, windows are kept apart, faults are one clear error."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simulator.errors import InputError
from simulator.workload.expert_choices import read_choices


def test_choices_and_counts_say_the_same(tmp_path):
    choices = tmp_path / "choices.parquet"
    columns = {"layer": [3, 3, 5], "token": [0, 1, 0], "expert_0": [0, 1, 2], "expert_1": [1, 3, 3]}
    pq.write_table(pa.table({name: pa.array(values, pa.uint8()) for name, values in columns.items()}), choices)
    counts = tmp_path / "counts.csv"
    counts.write_text("layer,expert,tokens\n3,0,1\n3,1,2\n3,3,1\n5,2,1\n5,3,1\n")
    for path in (choices, counts):
        (found,) = read_choices(path, 4, 2)
        assert np.array_equal(found, [[1, 2, 0, 1], [0, 0, 1, 1]])


def test_windows(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text("window,layer,expert,tokens\n7,0,0,5\n7,0,1,1\n8,0,1,8\n")
    assert [window.tolist() for window in read_choices(path, 2, 1)] == [[[5, 1]], [[0, 8]]]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("layer,expert\n0,1\n", "columns layer, expert"),
        ("layer,expert_0\n0,1\n", "1 experts chosen by each token, the model's tokens choose 2"),
        ("layer,expert,tokens\n0,4,9\n", "expert 4, the model has 0 to 3"),
        ("layer,expert,tokens\n0,1,-9\n", "column tokens has empty or negative values"),
        ("layer,expert,tokens\n0,1,some\n", "column tokens"),
        ("layer,expert,tokens\n", "no rows"),
        ("window,layer,expert,tokens\n0,0,1,9\n1,0,1,9\n4,0,2,9\n", "window 2 has no rows"),
        ("layer,expert,tokens\n0,1\n", "no table of chosen experts"),
    ],
)
def test_faults_are_named(tmp_path, text, what):
    path = tmp_path / "counts.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=what):
        read_choices(path, 4, 2)
    with pytest.raises(InputError, match="no table of chosen experts"):
        read_choices(tmp_path / "none.parquet", 4, 2)
