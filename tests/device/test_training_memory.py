"""Memory of training against the formulas of arXiv:2205.05198 and of ZeRO, and against measured allocations."""

import csv
from pathlib import Path

import pytest

from simulator.device.accelerator import load_accelerator
from simulator.device.memory import GIB
from simulator.device.training_memory import Kept, activation_bytes, in_flight, rank_ledger, training_ledger
from simulator.errors import InputError
from simulator.model.architecture import Encoder, GroupedAttention, MixtureOfExperts, Vision
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.stages import slices
from simulator.model.training import MicroBatch, Recipe, TrainingPass
from simulator.model.transformer import Transformer, load_model

DATA = Path(__file__).parents[2].parent / "shared" / "data"
GPT = Recipe(fused_attention=False, dropout=True, zero=0)


def gpt(layers: int, hidden: int, heads: int, **more: object) -> Transformer:
    return Transformer(
        name="gpt",
        layers=layers,
        hidden=hidden,
        attention=GroupedAttention(heads=heads, kv_heads=heads, head_dim=hidden // heads),
        intermediate=4 * hidden,
        vocabulary=51200,
        max_context=2048,
        sources={},
        **({"gated": False} | more),  # type: ignore[arg-type]
    )


def per_layer(training: TrainingPass, length: int) -> float:
    return Kept(training, training.model, length).layers() / training.model.layers


@pytest.mark.parametrize(("hidden", "heads", "length"), [(6144, 64, 2048), (12288, 96, 2048), (4096, 32, 8192)])
@pytest.mark.parametrize("t", [1, 2, 8])
def test_a_layer_keeps_what_the_paper_counts(hidden: int, heads: int, length: int, t: int) -> None:
    """Bytes a position of a GPT layer (arXiv:2205.05198, table 2), with t tensor ranks and 5as/h of scores.

    none: h (10 + 24/t + 5as/ht); sequence parallel: h (34/t + 5as/ht); selective: without scores; full: h 2.
    """
    model, a, h, s = gpt(4, hidden, heads), heads, hidden, length
    scores = 5 * a * s / (h * t)
    plain, spread = Layout(tensor=t), Layout(tensor=t, sequence_parallel=t > 1)
    selective = GPT.model_copy(update={"recompute": "selective"})
    full = GPT.model_copy(update={"recompute": "full"})
    assert per_layer(TrainingPass(model, plain, GPT), s) == pytest.approx(h * (10 + 24 / t + scores))
    assert per_layer(TrainingPass(model, spread, GPT), s) == pytest.approx(h * (34 / t + scores))
    assert per_layer(TrainingPass(model, plain, selective), s) == pytest.approx(h * (10 + 24 / t))
    assert per_layer(TrainingPass(model, spread, selective), s) == pytest.approx(h * 34 / t)
    assert per_layer(TrainingPass(model, plain, full), s) == pytest.approx(2 * h)


def test_fused_attention_keeps_one_number_a_head() -> None:
    """No scores but 4 a bytes, and no masks without dropout: h (8 + 24/t) + 4a/t."""
    model = gpt(4, 4096, 32)
    for t in (1, 4):
        kept = per_layer(TrainingPass(model, Layout(tensor=t)), 8192)
        assert kept == pytest.approx(4096 * (8 + 24 / t) + 4 * 32 / t)


def test_gated_mlps_and_shared_key_heads() -> None:
    """Llama: 8 h of norms and inputs, (2 a + 2 g) d of attention twice, 6 bytes a column of the MLP."""
    model = load_model("llama-3-70b")
    part, h = model.attention, model.hidden
    attention = 2 * (2 * part.heads + 2 * part.kv_heads) * part.key_dim + 4 * part.heads
    expected = 8 * h + attention + 6 * model.intermediate
    assert per_layer(TrainingPass(model, Layout()), 4096) == pytest.approx(expected)


def test_experts_keep_the_rows_sent_to_them() -> None:
    """Each of k rows a token: input and result of 2 h, and the MLP between; the router's logits and weights in fp32."""
    width, k, e = 1024, 2, 8
    model = gpt(2, 1024, 16, experts=MixtureOfExperts(experts=e, active=k, intermediate=width, layers=2))
    dense = per_layer(TrainingPass(gpt(2, 1024, 16), Layout()), 512)
    expected = dense - 4 * 1024 * 4 + 8 * e + k * (4 * 1024 + 4 * width)
    for layout in (Layout(), Layout(data=4, expert=4)):
        assert per_layer(TrainingPass(model, layout), 512) == pytest.approx(expected)


def test_narrow_inputs_are_kept_narrow() -> None:
    """In fp8 the inputs of products take one byte; the fused kernel of attention keeps its own result in two."""
    wide, narrow = (per_layer(TrainingPass(gpt(2, 1024, 16), Layout(), precision=p), 512) for p in (None, FP8))
    assert wide - narrow == (1 + 1 + 4) * 1024 - 1 * 1024


FP8 = Precision(weights="fp8")


def test_micro_batches_in_flight() -> None:
    """GPipe: all; 1F1B: p - rank; interleaved in v chunks: on the first rank p (1 + (p - 1) / (p v))."""
    assert [in_flight(4, r, 8) for r in range(4)] == [4, 3, 2, 1]
    assert [in_flight(4, r, 2) for r in range(4)] == [2, 2, 2, 1]
    assert in_flight(4, 3, 8, schedule="gpipe") == 8
    for p, v in ((8, 3), (4, 2), (8, 6)):
        assert in_flight(p, 0, 10**6, v) == pytest.approx(p * (1 + (p - 1) / (p * v)))
        held = [in_flight(p, r, 10**6, v) for r in range(p)]
        assert held == sorted(held, reverse=True)
    assert in_flight(1, 0, 5, 4) == 1


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_states_are_divided_as_zero_does(zero: int) -> None:
    """Of N parameters: 2 N weights, 4 N gradients, 12 N states; ZeRO-1 divides the last, 2 the gradients, 3 all."""
    model = gpt(4, 1024, 16)
    training = TrainingPass(model, Layout(data=4), Recipe(replicas=2, zero=zero))
    n, book = training.parameters(0).total, rank_ledger(training, 0, MicroBatch(1, 512), 1)
    shares = [8 if zero >= stage else 1 for stage in (3, 2, 1)]
    assert [book.weights, book.gradients, book.optimizer] == [
        pytest.approx(width * n / share, abs=1) for width, share in zip((2, 4, 12), shares, strict=True)
    ]


def test_the_last_stage_holds_the_logits() -> None:
    model, batch = gpt(4, 1024, 16), MicroBatch(2, 512)
    training = TrainingPass(model, Layout(pipeline=2))
    first, last = (activation_bytes(training, part, batch) for part in training.slices)
    assert last[0] - first[0] == 1024 * 2 * 1024 * 2  # final norm and input of the head
    assert last[1] == 1024 * 51200 * 8  # logits, their copy in 32 bits, their gradient
    for loss, width in (("fused", 4), ("plain", 14)):
        other = TrainingPass(model, Layout(pipeline=2), Recipe(loss=loss))  # type: ignore[arg-type]
        assert activation_bytes(other, other.slices[1], batch)[1] == 1024 * 51200 * width
    assert activation_bytes(training, slices(model, 2)[1], MicroBatch(4, 512))[1] == 2 * last[1]


def test_encoders_and_towers_are_kept_on_the_first_stage() -> None:
    """Of an encoder each source position keeps its layers, of decoders each position a second attention."""
    plain, batch = gpt(4, 1024, 16), MicroBatch(2, 512, source=256, images=1)
    t5 = gpt(4, 1024, 16, encoder=Encoder(layers=4))
    llava = gpt(4, 1024, 16, vision=Vision(layers=2, hidden=512, heads=8, intermediate=2048, patch=14, image=224))
    stages = [TrainingPass(model, Layout(pipeline=2)) for model in (plain, t5, llava)]
    first, encoder, tower = (activation_bytes(s, s.slices[0], batch)[0] for s in stages)
    last = [activation_bytes(s, s.slices[1], batch)[0] for s in stages]
    layer, attention = 1024 * 32 + 64, 1024 * 12 + 64  # 8 h + 24 h; 4 h + 6 h + 2 h; a number each head
    assert encoder - first == 2 * 256 * 4 * layer + 2 * 512 * 2 * attention
    assert tower - first == 2 * (16 * 16 + 1) * 2 * (512 * 32 + 32)
    assert [other - last[0] for other in last[1:]] == [2 * 512 * 2 * attention, 0]


def test_what_does_not_fit_is_named() -> None:
    device = load_accelerator("a100-sxm-80gb")
    model = load_model("llama-3-70b")
    with pytest.raises(InputError, match=r"optimizer take most .* GiB too little") as caught:
        training_ledger(TrainingPass(model, Layout(tensor=8)), device, MicroBatch(1, 8192), 1)
    message = str(caught.value)
    missing = float(message.split(" GiB usable, ")[1].split(" GiB")[0])
    book = rank_ledger(TrainingPass(model, Layout(tensor=8)), 0, MicroBatch(1, 8192), 1)
    usable = int(device.memory.capacity * 0.95)
    assert missing == pytest.approx((sum(book) - usable) / GIB, abs=0.06)
    long = TrainingPass(gpt(48, 6144, 64), Layout(tensor=8), GPT)
    with pytest.raises(InputError, match="activations take most"):
        training_ledger(long, device, MicroBatch(4, 2048), 1)
    fits = TrainingPass(model, Layout(tensor=8, pipeline=4), Recipe(replicas=4))
    assert sum(training_ledger(fits, device, MicroBatch(1, 8192), 4)) <= usable


@pytest.mark.skipif(not DATA.exists(), reason="the measured tables are not here")
def test_measured_allocations_of_llama_on_b200() -> None:
    """Allocated memory of Megatron on the first stage, 12 layers of Llama-3-70B: within 3%."""
    whole = load_model("llama-3-70b")
    model = Transformer(**{name: getattr(whole, name) for name in type(whole).model_fields} | {"layers": 12})
    with (DATA / "simumax-b200" / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for row in rows:
        tensor, pipeline = int(row["parallel"][2]), int(row["parallel"][5])
        layout = Layout(tensor=tensor, pipeline=pipeline, sequence_parallel=tensor > 1)
        training = TrainingPass(model, layout, Recipe(replicas=8 // layout.devices))
        book = rank_ledger(training, 0, MicroBatch(1, 4096), int(row["microbatches"]))
        assert book.allocated / GIB == pytest.approx(float(row["real_alloc_gib"]), rel=0.03)


@pytest.mark.skipif(not DATA.exists(), reason="the measured tables are not here")
def test_published_memory_of_gpt_on_selene() -> None:
    """Parameters and states within 4% (the paper leaves embeddings out), activations of first stages exactly."""
    with (DATA / "megatron-selene" / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        model = gpt(int(row["layers"]), int(row["hidden"]), int(row["attn_heads"]), tied_embeddings=True)
        tensor, pipeline, chunks = int(row["tensor"]), int(row["pipeline"]), int(row["interleave"])
        batch, count = MicroBatch(int(row["microbatch"]), int(row["seq"])), int(row["batch"]) // int(row["microbatch"])
        for column, sequence, mode in (
            ("activation_gib_none", False, "none"),
            ("activation_gib_selective_sp", True, "selective"),
        ):
            recipe = GPT.model_copy(update={"chunks": chunks, "recompute": mode})
            layout = Layout(tensor=tensor, pipeline=pipeline, sequence_parallel=sequence)
            book = rank_ledger(TrainingPass(model, layout, recipe), 0, batch, count)
            states = book.weights + book.gradients + book.optimizer
            assert states / GIB == pytest.approx(float(row["param_optimizer_gib"]), rel=0.04)
            assert book.activations / GIB == pytest.approx(float(row[column]), rel=0.004)
