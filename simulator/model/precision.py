"""Number formats of weights, activations and KV caches, and which of them each part of a model is held in.

Source: bits and scale blocks as the OCP microscaling specification (v1.0, 2023), NVIDIA's NVFP4 and the usual 128 x 128
block scaling of fp8 state them; weight-only formats multiply in 16 bits.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, model_validator

from simulator.errors import nearest
from simulator.strict import Fault, LocatedError, Strict


class Format(NamedTuple):
    """How the operands of a matrix product are held: bits of one value, scales included, and what multiplies."""

    weight_bits: float
    activation_bits: float
    compute: str
    """Key of `Accelerator.peak` whose rate the product runs at."""
    scaled: bool = False
    """Whether activations are quantised on the way in: a kernel of its own, or fused into the one before."""


FORMATS: dict[str, Format] = {
    "fp32": Format(32, 32, "fp32"),
    "tf32": Format(32, 32, "tf32"),
    "bf16": Format(16, 16, "bf16"),
    "fp16": Format(16, 16, "fp16"),
    "fp8": Format(8, 8, "fp8", scaled=True),
    "fp8_block": Format(8 + 32 / 16384, 8 + 32 / 128, "fp8", scaled=True),
    "int8": Format(8, 8, "int8", scaled=True),
    "mxfp8": Format(8 + 8 / 32, 8 + 8 / 32, "fp8", scaled=True),
    "nvfp4": Format(4 + 8 / 16, 4 + 8 / 16, "fp4", scaled=True),
    "mxfp4": Format(4 + 8 / 32, 4 + 8 / 32, "fp4", scaled=True),
    "w4a8_mxfp4_mxfp8": Format(4 + 8 / 32, 8 + 8 / 32, "fp8", scaled=True),
    "w4a16_mxfp4": Format(4 + 8 / 32, 16, "bf16"),
    "w4a8": Format(4 + 16 / 128, 8, "int8", scaled=True),
    "w4a8_fp8": Format(4 + 16 / 128, 8, "fp8", scaled=True),
    "int8_wo": Format(8 + 16 / 128, 16, "bf16"),
    "int4_wo": Format(4 + 16 / 128, 16, "bf16"),
    "int4_wo_64": Format(4 + 16 / 64, 16, "bf16"),
    "int4_wo_32": Format(4 + 16 / 32, 16, "bf16"),
    "fp8_wo": Format(8, 16, "bf16"),
}
"""Formats of a matrix product by name; `_wo`: only weights are narrow, `wXaY`: weights in X, activations in Y bits.

A number at the end is how many weights share a scale where that is not the usual 128."""

VALUES: dict[str, float] = {
    "fp32": 32,
    "bf16": 16,
    "fp16": 16,
    "fp8": 8,
    "int8": 8,
    "int4": 4 + 16 / 128,
    "nvfp4": 4 + 8 / 16,
}
"""Bits of one stored value by data type, scales included: activations and KV caches."""


def _known(name: str, what: str, registry: Iterable[str]) -> str:
    names = list(registry)
    if name not in names:
        raise LocatedError(Fault((), f"unknown {what} {name!r}", ", ".join(names), nearest(name, names)))
    return name


def _format(name: str) -> str:
    return _known(name, "format", FORMATS)


def _value(name: str) -> str:
    return _known(name, "data type", VALUES)


FormatName = Annotated[str, AfterValidator(_format)]
ValueName = Annotated[str, AfterValidator(_value)]


class Precision(Strict):
    """In which format each part of a model is held and multiplied; a plain string sets `weights`."""

    weights: FormatName = "bf16"
    """Linear layers of attention and MLP."""
    experts: FormatName | None = None
    """Routed experts; default: as `weights`."""
    shared: FormatName | None = None
    """Shared experts; default: as the routed ones."""
    attention_weights: FormatName | None = None
    """Projections of attention; default: as `weights`."""
    head: FormatName = "bf16"
    """Embedding and LM head, which quantised checkpoints leave in 16 bits."""
    kv: ValueName = "bf16"
    """Keys and values in the cache."""
    activations: ValueName = "bf16"
    """What passes between operators, and over links unless they quantise."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"weights": value} if isinstance(value, str) else value

    @property
    def linear(self) -> Format:
        """Format of the linear layers."""
        return FORMATS[self.weights]

    @property
    def of_experts(self) -> str:
        """Name of the format of experts."""
        return self.experts or self.weights

    @property
    def of_shared(self) -> str:
        """Name of the format of shared experts."""
        return self.shared or self.of_experts

    @property
    def of_attention(self) -> str:
        """Name of the format of the projections of attention."""
        return self.attention_weights or self.weights

    @property
    def kv_bytes(self) -> float:
        """Bytes of one key or value element."""
        return VALUES[self.kv] / 8

    @property
    def activation_bytes(self) -> float:
        """Bytes of one activation."""
        return VALUES[self.activations] / 8


def completed(named: Mapping[str, Any], checkpoint: Precision | None) -> dict[str, Any]:
    """Return the formats named by part and, of the parts that are not, those of the published checkpoint.

    Whoever names `weights` has other files than the published ones, so nothing is taken from them.
    """
    if checkpoint is None or "weights" in named:
        return dict(named)
    return checkpoint.model_dump(exclude_none=True) | dict(named)
