import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulator import catalog
from simulator.device.accelerator import load_accelerator
from simulator.device.memory import CONTEXT_BYTES, Ledger, activation_bytes, buffer_bytes, kv_blocks, ledger
from simulator.errors import InputError
from simulator.model.layout import Layout
from simulator.model.split import kv_bytes_per_token_per_rank, splits_over, weight_bytes_per_rank
from simulator.model.transformer import load_model

H100 = load_accelerator("h100-sxm-80gb")
LLAMA_8B, LLAMA_70B = load_model("llama-3-8b"), load_model("llama-3-70b")


def test_ledger_of_llama_3_8b_by_hand() -> None:
    book = ledger(LLAMA_8B, Layout(), H100, max_batch_tokens=8192, max_sequences=256, utilisation=0.9)
    assert book.usable_bytes == int(81559 * 2**20 * 0.9)
    assert book.weight_bytes == 2 * 8_030_261_248
    assert book.buffer_bytes == 0
    assert book.activation_bytes == 2 * 8192 * (2 * 4096 + 3 * 14336)
    assert sum(book[1:]) == book.usable_bytes
    assert kv_blocks(book, LLAMA_8B, Layout(), 16) == book.kv_bytes // (16 * 131_072)


@given(
    name=st.sampled_from(catalog.names("workloads/models")),
    device=st.sampled_from(catalog.names("topologies/devices")),
    tensor=st.sampled_from([1, 2, 4, 8]),
    tokens=st.integers(1, 32768),
    sequences=st.integers(1, 1024),
    utilisation=st.floats(0.5, 1.0),
)
def test_terms_add_up_and_blocks_fit(name, device, tensor, tokens, sequences, utilisation) -> None:
    model, layout, sheet = load_model(name), Layout(tensor=tensor), load_accelerator(device)
    assume(splits_over(model, tensor))
    needed = weight_bytes_per_rank(model, layout) + activation_bytes(model, layout, tokens, sequences)
    needed += CONTEXT_BYTES + buffer_bytes(model, layout, tokens) + kv_bytes_per_token_per_rank(model, layout)
    if needed > int(sheet.memory.capacity * utilisation):
        with pytest.raises(InputError, match="does not fit"):
            ledger(model, layout, sheet, tokens, sequences, utilisation)
        return
    book = ledger(model, layout, sheet, tokens, sequences, utilisation)
    assert min(book) >= 0
    assert sum(book[1:]) == book.usable_bytes <= sheet.memory.capacity
    assert kv_blocks(book, model, layout, 1) * kv_bytes_per_token_per_rank(model, layout) <= book.kv_bytes


def test_more_ranks_leave_more_kv_tokens_and_more_tokens_per_step_leave_fewer() -> None:
    books = [ledger(LLAMA_70B, Layout(tensor=t), H100, 8192) for t in (4, 8)]
    blocks = [kv_blocks(b, LLAMA_70B, Layout(tensor=t), 16) for b, t in zip(books, (4, 8), strict=True)]
    assert blocks[1] > 2 * blocks[0]
    assert ledger(LLAMA_70B, Layout(tensor=4), H100, 16384).kv_bytes < books[0].kv_bytes


def test_what_does_not_fit_names_the_binding_term_and_what_is_missing() -> None:
    with pytest.raises(InputError) as caught:
        ledger(LLAMA_70B, Layout(), H100, 8192)
    text = str(caught.value)
    assert "llama-3-70b does not fit h100-sxm-80gb under TP1: weights take most" in text
    assert "weights 131.4 GiB" in text
    usable = 81559 / 1024 * 0.9
    missing = 131.415 + 8192 * 2 * (2 * 8192 + 3 * 28672) / 2**30 + 0.473e9 / 2**30 - usable
    assert f"{missing:.1f} GiB too little" in text


def test_activations_can_be_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="activations take most"):
        ledger(LLAMA_8B, Layout(), H100, max_batch_tokens=1_000_000)


def test_logits_of_many_sequences_count() -> None:
    few, many = (activation_bytes(LLAMA_8B, Layout(), 256, n) for n in (1, 4096))
    assert many == 2 * 2 * 256 * 4096 + 4096 * 128256 * 6 > few


def test_a_block_larger_than_what_is_left_is_refused() -> None:
    with pytest.raises(InputError, match="one KV block of 16 tokens"):
        kv_blocks(Ledger(100, 50, 15, 0, 10, 25), LLAMA_8B, Layout(), 16)
