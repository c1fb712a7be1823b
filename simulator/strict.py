"""Strict, frozen data models over documents: unknown keys refused, quantities with units, all faults with their place.

Validation is pydantic's; this module adds the unit types, the one-of-a-registry model and the translation of errors.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails

from simulator import units
from simulator.documents import Document, PathKey
from simulator.errors import InputError, Problem, nearest


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and converts nothing silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    refused: ClassVar[Mapping[str, str]] = {}
    """Keys of a neighbour that have no meaning here, each with why and what to do."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe each property by the docstring under its attribute, read only now: it takes a tenth of a second."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in _attribute_docstrings(cls).items():
            if name in cls.model_fields:
                properties[cls.model_fields[name].alias or name]["description"] = text
        return schema


def _attribute_docstrings(model: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if issubclass(owner, BaseModel) and not owner.__module__.startswith("pydantic"):
            found |= _own_docstrings(owner)
    return found


@cache  # to find the source of a class takes longer than all else of a schema
def _own_docstrings(owner: type) -> Mapping[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    except OSError:  # made at run time: it has no source and no docstrings
        return {}
    found: dict[str, str] = {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    for field, below in pairwise(body):
        text = ast.get_docstring(ast.Module([below], [])) if isinstance(below, ast.Expr) else None
        if text and isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            found[field.target.id] = text
    return found


def _quantity(kind: str, parse: Callable[[object], Any], write: Callable[[Any], str], *examples: str) -> list[Any]:
    schema = {"type": "string", "description": f"a {kind} with its unit", "examples": list(examples)}
    return [
        BeforeValidator(parse),
        PlainSerializer(write, return_type=str),
        WithJsonSchema(schema),
    ]


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _positive(value: Any) -> Any:
    if value <= 0:
        raise ValueError("must be more than zero")
    return value


Duration = Annotated[
    int, *_quantity("duration", units.parse_duration_ns, units.exact_duration, "250 ms", "1 h", "30 d")
]
Size = Annotated[int, *_quantity("size", units.parse_size_bytes, units.exact_size, "80 GiB", "512 B")]
Bandwidth = Annotated[
    int,
    *_quantity("bandwidth", units.parse_bandwidth, units.exact_bandwidth, "400 Gbps", "50 GB/s"),
    AfterValidator(_positive),
]
Rate = Annotated[float, *_quantity("rate", units.parse_rate, lambda v: f"{_number(v)} / s", "120 / s", "5 / min")]
Compute = Annotated[
    float, *_quantity("compute rate", units.parse_compute, lambda v: f"{_number(v)} FLOPS", "989 TFLOPS")
]
Power = Annotated[float, *_quantity("power", units.parse_power, lambda v: f"{_number(v)} W", "700 W")]
Frequency = Annotated[float, *_quantity("frequency", units.parse_frequency, lambda v: f"{_number(v)} Hz", "1980 MHz")]
Price = Annotated[float, BeforeValidator(units.parse_price), PlainSerializer(lambda dollars: f"{dollars!r} $")]
HourlyPrice = Annotated[
    float, *_quantity("price per hour", units.parse_hourly_price, lambda v: f"{_number(v)} $/h", "2.5 $/h")
]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
PositiveRate = Annotated[Rate, AfterValidator(_positive)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Fault(NamedTuple):
    """One thing wrong at `path`, counted from the model or field whose validator found it."""

    path: PathKey
    what: str
    allowed: str | None = None
    nearest: str | None = None


class LocatedError(ValueError):
    """What a validator raises to place its findings on inner keys, or to report several."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__("; ".join(fault.what for fault in faults))


class OneOf(Strict):
    """A choice among named alternatives: `name`, or `{name: {parameter: value}}`; one key at most."""

    bare_number: ClassVar[str | None] = None
    """The alternative that a bare whole number stands for, if any."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        if cls.bare_number and isinstance(value, int) and not isinstance(value, bool):
            return {cls.bare_number: {"value": value}}
        return {value: {}} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            chosen = ", ".join(sorted(self.model_fields_set)) or "none"
            names = ", ".join(type(self).model_fields)
            raise ValueError(f"exactly one of {names} is needed, found {chosen}")
        if self.parameters is None:
            raise ValueError(f"{self.name} needs its parameters, such as {{{self.name}: {{}}}}")
        return self

    @model_serializer(mode="wrap")
    def _only_the_chosen(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {self.name: write(self)[self.name]}

    @property
    def name(self) -> str:
        """The name of the chosen alternative."""
        return next(iter(self.model_fields_set))

    @property
    def parameters(self) -> Any:
        """The validated parameters of the chosen alternative."""
        return getattr(self, self.name)


def one_of(title: str, alternatives: Mapping[str, type[Strict]], number: str | None = None) -> type[OneOf]:
    """Return a OneOf model with one key per registered alternative, each with its own parameter model.

    With `number`, a bare whole number n stands for `{number: {value: n}}`.
    """
    fields: dict[str, Any] = {key: (model | None, None) for key, model in alternatives.items()}
    names = [
        key for key, model in alternatives.items() if not any(f.is_required() for f in model.model_fields.values())
    ]

    def both_forms(schema: dict[str, Any]) -> None:
        body = {key: schema.pop(key) for key in ("properties", "additionalProperties", "type") if key in schema}
        for key, value in body.get("properties", {}).items():
            body["properties"][key] = next(v for v in value.get("anyOf", [value]) if v.get("type") != "null")
        schema["oneOf"] = [{**body, "minProperties": 1, "maxProperties": 1}]
        if names:
            schema["oneOf"].insert(0, {"enum": names})
        if number:
            schema["oneOf"].insert(0, {"type": "integer", "minimum": 1})

    config = ConfigDict(json_schema_extra=both_forms)
    base = type("_OneOf", (OneOf,), {"model_config": config, "bare_number": number, "__module__": __name__})
    return create_model(title, __base__=base, __doc__=f"One of: {', '.join(alternatives)}.", **fields)


ModelT = TypeVar("ModelT", bound=BaseModel)


def validate(model: type[ModelT], document: Document) -> ModelT:
    """Return the document's value as `model`; raises InputError with every problem and where each stands."""
    if not isinstance(document.value, Mapping):
        found = "an empty file" if document.value is None else f"{document.value!r}"[:60]
        raise InputError(document.problem((), f"expected a mapping of keys, found {found}", _keys(model)))
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        problems = [p for detail in error.errors(include_url=False) for p in _problems(model, document, detail)]
        problems.sort(key=lambda p: (p.file or "", p.line or 0, p.column or 0, p.path or ""))
        raise InputError(problems) from None


def _problems(model: type[BaseModel], document: Document, detail: ErrorDetails) -> list[Problem]:
    path, owner = _locate(model, tuple(detail["loc"]))
    if detail["type"] in ("value_error", "assertion_error"):
        error = detail["ctx"]["error"]
        if isinstance(error, LocatedError):
            return [document.problem((*path, *f.path), f.what, f.allowed, f.nearest) for f in error.faults]
        return [document.problem(path, str(error))]
    kind, found = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        if owner is not None and issubclass(owner, Strict) and path[-1] in owner.refused:
            return [document.problem(path, owner.refused[str(path[-1])])]
        names = _names(owner) if owner else []
        what = f"unknown key {str(path[-1])!r}"
        return [document.problem(path, what, ", ".join(names) or None, nearest(str(path[-1]), names))]
    inner = _locate(model, (*detail["loc"], ""))[1]
    keys = _keys(inner) if inner else None
    if kind == "missing":
        return [document.problem(path, f"missing key {str(path[-1])!r}", keys)]
    shown = repr(found) if len(repr(found)) <= 60 else repr(found)[:57] + "..."
    if kind == "literal_error":
        names = [part.strip("'") for part in str(detail["ctx"]["expected"]).replace(" or ", ", ").split(", ")]
        return [document.problem(path, f"unknown value {shown}", ", ".join(names), nearest(str(found), names))]
    if kind == "too_short":
        least = detail["ctx"]["min_length"]
        if len(found) >= least:  # only because some items are bad, which is said of each
            return []
        return [document.problem(path, f"expected at least {least} items, found {len(found)}")]
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return [document.problem(path, f"expected a mapping of keys, found {shown}", keys)]
    return [document.problem(path, f"expected {_expectation(detail)}, found {shown}")]


def _expectation(detail: ErrorDetails) -> str:
    message = detail["msg"].removeprefix("Input should be ").removeprefix("a valid ").removeprefix("valid ")
    plain = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
    return "a list" if detail["type"] == "tuple_type" else plain.get(message, message)


def _keys(model: type[BaseModel]) -> str:
    return "keys " + ", ".join(_names(model))


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _locate(model: type[BaseModel], location: tuple[str | int, ...]) -> tuple[PathKey, type[BaseModel] | None]:
    """Return a location without the tags of unions that pydantic puts in, and the model that owns its last key."""
    path: list[str | int] = []
    current: Any = model
    owner: type[BaseModel] | None = None
    for part in location:
        current = _plain(current)
        tagged = _tagged(current)
        if part in tagged:
            current = tagged[str(part)]
            continue
        path.append(part)
        owner = current if isinstance(current, type) and issubclass(current, BaseModel) else None
        if owner:
            fields = {field.alias or name: field.annotation for name, field in owner.model_fields.items()}
            current = fields.get(str(part))
        elif get_args(current):
            current = get_args(current)[0 if isinstance(part, int) else -1]
        else:
            current = None
    return tuple(path), owner


def keys_below(model: type[BaseModel], path: Sequence[str]) -> dict[str, list[type[BaseModel]]]:
    """Return the keys that a document of `model` may have at a path, each with the models of what may stand there.

    Names of the path may end in an index, as in `faults[0]`; below a path that is none there are no keys.
    """
    found = [model]
    for part in path:
        found = _keys_of(found).get(part.partition("[")[0], [])
    return _keys_of(found)


def _keys_of(models: Sequence[type[BaseModel]]) -> dict[str, list[type[BaseModel]]]:
    keys: dict[str, list[type[BaseModel]]] = {}
    for model in models:
        for name, field in model.model_fields.items():
            keys.setdefault(field.alias or name, []).extend(_models(field.annotation))
    return keys


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models among the types of which an annotation is made."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _tagged(annotation: Any) -> dict[str, Any]:
    """Return the members of a tagged union by their tags: those of `Tag`, or the literals of a discriminating field."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    tags = {mark.tag: member for member in members for mark in get_args(member)[1:] if isinstance(mark, Tag)}
    for member in members:
        if isinstance(member, type) and issubclass(member, BaseModel):
            literals = [f.annotation for f in member.model_fields.values() if get_origin(f.annotation) is Literal]
            tags |= {str(value): member for literal in literals for value in get_args(literal)}
    return tags


def _plain(annotation: Any) -> Any:
    """Return an annotation without its metadata and without `| None`."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, UnionType):
            inner = [member for member in get_args(annotation) if member is not type(None)]
            if len(inner) != 1:
                return annotation
            annotation = inner[0]
        else:
            return annotation
