"""Where the times of a cost model are from, as lines for the user to read: measured tables, borrowed efficiencies."""

from simulator.device.cost import RooflineCost
from simulator.device.measured.coverage import origin_line, other_formats, share_line, share_of
from simulator.device.measured.times import MeasuredTimes
from simulator.device.speculation import SpeculativeCost
from simulator.model.forward import Work

TYPICAL = (1024, 32)
"""Tokens of a prompt or a context, and sequences, of the steps whose sources of times are told."""
REACHED = "published deployments on 32 to 128 ranks reached 71 to 103 % of what is predicted (docs/accuracy.md)"
"""benchmarks/engines/deployments.py, on H100, H800 and H200."""


def provenance(cost: object) -> list[str]:
    """Return what the times of a cost rest on, as sentences; none of a user's own constants."""
    if isinstance(cost, SpeculativeCost):
        cost = cost.target
    return measured_lines(cost) + borrowed(cost) if isinstance(cost, RooflineCost) else []


def measured_lines(cost: RooflineCost) -> list[str]:
    """Return lines on where the times of a cost are from, for the user to read: none unless tables were measured."""
    if not isinstance(cost.times, MeasuredTimes):
        return []
    lines = [origin_line(origin) for origin in cost.times.origins]
    if cost.times.repeats:
        lines.append(f"serving.cost: {cost.times.repeats:,} repeated measurements of a point, whose median counts")
    tokens, batch = TYPICAL
    for step, work in (
        (f"prefill step of one prompt of {tokens:,} tokens", Work(tokens, tokens * (tokens + 1) // 2, 1)),
        (f"decode step of {batch} sequences at {tokens:,} tokens", Work(batch=batch, context=batch * tokens)),
    ):
        timed = cost.kernels(work)
        lines.append(share_line(step, share_of(cost.times, timed)))
        lines += other_formats(cost.times, [operator for operator, _ in timed])
    return list(dict.fromkeys(lines))


def borrowed(cost: RooflineCost) -> list[str]:
    """Return what the times rest on that was not measured on this device in this format, as sentences."""
    accelerator, form, published = cost.accelerator, cost.precision, cost.model.checkpoint
    notes = []
    if form.of_experts == "fp8" and published is not None and published.of_experts == "fp8_block":
        what = "fp8 has one scale per tensor, and kernels of its own"
        notes.append(f"precision: {what}; {cost.model.name} was published in fp8_block")
    if accelerator.like is not None:
        notes.append(f"{accelerator.name} was not measured: efficiencies are those of {accelerator.like}")
    for name in dict.fromkeys((form.of_attention, form.weights)):
        lender = accelerator.fitted.lender(name)
        if lender != name:
            notes.append(f"products in {name} were not measured: efficiencies are those of {lender}")
    exchanges = cost.model.experts is not None and cost.layout.expert > 1 and cost.layout.dispatches
    if exchanges and form.of_experts in accelerator.fitted.dispatched_experts:
        notes.append(f"expert exchange: {REACHED}")
    known = accelerator.fitted.experts or {}
    if cost.model.experts is not None and form.of_experts not in known:
        constants = accelerator.fitted.experts_in(form.of_experts)
        lender = next((name for name, fit in known.items() if fit == constants), "dense products")
        notes.append(f"experts in {form.of_experts} were not measured: efficiencies are those of {lender}")
    return notes
