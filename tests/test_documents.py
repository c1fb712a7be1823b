"""YAML documents: values of the 1.2 core schema, positions of every key, and refusals with a place."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.documents import MAX_DEPTH, Document, Position, dotted, parse_document, read_document
from simulator.errors import InputError


def value(text: str) -> Any:
    return parse_document(text, "f").value


def complaint(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_document(text, "f")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("-7", -7),
        ("0x1F", 31),
        ("0o17", 15),
        ("0", 0),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("yes", "yes"),
        ("off", "off"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        ('"\\u00e9"', "é"),
        ("!!str 1", "1"),
        ("0b1", "0b1"),
        ("[1, [2]]", (1, (2,))),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("", None),
        ("# x", None),
        ("|\n a\n b\n", "a\nb\n"),
        ("1: 2", {"1": 2}),
        ("true: 1", {"true": 1}),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
        ("=", "="),
        (".inf", float("inf")),
    ],
)
def test_values(text: str, expected: object) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_nan_is_nan() -> None:
    assert value(".nan") != value(".nan")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\na: 2", "f:2:1: a: key 'a' appears twice"),
        ("a:\n  b: 1\n  b: 2", "f:3:3: a.b: key 'b' appears twice"),
        ("a: 010", "f:1:4: a: '010' can be read as octal or decimal; allowed: no leading zero, or 0o for octal"),
        ("a: -012", "f:1:4: a: '-012' can be read"),
        ("a: !x 1", "f:1:4: a: tag !x is not allowed; allowed: plain YAML values"),
        ("a: !!int 1", "f:1:4: a: tag"),
        ("a: !!set {b}", "f:1:4: a: tag"),
        ("a: !!binary aGk=", "f:1:4: a: tag"),
        ("[a]: 1", "f:1:1: a key must be text"),
        ("a: [1, {2: [3}", "f:1:14: not valid YAML"),
        ("a: b: c", "f:1:5: not valid YAML"),
        ("a: *b", "f:1:4: a: alias *b stands for nothing"),
        ("a: &b [*b]", "f:1:8: a[0]: alias *b stands for nothing"),
        ("a\n---\nb", "f:2:1: more than one document"),
        ("%YAML 1.1\n---\na", "f:2:1: the directive asks for another YAML"),
        ("a: \x01", "f:1: not valid YAML: unacceptable character"),
        ('a: "\\ud800"', "f:1:4: a: half of a surrogate pair"),
        ('a: "\\UFFFFFFFF"', "f: not valid YAML"),
        ("[" * 50, "f:1:42: [0][0][0][0][0][0]: nested too deeply; allowed: at most 40 levels"),
    ],
)
def test_refusals(text: str, place: str) -> None:
    assert complaint(text).startswith(place)


def test_all_faults_of_a_document_come_at_once() -> None:
    assert complaint("a: 010\nb: !x 1\na: 1").splitlines()[0].startswith("f:1:4")
    assert len(complaint("a: 010\nb: !x 1\na: 1").splitlines()) == 3


def test_depth_is_allowed_up_to_its_bound() -> None:
    assert parse_document("[" * MAX_DEPTH + "]" * MAX_DEPTH, "f").value is not None


def test_positions() -> None:
    document = parse_document("a:\n  b: [1, {c: 2}]\nd: x", "f")
    assert document.position(("a",)) == Position("f", 1, 1)
    assert document.position(("a", "b")) == Position("f", 2, 3)
    assert document.position(("a", "b", 0)) == Position("f", 2, 7)
    assert document.position(("a", "b", 1, "c")) == Position("f", 2, 11)
    assert document.position(("a", "b", 1, "gone", 3)) == Position("f", 2, 10)  # the nearest that stands somewhere
    assert document.position(("d",)) == Position("f", 3, 1)
    assert Document("g", None).position(("a",)) == Position("g")


def test_an_alias_stands_where_its_anchor_does() -> None:
    document = parse_document("a: &x {b: [1]}\nc: *x", "f")
    assert document.value == {"a": {"b": (1,)}, "c": {"b": (1,)}}
    assert document.position(("c",)) == Position("f", 2, 1)
    assert document.position(("c", "b", 0)) == Position("f", 1, 12)


def test_dotted_paths() -> None:
    assert dotted(("a", 0, "b")) == "a[0].b"
    assert dotted(("expect", "ttft.p95")) == 'expect."ttft.p95"'
    assert dotted(()) is None


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1")  # with a byte order mark
    assert read_document(path).value == {"a": 1}
    assert read_document(path, "shown").position(("a",)).file == "shown"
    path.write_bytes(b"a: 1\nb: \xff")
    with pytest.raises(InputError, match=r"x.yaml:2: the file is not UTF-8"):
        read_document(path)
    with pytest.raises(InputError, match=r"gone.yaml: cannot read: No such file"):
        read_document(tmp_path / "gone.yaml")


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(plain)
def test_what_json_writes_is_read_back(data: Any) -> None:
    import json

    def frozen(item: Any) -> Any:
        if isinstance(item, list):
            return tuple(map(frozen, item))
        return {key: frozen(inner) for key, inner in item.items()} if isinstance(item, dict) else item

    assert value(json.dumps(data, ensure_ascii=False).replace("\x7f", "\\u007f").translate(CONTROLS)) == frozen(data)


CONTROLS = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF)}


@given(st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("{}[]:,&*!|>'\"%@`#-?\n \t"), max_size=60))
def test_any_text_is_a_document_or_an_input_error(text: str) -> None:
    with suppress(InputError):
        parse_document(text, "f")
