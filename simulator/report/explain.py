"""What `simulate explain` shows: operator tables, memory and ceilings at a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from simulator.device.breakdown import Explanation, StepBreakdown
from simulator.device.cost import RooflineCost
from simulator.units import format_bytes, format_duration


def print_explanation(found: Explanation, console: Console) -> None:
    """Print one instance for people, in 100 columns."""
    console.print(f"[bold]{found.title}[/bold]", soft_wrap=True)
    cost = found.cost
    model = cost.model
    size = f"{model.parameters / 1e9:.4g} B parameters"
    if model.experts is not None:
        size += f", {model.active_parameters / 1e9:.3g} B active"
    console.print(
        f"{model.name} ({size}) on {cost.layout.devices} x {cost.accelerator.name}, {cost.layout}, {_formats(cost)}",
        soft_wrap=True,
    )
    for step in found.steps:
        _print_step(step, console)
    _print_memory(found, console)
    _print_ceilings(found, console)
    for note in found.notes:
        console.print(f"[yellow]![/yellow] {note}", soft_wrap=True)


def _formats(cost: RooflineCost) -> str:
    form = cost.precision
    parts = [form.weights] + ([f"experts {form.of_experts}"] if cost.model.experts else [])
    return ", ".join([*parts, f"KV {form.kv}"])


def describe(step: StepBreakdown) -> str:
    """Return what a step computes as a short text."""
    work, parts = step.work, []
    if work.prompt_tokens:
        cached = work.kv_tokens - work.prompt_tokens
        after = f" after {cached:,.0f} cached" if cached >= 1 else ""
        many = f"{work.prompts:,} prompts" if work.prompts > 1 else "a prompt"
        parts.append(f"{work.prompt_tokens:,} tokens of {many}{after}")
    if work.batch:
        parts.append(f"{work.batch:,} sequences of {work.context / work.batch:,.0f} tokens")
    return " and ".join(parts)


def _print_step(step: StepBreakdown, console: Console) -> None:
    console.print(f"\n[bold]{step.phase}[/bold]  {describe(step)}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("operator", min_width=28)
    for name in ("calls", "GFLOP", "bytes", "FLOP/B"):
        table.add_column(name, justify="right")
    table.add_column("bound")
    for name in ("time", "share"):
        table.add_column(name, justify="right")
    for row in step.rows:
        intensity = f"{row.flops / row.size_bytes:.3g}" if row.size_bytes and row.flops else "-"
        table.add_row(
            row.name,
            f"{row.calls:,}",
            number(row.flops / 1e9),
            format_bytes(row.size_bytes) if row.size_bytes else "-",
            intensity,
            row.bound,
            format_duration(row.ns),
            f"{row.ns / step.ns:.1%}",
        )
    table.add_section()
    table.add_row(
        "one step, one device",
        "",
        number(step.flops / 1e9),
        format_bytes(step.size_bytes),
        f"{step.flops / step.size_bytes:.3g}",
        "",
        format_duration(step.ns),
        "100.0%",
    )
    console.print(table)
    bounds = ", ".join(f"{name} {ns / step.ns:.0%}" for name, ns in step.time_by_bound().items())
    console.print(
        f"{step.tokens_per_s:,.0f} tokens/s; {step.compute_share:.1%} of the peak, {step.bandwidth_share:.1%} of the "
        f"bandwidth; {step.power_w:,.0f} W a device, {step.joules_per_token:.3g} J a token",
        soft_wrap=True,
    )
    console.print(f"time by bound: {bounds}", soft_wrap=True)


def number(value: float) -> str:
    """Return a figure with three digits at least, or a dash for nothing."""
    if not value:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _print_memory(found: Explanation, console: Console) -> None:
    usable = found.book.usable_bytes
    console.print(f"\n[bold]Memory of one device[/bold]  {format_bytes(usable)} usable")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(min_width=34)
    table.add_column(justify="right")
    table.add_column(justify="right")
    for name, size in found.memory.items():
        if size:
            table.add_row(name, format_bytes(size), f"{size / usable:.1%}")
    console.print(table)
    per, beyond, window = found.kv_bytes_per_token, found.kv_bytes_beyond, found.cost.model.attention.window
    line = f"{per / 1024:,.4g} KiB of KV cache per token and device"
    if beyond == per or window is None:
        line += f": {found.book.kv_bytes / per:,.0f} tokens fit"
    else:
        layers = f"{window.layers} of {found.cost.model.layers} layers give up what is more than {window.tokens:,} back"
        line += f", {beyond / 1024:,.4g} KiB once {layers}"
    console.print(line, soft_wrap=True)


def _print_ceilings(found: Explanation, console: Console) -> None:
    top = found.ceilings
    console.print("\n[bold]Ceilings[/bold]  data-sheet peaks, nothing lost")
    rows: Sequence[tuple[str, str]] = (
        ("prefill", f"{top.prefill_tokens_per_s:,.0f} tokens/s"),
        (f"decode, one sequence of {found.context:,}", f"{top.decode_alone_per_s:,.0f} tokens/s"),
        (f"decode, the {top.batch:,} sequences that fit", f"{top.decode_full_per_s:,.0f} tokens/s"),
        ("ridge point", f"{top.ridge:,.0f} FLOP/B"),
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(min_width=34)
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
