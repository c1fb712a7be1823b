"""What the recipes of the silicon rows say of decode workers: how many sequences a rank takes, and when tokens leave.

Sources: for TensorRT-LLM SemiAnalysisAI/InferenceX, .github/configs/nvidia-master.yaml (0004cf5f), and for H100 the
recipes that it runs, ishandhanani/srt-slurm (51962c0f): the largest batch is in the name of a recipe. For SGLang
ishandhanani/srt-slurm, recipes/{b200,gb200}-{fp4,fp8}, as they were when the rows were measured (50f459c2, 1e312702,
89654bcc, ab586514, f64d2b9f), for v0.5.5 the scripts in ai-dynamo/dynamo that they come from (341b5dff, 370b7505,
75b4a35f): `max-running-requests` over the ranks, `max-total-tokens` of a rank and `stream-interval`. All without
speculative decoding.
"""

from typing import NamedTuple


class Recipe(NamedTuple):
    """Workers of both pools, the numbers of clients that they were measured at, and the decode workers' settings."""

    prefill: int
    decode: int
    clients: tuple[int, ...]
    batch: int
    """Sequences of a rank at most."""
    interval: int = 1
    """Output tokens that are sent together. TensorRT-LLM sends the first token at once whatever its interval
    (NVIDIA/TensorRT-LLM, py_executor.py: the first decoding iteration, then every so many)."""
    kv_tokens: int | None = None
    """Of a rank's cache; None: what its memory holds."""


Table = dict[tuple[str, str, int, int], tuple[Recipe, ...]]

TENSORRT: Table = {
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


SGLANG: Table = {
    ("b200_sxm", "fp4", 1024, 1024): (Recipe(1, 1, (512,), 128, 30), Recipe(1, 2, (512,), 64, 30)),
    ("b200_sxm", "fp4", 8192, 1024): (
        Recipe(1, 1, (4, 8, 16, 64, 128), 512, 30),
        Recipe(7, 2, (1024, 2048), 256, 30),
    ),
    ("b200_sxm", "fp8", 1024, 1024): (Recipe(1, 1, (4,), 512, 30),),
    ("b200_sxm", "fp8", 8192, 1024): (
        Recipe(1, 1, (4, 32, 64), 512, 30),
        Recipe(1, 4, (64,), 512, 30),
        Recipe(1, 1, (128,), 64, 30),
        Recipe(2, 1, (256,), 64, 30),
        Recipe(1, 4, (128,), 32, 30),
        Recipe(1, 2, (288,), 16, 30),
        Recipe(1, 1, (160, 288), 32, 30),
        Recipe(2, 1, (512,), 64, 30),
        Recipe(3, 1, (1024,), 128, 30),
    ),
    ("gb200", "fp4", 1024, 1024): (
        Recipe(1, 2, (4, 8, 32, 64), 512, 10),
        Recipe(4, 1, (512, 2048, 4096, 8192, 12000), 2112, 50),
    ),
    ("gb200", "fp4", 8192, 1024): (
        Recipe(1, 4, (4, 8, 32, 64), 512, 50),
        Recipe(10, 1, (1024, 2048, 8192), 512, 50, 524_288),
    ),
    ("gb200", "fp8", 1024, 1024): (
        Recipe(1, 1, (4, 8), 128, 10),
        Recipe(1, 4, (16, 64, 128), 128, 10),
        Recipe(1, 1, (4096,), 640, 50),
        Recipe(2, 1, (1024, 2048, 4096, 6144), 1406, 50),
    ),
    ("gb200", "fp8", 8192, 1024): (
        Recipe(1, 1, (4, 8, 16), 512, 1),
        Recipe(5, 1, (512, 1024, 2048, 6144), 256, 50),
    ),
}
RECIPES = {"trtllm": TENSORRT, "sglang": SGLANG}


def recipe_of(
    engine: str, system: str, precision: str, prompt: int, output: int, workers: tuple[int, int], clients: int
) -> Recipe | None:
    """Return the recipe of a row, or None when there is none for it."""
    for recipe in RECIPES.get(engine, {}).get((system, precision, prompt, output), ()):
        if (recipe.prefill, recipe.decode) == workers and clients in recipe.clients:
            return recipe
    return None
