"""The model card, README.md of a Hugging Face folder: it says what is known, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pyllmc.base.errors import DataError, MissingDependency
from pyllmc.convert.recipes import parameter_count
from pyllmc.tables.layout import GPTConfig
from pyllmc.tables.options import options
from pyllmc.text.template import Template
from pyllmc.text.tokenizer import Tokenizer

HIDDEN = (
    "data",
    "val_data",
    "tokenizer",
    "out",
    "resume",
    "config",
    "overwrite",
    "plan",
    "threads",
    "zero",
    "log_every",
    "keep",
)  # options that mean something on this machine only
HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- {architecture}
- pyllmc
---

# {name}

{about}

| | |
|---|---|
{sizes}
"""


USE = """
## How to use it

```python
from transformers import pipeline

write = pipeline("text-generation", "{name}")  # this folder
print(write("{prompt}", do_sample=False)[0]["generated_text"])
```

"""
CHAT = """
## How to use it

```python
from transformers import pipeline

write = pipeline("text-generation", "{name}")  # this folder
messages = [{{"role": "user", "content": "{prompt}"}}]
answer = write(messages, do_sample=False, stop_strings=[{stop!r}], tokenizer=write.tokenizer)
print(answer[0]["generated_text"][-1]["content"])
```

The model was fine-tuned on prompts and answers. The tokenizer's `chat_template` makes of messages the ids that it has learnt from;
an answer ends before the text in `stop_strings`.

"""
BEGINS = """Every text begins with `{eot}` (id {id}): the model learnt what a beginning is from it, and it ends a text, too. The
tokenizer here puts it there by itself; who makes ids in another way, or with `add_special_tokens=False`, puts it first.
Greedily, transformers then writes what pyllmc writes from the same prompt.
"""
BEGINS_BY_ID = """Ids go in and come out. Every text begins with the id {id}: the model learnt what a beginning is from it, and it ends
a text, too.
"""
NO_BEGINNING = (
    "No token marks where a text begins or ends: a text needs a first word, and ends where you stop it.\n"
)


def model_card(
    name: str,
    config: GPTConfig,
    dtype: str,
    tokenizer: Tokenizer | None,
    run: Mapping[str, Any],
    notes: Sequence[str],
    read: str,
    has_tokenizer: bool,
    form: Template | None = None,
) -> str:
    """Writes the card. run: what checkpoint.training() found; notes: what the folder lacks; read: the source of the weights;
    has_tokenizer: True if transformers finds one in the folder; form: the template of a fine-tuned model."""
    architecture = "gpt_neo" if config.banded else "gpt2"
    sizes = "\n".join(f"| {what} | {value} |" for what, value in size_rows(config, dtype, tokenizer))
    about = (
        f"A GPT-2-class language model, written by pyllmc from: {read}."
        if read
        else ("A GPT-2-class language model, written by pyllmc.")
    )
    text = HEAD.format(architecture=architecture, name=name, about=about, sizes=sizes)
    text += beginning(name, tokenizer, has_tokenizer, form)
    if run:
        text += "\n" + training_part(run) + evaluation_part(run.get("scores", []))
    if notes:
        text += "\n## What to know\n\n" + "".join(f"* {note}\n" for note in notes)
    return text


def beginning(name: str, tokenizer: Tokenizer | None, has_tokenizer: bool, form: Template | None) -> str:
    """Says how to use the model and how a text must begin; transformers knows that from the folder's tokenizer."""
    eot = tokenizer.eot if tokenizer else -1
    if not has_tokenizer:
        return "\n## How to use it\n\n" + BEGINS_BY_ID.format(id=eot) if eot >= 0 else ""
    assert tokenizer
    use = USE.format(name=name, prompt=example(tokenizer))
    if form:
        use = CHAT.format(name=name, prompt=example(tokenizer).strip() or letter(tokenizer), stop=form.stop)
    if eot < 0:
        return use + NO_BEGINNING
    return use + BEGINS.format(eot=tokenizer.pieces[eot].decode(), id=eot)


