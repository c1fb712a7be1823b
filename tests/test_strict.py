"""Strict models: every fault with its place, one-of choices in all forms, tagged unions without their tags."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Discriminator, Field, Tag, model_validator

from simulator.documents import parse_document
from simulator.errors import InputError
from simulator.strict import Bandwidth, Count, Duration, Fault, LocatedError, OneOf, Rate, Strict, one_of, validate


class Box(Strict):
    width: Count
    load: Rate = 1.0


class Ball(Strict):
    radius: float = 1.0


class Value(Strict):
    value: Count


Shape = one_of("Shape", {"box": Box, "ball": Ball, "constant": Value}, number="constant")


class Left(Strict):
    left: Count


class Right(Strict):
    right: tuple[Box, ...]
    low: int = 0
    high: int = 9

    @model_validator(mode="after")
    def _ordered(self) -> "Right":
        if self.low > self.high:
            raise LocatedError(Fault(("low",), "above high", "less", "1"), Fault((), "disordered"))
        return self


def which(value: Any) -> str:
    return "left" if isinstance(value, Left) or (isinstance(value, dict) and "left" in value) else "right"


class Everything(Strict):
    number: Count = Field(default=1, alias="n")
    time: Duration = 0
    shape: Shape = Shape.model_validate("ball")  # type: ignore[valid-type]
    side: Annotated[Annotated[Left, Tag("left")] | Annotated[Right, Tag("right")], Discriminator(which)] = Left(left=1)
    maybe: Box | None = None
    boxes: dict[str, Box] = Field(default_factory=dict)


def read(text: str) -> Everything:
    return validate(Everything, parse_document(text, "f"))


def complaints(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        read(text)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("n: 0", "f:1:1: n: expected greater than or equal to 1, found 0"),
        ("n: true", "f:1:1: n: expected a whole number, found True"),
        ("n: 1.0", "f:1:1: n: expected a whole number, found 1.0"),
        ("number: 1", "f:1:1: number: unknown key 'number'; allowed: n, time, shape, side, maybe, boxes"),
        ("tiem: 1 s", "f:1:1: tiem: unknown key 'tiem'; allowed: n, time, shape, side, maybe, boxes; did"),
        ("time: 1 kg", "f:1:1: time: '1 kg' has unit 'kg', which is no unit of duration"),
        ("maybe: 3", "f:1:1: maybe: expected a mapping of keys, found 3; allowed: keys width, load"),
        ("maybe: {}", "f:1:1: maybe.width: missing key 'width'"),
        ("maybe: {width: 1, widht: 2}", "f:1:19: maybe.widht: unknown key 'widht'; allowed: width, load; did"),
        ("boxes: {a: {width: 0}}", "f:1:13: boxes.a.width: expected greater than or equal to 1, found 0"),
        ("boxes: [1]", "f:1:1: boxes: expected a mapping of keys, found (1,)"),
        ("shape: bal", "f:1:1: shape.bal: unknown key 'bal'; allowed: box, ball, constant; did you mean 'ball'?"),
        ("shape: box", "f:1:1: shape.box.width: missing key 'width'"),
        ("shape: {box: {width: 1}, ball: {}}", "f:1:1: shape: exactly one of box, ball, constant is needed"),
        ("shape: {}", "f:1:1: shape: exactly one of box, ball, constant is needed, found none"),
        ("shape: {ball: null}", "f:1:1: shape: ball needs its parameters"),
        ("shape: 0", "f:1:1: shape.constant.value: expected greater than or equal to 1, found 0"),
        ("shape: true", "f:1:1: shape: expected a mapping of keys, found True"),
        ("side: {left: 0}", "f:1:8: side.left: expected greater than or equal to 1, found 0"),
        ("side: {left: 1, right: []}", "f:1:17: side.right: unknown key 'right'; allowed: left"),
        ("side: {right: 1}", "f:1:8: side.right: expected a list, found 1"),
        ("side: {right: [{width: 1}, {width: x}]}", "f:1:29: side.right[1].width: expected a whole number, found 'x'"),
        ("side: {rihgt: []}", "f:1:8: side.rihgt: unknown key 'rihgt'; allowed: right, low, high; did"),
        ("side: {right: [], low: 10}", "f:1:19: side.low: above high; allowed: less; did you mean '1'?"),
        ("side: 5", "f:1:1: side: expected a mapping of keys, found 5; allowed: keys right, low, high"),
    ],
)
def test_faults_have_their_place(text: str, problem: str) -> None:
    assert problem in [line[: len(problem)] for line in complaints(text)]


def test_faults_come_at_once_in_the_order_of_the_file() -> None:
    found = complaints("shape: bal\ntime: 1\nn: 0")
    assert [line.split(":")[1] for line in found] == ["1", "2", "3"]


def test_several_faults_of_one_validator() -> None:
    assert complaints("side: {right: [], low: 10}")[0] == "f:1:1: side: disordered"


@pytest.mark.parametrize("text", ["shape: ball", "shape: {ball: {}}", "shape: {ball: {radius: 1}}", "{}"])
def test_a_choice_by_name_or_with_parameters(text: str) -> None:
    shape: OneOf = read(text).shape
    assert shape.name == "ball"
    assert shape.parameters == Ball()


def test_a_bare_number_is_a_choice() -> None:
    shape: OneOf = read("shape: 7").shape
    assert (shape.name, shape.parameters) == ("constant", Value(value=7))


def test_a_choice_writes_only_what_was_chosen() -> None:
    assert read("shape: {box: {width: 2, load: 6 / min}}").model_dump()["shape"] == {
        "box": {"width": 2, "load": "0.1 / s"}
    }


def test_models_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read("{}").time = 3  # type: ignore[misc]


@pytest.mark.parametrize(("text", "what"), [("", "an empty file"), ("[1]", "(1,)"), ("x", "'x'")])
def test_a_document_must_be_a_mapping(text: str, what: str) -> None:
    keys = "keys n, time, shape, side, maybe, boxes"
    assert complaints(text)[0].endswith(f"expected a mapping of keys, found {what}; allowed: {keys}")


def test_quantities_are_written_with_their_unit() -> None:
    class Link(Strict):
        bandwidth: Bandwidth
        latency: Duration

    link = validate(Link, parse_document("{bandwidth: 400 Gbps, latency: 1500 ns}", "f"))
    assert (link.bandwidth, link.latency) == (50 * 10**9, 1500)
    assert link.model_dump() == {"bandwidth": "50 GB/s", "latency": "1500 ns"}


def test_the_json_schema_of_a_choice_has_all_its_forms() -> None:
    forms = Everything.model_json_schema()["$defs"]["Shape"]["oneOf"]
    assert forms[0] == {"type": "integer", "minimum": 1}
    assert forms[1] == {"enum": ["ball"]}  # those that need no parameters
    assert list(forms[2]["properties"]) == ["box", "ball", "constant"]
    assert (forms[2]["minProperties"], forms[2]["maxProperties"]) == (1, 1)


def test_a_fault_in_a_part_chosen_by_its_kind_is_placed_without_the_kind() -> None:
    class Round(Strict):
        kind: Literal["round"]
        radius: int

    class Square(Strict):
        kind: Literal["square"]
        side: int

    class Plate(Strict):
        shape: Annotated[Round | Square, Field(discriminator="kind")]

    with pytest.raises(InputError) as caught:
        validate(Plate, parse_document("shape:\n  kind: square\n  side: x\n", "plate.yaml"))
    assert str(caught.value).startswith("plate.yaml:3:3: shape.side: expected a whole number")
