import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import catalog
from simulator.documents import read_document
from simulator.errors import InputError
from simulator.model.transformer import Layout, Transformer, load_model

PUBLISHED = {  # total of the tensors in the published safetensors files
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
}
KV_BYTES = {"llama-2-7b": 524_288, "llama-2-70b": 327_680, "llama-3-8b": 131_072, "llama-3-70b": 327_680}


def card(**changes: object) -> Transformer:
    shape = load_model("llama-3-8b").model_dump() | changes
    return Transformer(**shape)


@pytest.mark.parametrize("name", catalog.names("workloads/models"))
def test_parameters_are_the_published_count(name: str) -> None:
    assert load_model(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", sorted(KV_BYTES))
def test_kv_bytes_per_token_are_exact(name: str) -> None:
    model = load_model(name)
    assert model.kv_bytes_per_token() == KV_BYTES[name]
    assert model.kv_bytes_per_token(bytes_per_value=1) * 2 == KV_BYTES[name]


@pytest.mark.parametrize("name", catalog.names("workloads/models"))
def test_every_number_of_a_card_has_a_source(name: str) -> None:
    values = read_document(catalog.locate("workloads/models", name)).value
    numbers = {key for key, value in values.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    assert len(numbers) == 8
    assert numbers <= set(values["sources"])
    assert values["name"] == name


@pytest.mark.parametrize("name", catalog.names("workloads/models"))
def test_one_rank_holds_all_weights(name: str) -> None:
    model = load_model(name)
    assert model.weight_bytes_per_rank(Layout()) == 2 * model.parameters


@given(
    tensor=st.sampled_from([1, 2, 4, 8, 16, 32]),
    kv_heads=st.sampled_from([1, 2, 4, 8, 32]),
    vocabulary=st.integers(1, 200_000),
    bias=st.booleans(),
    tied=st.booleans(),
)
def test_ranks_hold_the_weights_and_copies_only(
    tensor: int, kv_heads: int, vocabulary: int, bias: bool, tied: bool
) -> None:
    model = card(kv_heads=kv_heads, vocabulary=vocabulary, qkv_bias=bias, tied_embeddings=tied)
    layout = Layout(tensor=tensor)
    model.check(layout)
    norms = (2 * model.layers + 1) * model.hidden
    padding = (1 if tied else 2) * (model.vocabulary_per_rank(layout) * tensor - vocabulary) * model.hidden
    copies = max(0, tensor - kv_heads) * 2 * model.head_dim * (model.hidden + bias) * model.layers
    held = tensor * model.weight_bytes_per_rank(layout)
    assert held == 2 * (model.parameters + (tensor - 1) * norms + padding + copies)
    assert 0 <= padding < 2 * tensor * model.hidden


@given(tensor=st.sampled_from([1, 2, 4, 8, 16, 32]), kv_heads=st.sampled_from([1, 2, 4, 8, 32]))
def test_kv_cache_is_shared_until_one_head_is_left_then_copied(tensor: int, kv_heads: int) -> None:
    model = card(kv_heads=kv_heads)
    each = model.kv_bytes_per_token_per_rank(Layout(tensor=tensor))
    assert each * tensor == model.kv_bytes_per_token() * max(1, tensor // kv_heads)


def test_an_uneven_split_names_the_degrees_that_work() -> None:
    with pytest.raises(InputError, match=r"28 heads.*over 8 tensor-parallel ranks; allowed: 1, 2, 4$") as caught:
        load_model("qwen2.5-7b").check(Layout(tensor=8))
    assert caught.value.problems[0].path == "layout.tensor"


def test_layouts_that_the_allowed_list_names_do_split() -> None:
    model = load_model("qwen2.5-7b")
    good = [degree for degree in range(1, 29) if model.splits_over(degree)]
    for degree in good:
        model.check(Layout(tensor=degree))
        assert model.heads % degree == 0
        assert model.intermediate % degree == 0
    assert 7 not in good  # 4 KV heads over 7 ranks


def test_groups_of_heads_must_be_whole() -> None:
    with pytest.raises(ValueError, match="multiple of kv_heads"):
        card(heads=32, kv_heads=5)


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'llama-3-70b'"):
        load_model("lama-3-70b")
