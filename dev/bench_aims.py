"""The figures that a whole run on a CPU should reach. bench_table.py says for each whether it does."""

from __future__ import annotations

# the words for it: (figure, at least, goal); ratios are to PyTorch, Hugging Face or the best library
AIMS = {
    "{:.2f}×": [
        ("124M B=4 T=64 fp32", 2.0, 2.3),
        ("124M B=4 T=64 bf16", 1.15, 1.35),
        ("124M B=4 T=1024 fp32", 2.0, 2.3),
        ("124M B=4 T=1024 bf16", 1.2, 1.4),
        ("nano-adder B=64 T=6 fp32", 4, 8),
        ("char-10M B=8 T=256 fp32", 2, 3),
        ("demo B=8 T=160 fp32", 3, 5),
        ("char-10M B=8 T=256 bf16", 1, 2),
        ("demo B=8 T=160 bf16", 1, 2),
        ("matrix product fp32, mean of all shapes", 1, 1),
        ("matrix product fp32, worst shape", 1, 1),
        ("matrix product bf16, mean of all shapes", 0.9, 1),
        ("matrix product bf16, worst shape", 0.9, 1),
        ("attention fp32", 3, 5),
        ("attention bf16", 3, 5),
        ("256 tokens, fp32", 2.5, 2.5),
        ("256 tokens, bf16", 2.5, 2.5),
        ("256 tokens, int8 against bf16", 1.6, 1.6),
        ("prompt of 512, bf16", 1, 2),
        ("prompt of 512, int8", 1, 2),
        ("2 threads against 1", 1.9, 1.9),
    ],
    "{:.0%} of the roofline": [
        ("124M B=4 T=1024 fp32", 0, 0.75),
        ("124M B=4 T=1024 bf16", 0, 0.70),
        *((f"256 tokens, {kind}", 0, 0.8) for kind in ("fp32", "bf16")),
        *(
            (f"{what}, {kind}", 0.5, 0.65)
            for what in ("prompt of 512", "batch 16")
            for kind in ("fp32", "bf16", "int8")
        ),
    ],
    "{:.0%} less memory": [
        ("124M B=4 T=1024 fp32", 0.3, 0.55),
        ("124M B=4 T=1024 bf16", 0.3, 0.55),
    ],
}
# the same on CPUs with AMX, where they differ
ON_AMX = {
    "{:.2f}×": {
        "124M B=4 T=64 bf16": (1.8, 3),
        "124M B=4 T=1024 bf16": (2.5, 4),
        "char-10M B=8 T=256 bf16": (2, 4),
        "demo B=8 T=160 bf16": (2, 4),
        "matrix product bf16, mean of all shapes": (1.25, 1.6),
        "attention bf16": (3, 4.5),
        "prompt of 512, bf16": (2, 4),
        "prompt of 512, int8": (2, 4),
    },
    "{:.0%} less memory": {"124M B=4 T=1024 bf16": (0.5, 0.65)},
}


def aims_of(isa: str) -> dict[str, list[tuple[str, float, float]]]:
    """The aims on a CPU whose best instruction set this is."""
    special = ON_AMX if isa == "amx" else {}
    return {
        told: [(what, *special.get(told, {}).get(what, (least, goal))) for what, least, goal in wanted]
        for told, wanted in AIMS.items()
    }
