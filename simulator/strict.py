"""Strict, frozen data models over documents: unknown keys refused, quantities with units, all faults with their place.

Validation is pydantic's; this module adds the unit types, the one-of-a-registry model and the translation of errors.
"""

from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails

from simulator import units
from simulator.documents import Document, PathKey
from simulator.errors import InputError, Problem, nearest


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and converts nothing silently."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _quantity(kind: str, parse: Callable[[object], Any], write: Callable[[Any], str], *examples: str) -> list[Any]:
    schema = {"type": "string", "description": f"a {kind} with its unit", "examples": list(examples)}
    return [
        BeforeValidator(parse),
        PlainSerializer(write, return_type=str),
        WithJsonSchema(schema),
    ]


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
Rate = Annotated[float, *_quantity("rate", units.parse_rate, lambda v: f"{v!r} / s", "120 / s", "5 / min")]
Compute = Annotated[float, *_quantity("compute rate", units.parse_compute, lambda v: f"{v!r} FLOPS", "989 TFLOPS")]
Power = Annotated[float, *_quantity("power", units.parse_power, lambda v: f"{v!r} W", "700 W")]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
PositiveRate = Annotated[Rate, AfterValidator(_positive)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class OneOf(Strict):
    """A choice among named alternatives: `name`, or `{name: {parameter: value}}`; one key at most."""

    @model_validator(mode="before")
    @classmethod
    def _expand_name(cls, value: object) -> object:
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

    @property
    def name(self) -> str:
        """The name of the chosen alternative."""
        return next(iter(self.model_fields_set))

    @property
    def parameters(self) -> Any:
        """The validated parameters of the chosen alternative."""
        return getattr(self, self.name)


def one_of(title: str, alternatives: Mapping[str, type[Strict]]) -> type[OneOf]:
    """Return a OneOf model with one key per registered alternative, each with its own parameter model."""
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

    config = ConfigDict(json_schema_extra=both_forms)
    return create_model(title, __base__=_configured(config), __doc__=f"One of: {', '.join(alternatives)}.", **fields)


def _configured(config: ConfigDict) -> type[OneOf]:
    return type("_OneOf", (OneOf,), {"model_config": config, "__module__": __name__})


ModelT = TypeVar("ModelT", bound=BaseModel)


def validate(model: type[ModelT], document: Document) -> ModelT:
    """Return the document's value as `model`; raises InputError with every problem and where each stands."""
    if not isinstance(document.value, Mapping):
        found = "an empty file" if document.value is None else f"{document.value!r}"[:60]
        raise InputError(document.problem((), f"expected a mapping of keys, found {found}", _keys(model)))
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems = [_problem(model, document, detail) for detail in details]
        problems.sort(key=lambda p: (p.file or "", p.line or 0, p.column or 0, p.path or ""))
        raise InputError(problems) from None


def _problem(model: type[BaseModel], document: Document, detail: ErrorDetails) -> Problem:
    path: PathKey = tuple(detail["loc"])
    kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        owner = _model_at(model, path[:-1])
        names = list(owner.model_fields) if owner else []
        what = f"unknown key {str(path[-1])!r}"
        return document.problem(path, what, ", ".join(names) or None, nearest(str(path[-1]), names))
    if kind == "missing":
        return document.problem(path, f"missing key {str(path[-1])!r}", _expected(model, path))
    if kind == "literal_error":
        names = [part.strip("'") for part in str(context["expected"]).replace(" or ", ", ").split(", ")]
        return document.problem(path, f"unknown value {found!r}", ", ".join(names), nearest(str(found), names))
    if kind in ("value_error", "assertion_error"):
        return document.problem(path, str(context["error"]))
    message = detail["msg"].removeprefix("Input should be ").removeprefix("a valid ").removeprefix("valid ")
    message = {"integer": "a whole number", "string": "text", "boolean": "true or false"}.get(message, message)
    shown = repr(found) if len(repr(found)) <= 60 else repr(found)[:57] + "..."
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return document.problem(path, f"expected a mapping of keys, found {shown}", _expected(model, path))
    if kind == "tuple_type":
        message = "list"
    return document.problem(path, f"expected {message}, found {shown}")


def _expected(model: type[BaseModel], path: PathKey) -> str | None:
    inner = _model_at(model, path)
    return _keys(inner) if inner else None


def _keys(model: type[BaseModel]) -> str:
    return "keys " + ", ".join(model.model_fields)


def _model_at(model: type[BaseModel], path: PathKey) -> type[BaseModel] | None:
    """Return the model that stands at `path` under `model`, seen through Optional, tuples and mappings."""
    current: Any = model
    for part in path:
        current = _plain(current)
        if isinstance(current, type) and issubclass(current, BaseModel):
            if part not in current.model_fields:
                return None
            current = current.model_fields[str(part)].annotation
        elif get_args(current):
            current = get_args(current)[0 if isinstance(part, int) else -1]
        else:
            return None
    current = _plain(current)
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _plain(annotation: Any) -> Any:
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, UnionType):
            inner = [a for a in get_args(annotation) if a is not type(None)]
            models = [a for a in inner if isinstance(_plain(a), type) and issubclass(_plain(a), BaseModel)]
            annotation = (models or inner)[0]
        else:
            return annotation
