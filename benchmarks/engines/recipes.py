"""Sequences that a data-parallel rank of a TensorRT-LLM decode worker takes, as the recipes of the silicon rows say.

Source: SemiAnalysisAI/InferenceX, .github/configs/nvidia-master.yaml (0004cf5f), and for H100 the recipes that it runs,
ishandhanani/srt-slurm (51962c0f): prefill and decode workers, the concurrencies measured, and the largest batch, which
is in the name of a recipe; those without speculative decoding.
"""

from typing import NamedTuple


class Recipe(NamedTuple):
    """Workers of both pools, the numbers of clients that they were measured at, and the largest batch of a rank."""

    prefill: int
    decode: int
    clients: tuple[int, ...]
    batch: int


RECIPES: dict[tuple[str, str, int, int], tuple[Recipe, ...]] = {
    ("h100_sxm", "fp8", 1024, 1024): (Recipe(1, 3, (6,), 1), Recipe(1, 3, (9,), 2)),
    ("h100_sxm", "fp8", 8192, 1024): (Recipe(1, 3, (6,), 1), Recipe(1, 3, (9,), 2)),
    ("b200_sxm", "fp4", 1024, 1024): (
        Recipe(1, 1, (4096,), 512),
        Recipe(1, 2, (2192,), 128),
        Recipe(1, 5, (1365,), 32),
        Recipe(1, 5, (6,), 1),
        Recipe(1, 5, (10, 15, 25, 45, 90, 180), 32),
        Recipe(1, 6, (450,), 64),
    ),
    ("b200_sxm", "fp4", 8192, 1024): (
        Recipe(1, 5, (6,), 1),
        Recipe(1, 5, (10, 15, 25, 50, 100), 8),
        Recipe(2, 5, (370,), 64),
        Recipe(4, 1, (1606,), 192),
        Recipe(4, 3, (837,), 32),
        Recipe(7, 2, (2222,), 128),
    ),
    ("b200_sxm", "fp8", 1024, 1024): (
        Recipe(1, 3, (4, 32, 128), 1024),
        Recipe(1, 5, (1920,), 48),
        Recipe(1, 1, (4096,), 512),
        Recipe(2, 5, (5152,), 128),
    ),
    ("b200_sxm", "fp8", 8192, 1024): (
        Recipe(1, 1, (1,), 1),
        Recipe(1, 4, (32, 128), 32),
        Recipe(1, 6, (96,), 16),
        Recipe(1, 1, (128,), 128),
        Recipe(1, 2, (128,), 64),
        Recipe(1, 1, (256,), 256),
        Recipe(2, 1, (640,), 640),
    ),
    ("gb200", "fp4", 1024, 1024): (
        Recipe(1, 1, (666,), 16),
        Recipe(1, 2, (6144,), 768),
        Recipe(1, 4, (12, 24, 48, 96, 192), 32),
        Recipe(1, 4, (5,), 1),
        Recipe(2, 1, (2253,), 64),
    ),
    ("gb200", "fp4", 1024, 8192): (
        Recipe(1, 7, (5,), 1),
        Recipe(1, 15, (60,), 4),
        Recipe(1, 15, (135,), 8),
        Recipe(1, 1, (563,), 16),
        Recipe(1, 1, (2048,), 64),
        Recipe(1, 1, (4096,), 128),
        Recipe(1, 1, (8192,), 256),
    ),
    ("gb200", "fp4", 8192, 1024): (
        Recipe(1, 4, (12, 44, 76), 16),
        Recipe(1, 4, (5,), 1),
        Recipe(2, 1, (333,), 8),
        Recipe(7, 1, (1229,), 32),
        Recipe(8, 1, (2253,), 128),
        Recipe(10, 1, (4096,), 256),
    ),
    ("gb200", "fp8", 1024, 1024): (
        Recipe(1, 1, (6144,), 768),
        Recipe(1, 1, (4301,), 512),
        Recipe(1, 1, (2151,), 128),
        Recipe(1, 1, (1127,), 32),
        Recipe(1, 1, (256,), 8),
        Recipe(1, 3, (27,), 8),
        Recipe(1, 3, (3,), 1),
    ),
    ("gb200", "fp8", 1024, 8192): (
        Recipe(1, 2, (8192,), 256),
        Recipe(1, 1, (2048,), 64),
        Recipe(1, 1, (564,), 16),
        Recipe(1, 4, (36,), 8),
        Recipe(1, 4, (4,), 1),
    ),
    ("gb200", "fp8", 8192, 1024): (
        Recipe(5, 1, (1229,), 64),
        Recipe(4, 1, (666,), 16),
        Recipe(3, 1, (615,), 32),
        Recipe(2, 1, (333,), 8),
        Recipe(1, 3, (63,), 16),
        Recipe(1, 3, (18,), 4),
        Recipe(1, 3, (6,), 1),
    ),
}


def batch_of(
    system: str, precision: str, prompt: int, output: int, workers: tuple[int, int], clients: int
) -> int | None:
    """Return the largest batch of a decode rank in the recipe of a row, or None when there is none for it."""
    for recipe in RECIPES.get((system, precision, prompt, output), ()):
        if (recipe.prefill, recipe.decode) == workers and clients in recipe.clients:
            return recipe.batch
    return None
