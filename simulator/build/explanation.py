"""From a scenario, or from a model on a device, to the explanation of its steps, its memory and its ceilings."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from simulator.build.kv_memory import windows_of
from simulator.device.accelerator import load_accelerator
from simulator.device.breakdown import (
    Explanation,
    StepBreakdown,
    ceilings,
    memory_parts,
    step_breakdown,
)
from simulator.device.cost import RooflineCost
from simulator.device.engine import RooflineParameters
from simulator.device.memory import Ledger, kv_block_bytes, ledger, window_lines
from simulator.device.provenance import provenance
from simulator.device.speculation import SpeculativeCost
from simulator.documents import parse_document
from simulator.errors import InputError, Problem, unknown
from simulator.model.forward import Work
from simulator.model.layout import Layout
from simulator.model.precision import Precision, completed
from simulator.model.split import Held, kv_bytes_per_token_per_rank, kv_groups
from simulator.model.transformer import load_model
from simulator.scenario.experts import held
from simulator.scenario.pool import Pool as PoolSection
from simulator.scenario.reference import ledger_of
from simulator.scenario.schema import Scenario
from simulator.serving.paging import Paging, WindowedPaging, paging_of
from simulator.strict import ModelT, validate

PHASES = ("prefill", "decode", "mixed")


@dataclass(frozen=True)
class Ask:
    """Which steps to explain: prompts of `prompt` tokens after `cached` ones, `batch` sequences of `context` tokens.

    None, for each data-parallel rank: one prompt; 64 sequences, or as many as fit the KV cache and the engine's seats.
    """

    prompt: int = 2048
    prompts: int | None = None
    cached: int = 0
    batch: int | None = None
    context: int = 2048
    phases: tuple[str, ...] = ("prefill", "decode")


MOST_TOKENS, MOST_SEQUENCES = 8192, 256
"""Of the largest step of an engine of which no scenario says more, for its memory."""


def explain_model(
    model: str,
    device: str,
    layout: Layout,
    precision: Precision | None,
    ask: Ask,
    engine: RooflineParameters | None = None,
) -> Explanation:
    """Return the explanation of one instance within one scale-up domain; raises InputError when it cannot be."""
    card = load_model(model)
    named = precision.model_dump(exclude_unset=True) if precision else {}
    form = Precision.model_validate(completed(named, card.checkpoint))
    cost = RooflineCost(card, layout, load_accelerator(device), form, engine)
    book = ledger(card, layout, cost.accelerator, MOST_TOKENS, MOST_SEQUENCES, precision=form)
    section = PoolSection.model_validate({"instances": 1, "layout": layout.model_dump()})
    windows, ranks = windows_of(section, card), layout.data * layout.pipeline
    size = section.kv.block_tokens
    blocks = book.kv_bytes // kv_block_bytes(card, layout, size, form, windows=windows is not None)
    cache = KVCeiling(paging_of(size, windows), blocks // ranks, ranks)
    return explain(f"{model} on {device}", cost, ask, MOST_SEQUENCES * layout.data, book, cache)


def explain_scenario(scenario: Scenario, ask: Ask) -> list[Explanation]:
    """Return the explanation of one engine of each group; raises InputError when the scenario cannot run."""
    from simulator.build.serving import plan

    if scenario.serving is None:
        raise InputError(Problem("there are no engines to explain: `traffic` is the network alone", path="traffic"))
    blueprint = plan(scenario)
    found = []
    for group in blueprint.groups:
        role, section = group.section.role, group.section.pool
        cost = _with_operators(group.engine.cost, scenario.serving.cost.name)
        book = ledger_of(section, cost.model, cost.accelerator, cost.precision)
        phases = ask.phases if role == "colocated" else (role,)
        found.append(
            explain(
                f"{scenario.name}: {group.name}, {section.instances} instances",
                cost,
                replace(ask, phases=phases),
                section.batcher.parameters.max_running * section.layout.data,
                book,
                KVCeiling(
                    group.engine.paging, group.engine.kv_blocks, group.engine.ranks, section.kv.blocks is not None
                ),
                held(section.experts, cost.model, section.layout),
            )
        )
    return found


class KVCeiling(NamedTuple):
    """What limits the sequences of an engine: the KV blocks of each of its ranks, and how contexts take them."""

    paging: Paging
    blocks: int
    ranks: int
    given: bool = False
    """Whether the scenario says how many, in the place of what the memory leaves."""

    def sequences(self, context: int) -> int:
        """Return how many sequences of so many tokens fit."""
        return self.ranks * self.paging.sequences(self.blocks, context)


def _with_operators(cost: Any, name: str) -> RooflineCost:
    if isinstance(cost, SpeculativeCost):
        what = "iterations that verify drafted tokens are not taken apart"
        raise InputError(Problem(what, path="serving", allowed="pools without `speculation`"))
    if not isinstance(cost, RooflineCost):
        what = f"{name} costs are the user's own constants, without operators"
        raise InputError(Problem(what, path="serving.cost", allowed="roofline, measured"))
    return cost


def explain(
    title: str,
    cost: RooflineCost,
    ask: Ask,
    sequences: int,
    book: Ledger,
    cache: KVCeiling,
    experts: Held | None = None,
) -> Explanation:
    """Return the explanation of one instance whose steps last as `cost` says and whose memory is as in `book`.

    It decodes for so many sequences at most; a rank holds `experts` if it has copies.
    """
    token_bytes = kv_bytes_per_token_per_rank(cost.model, cost.layout, cost.precision)
    windows = isinstance(cache.paging, WindowedPaging)
    beyond = token_bytes
    if windows:
        groups = kv_groups(cost.model, cost.layout)
        beyond = kv_bytes_per_token_per_rank(cost.model, cost.layout, cost.precision, groups.full * groups.layers)
    best = ceilings(cost, ask.context, cache.sequences(ask.context))
    batch = ask.batch if ask.batch is not None else max(1, min(64 * cost.layout.data, best.batch, sequences))
    notes = provenance(cost) + ([] if windows else window_lines(cost.model, ask.context))
    if cache.given:
        blocks = f"{cache.ranks * cache.blocks:,} blocks of {cache.paging.size} tokens"
        notes.append(f"`kv.blocks` sets a KV cache of {blocks}, in the place of what the memory leaves")
    if batch > best.batch:
        notes.append(f"the KV cache holds {best.batch:,} sequences of {ask.context:,} tokens, not {batch:,}")
    return Explanation(
        title,
        cost,
        tuple(step_of(cost, phase, ask, batch) for phase in ask.phases),
        book,
        memory_parts(cost, book, experts),
        best,
        ask.context,
        token_bytes,
        beyond,
        tuple(notes),
    )


def step_of(cost: RooflineCost, phase: str, ask: Ask, batch: int) -> StepBreakdown:
    """Return the breakdown of one step of a phase; raises InputError for an unknown phase."""
    if phase not in PHASES:
        raise InputError(unknown("phase", phase, PHASES))
    pairs, prompts = ask.prompt * ask.cached + ask.prompt * (ask.prompt + 1) // 2, ask.prompts or cost.layout.data
    prompt = Work(prompts * ask.prompt, prompts * pairs, prompts)
    decode = Work(batch=batch, context=batch * ask.context)
    both = prompt._replace(batch=batch, context=batch * ask.context)
    return step_breakdown(cost, phase, {"prefill": prompt, "decode": decode, "mixed": both}[phase])


def parsed(option: str, text: str, model: type[ModelT], alone: str) -> ModelT:
    """Return a model from an option such as `tensor=4,expert=8`; a bare word stands for the field `alone`.

    Raises InputError that names the option.
    """
    pairs = [part.partition("=") for part in text.split(",") if part]
    lines = [f"{name.strip()}: {value.strip()}" if sign else f"{alone}: {name.strip()}" for name, sign, value in pairs]
    return validate(model, parse_document("\n".join(lines) or "{}", option))
