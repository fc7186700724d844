"""Published figures: what a score is set beside."""

from __future__ import annotations

# GPT-2 paper (Radford et al. 2019), table 3, zero-shot. Accuracies are in percent there and here.
GPT2 = """
size    lambada:ppl  lambada:acc  cbt_cn:acc  cbt_ne:acc  wikitext2:ppl  ptb:ppl  enwik8:bpb  text8:bpc  wikitext103:ppl  lm1b:ppl
124M          35.13        45.99       87.65       83.4           29.41    65.85        1.16       1.17            37.50     75.20
355M          15.60        55.48       92.35       87.1           22.76    47.33        1.01       1.06            26.37     55.72
774M          10.87        60.12       93.45       88.0           19.93    40.31        0.97       1.02            22.05     44.575
1.5B           8.63        63.24       93.30       89.05          18.34    35.76        0.93       0.98            17.48     42.16
"""

# llm.c's figures for OpenAI's weights and for its own; Brown et al. 2020 (GPT-3), table H.1, zero-shot; lm-eval's for OpenAI's weights.
OTHERS = {
    "hellaswag:acc_norm": {"124M": 29.4, "124M of llm.c": 29.9, "GPT-3 125M": 33.7},
    "lambada_lm_eval:acc": {"124M": 32.56},
    "lambada_lm_eval:ppl": {"124M": 40.06},
}


def published(task: str, metric: str) -> dict[str, float] | None:
    """The figures of a task by model size; accuracies as fractions. None if there are none."""
    head, *rows = (line.split() for line in GPT2.strip().splitlines())
    name = f"{task}:{metric}"
    if name in head:
        found = {row[0]: float(row[head.index(name)]) for row in rows}
    else:
        found = OTHERS.get(name, {})
    scale = 100 if metric.startswith("acc") else 1
    return {size: round(figure / scale, 6) for size, figure in found.items()} or None