def example(tokenizer: Tokenizer) -> str:
    """A prompt that this tokenizer can encode, written as it stands between quotes."""
    try:
        tokenizer.encode("Once upon a time")
        return "Once upon a time"
    except MissingDependency:  # tiktoken is missing, which would encode any text
        return "Once upon a time"
    except DataError:
        return "" if tokenizer.eot >= 0 else repr(tokenizer.pieces[0].decode("utf-8", "replace"))[1:-1]


def letter(tokenizer: Tokenizer) -> str:
    """The first letter or digit that is a piece."""
    return next((piece.decode() for piece in tokenizer.pieces if piece.isalnum()), "Hello")


def size_rows(c: GPTConfig, dtype: str, tokenizer: Tokenizer | None) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [
        ("parameters", f"{parameter_count(c):,}"),
        ("layers", c.n_layer),
        ("heads", c.n_head),
        ("channels", c.n_embd),
        ("context", f"{c.max_seq_len} tokens"),
        ("vocabulary", f"{c.vocab_size:,}"),
        ("tokenizer", f"{tokenizer.name}, {tokenizer.vocab_size:,} pieces" if tokenizer else "not known"),
        ("numbers", dtype),
    ]
    if c.banded:
        rows.append(("attention", f"{c.bands} see the last {c.window} positions"))
    return rows


def training_part(run: Mapping[str, Any]) -> str:
    given = changed(run["options"])
    options = "".join(f"{name}={value}\n" for name, value in given.items())
    rows = "\n".join(f"| {what} | {value} |" for what, value in training_rows(run))
    text = f"## Training\n\n| | |\n|---|---|\n{rows}\n"
    return text + (f"\nOptions that are not pyllmc's default:\n\n```\n{options}```\n" if options else "")


def evaluation_part(scores: Sequence[Mapping[str, Any]]) -> str:
    """The scores that the run's folder holds of these weights, each with its protocol."""
    rows = ""
    for score in scores:
        value, error = (score.get(name) for name in ("value", "error"))
        if not isinstance(value, float) or "/" in score["task"]:
            continue
        told = f"{value:.4g}" + (f" ± {error:.2g}" if isinstance(error, float) else "")
        part = f", the first {score['limit']} records" if score.get("limit") else ""
        rows += (
            f"| {score['task']} | {score['metric']} | {told} | {score['n']:,} | {score['protocol']}{part} |\n"
        )
    return (
        f"\n## Evaluation\n\n| task | score | value | n | protocol |\n|---|---|---|---|---|\n{rows}"
        if rows
        else ""
    )


def training_rows(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    state, given, meta = run["state"], run["options"], run["meta"]
    rows = [("steps", f"{int(state.get('step', 0)):,} of {int(given.get('max_steps', 0)):,}")]
    if "tokens" in state:
        padded = "masks" in meta or not meta  # windows of pairs end with padding, which the run counts, too
        rows.append((f"tokens seen{', at most' if padded else ''}", f"{int(state['tokens']):,}"))
    if run["loss"]:
        rows.append(("training loss of the last batch", run["loss"]))
    val_loss = float(state.get("val_loss", "nan"))
    if math.isfinite(val_loss):
        rows.append(("validation loss", f"{val_loss:.4f} nats per token"))
    if isinstance(meta.get("source"), str):
        rows.append(("data", meta["source"]))
    tokens = meta.get("tokens")
    if isinstance(tokens, dict) and tokens and all(isinstance(n, int) for n in tokens.values()):
        rows.append(("tokens of the data", ", ".join(f"{n:,} {split}" for split, n in tokens.items())))
    return rows


def changed(given: dict[str, str]) -> dict[str, str]:
    """The options that differ from their defaults, without those that say nothing to others (paths of this machine)."""
    kept = {}
    for name, option in options().items():
        value = given.get(name, "")
        if name in HIDDEN or not value or "/" in value or option.read(value) == option.default:
            continue
        kept[name] = f"{float(value):g}" if option.type == "FLOAT" else value
    return kept
