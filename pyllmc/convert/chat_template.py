"""A run's template as the chat_template of a Hugging Face tokenizer: transformers then makes of messages the ids that the training
has read (pyllmc/text/template.py, pyllmc/text/pairs.py).

Training encodes each part of a talk alone: the system text, a prompt up to its answer, an answer with its end. transformers encodes the
whole text at once. Where these could differ, the chat_template writes a mark between the parts, at which tokenizer.json cuts the
text and which it drops.
"""

from __future__ import annotations

import re
from typing import Any

from pyllmc.base.errors import need
from pyllmc.base.values import ESCAPES
from pyllmc.text.template import Template
from pyllmc.text.tokenizer import Tokenizer
from pyllmc.text.tokenizer_formats import PART, WHY, eot_text

# What GPT-2's regular expression tells apart: a letter, a digit, another sign, and the ends of "it's", "we've", ...
SHORT = ("s", "t", "re", "ve", "m", "ll", "d")
KINDS = ("a", "1", ".", "'", *SHORT, *("'" + end for end in SHORT))

# Jinja, as transformers renders it. The words in capitals stand for expressions.
JINJA = """\
{%- macro text(message) -%}
    {%- set content = message['content'] -%}
    {{- (content if content is string else content | map(attribute='text') | join) | trim -}}
{%- endmacro -%}
{{- BEGIN }}
{%- set first = 1 if messages and messages[0]['role'] in ('system', 'developer') else 0 %}
{%- if first and text(messages[0]) %}
    {{- SYSTEM }}
{%- endif %}
{%- for message in messages[first:] %}
    {%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') %}
        {{- raise_exception('after a system text, if there is one, messages of user and assistant must take turns') }}
    {%- elif BEGIN and BEGIN in text(message) %}
        {{- raise_exception('a message holds the text that stands for the end of a document') }}
    {%- elif not text(message) %}
        {{- raise_exception('a message is empty') }}
    {%- elif loop.index0 % 2 %}
        {{- SPACES + text(message) + END }}
    {%- elif loop.last and not add_generation_prompt %}
        {{- BEFORE + text(message) }}
    {%- else %}
        {{- BEFORE + text(message) + BETWEEN }}
    {%- endif %}
{%- endfor %}
"""
NO_SYSTEM = "the template that this model was fine-tuned with has no place for a system text: leave it out"


def chat_template(form: Template, tokenizer: Tokenizer) -> str:
    """The Jinja text that makes of a list of messages what form.render makes of a talk, behind EOT if there is one.

    A message of the user at the end is an open turn: with add_generation_prompt, the answer comes next.
    """
    places = {
        "BEGIN": quoted(eot_text(tokenizer) if tokenizer.eot >= 0 else ""),
        "SYSTEM": f"raise_exception({quoted(NO_SYSTEM)})",
        "SPACES": quoted(form.spaces),
        "END": quoted(form.end + mark(tokenizer, form.end, form.before)),
        "BEFORE": quoted(form.before),
        "BETWEEN": quoted(form.between + mark(tokenizer, form.between, form.spaces)),
    }
    if form.opening:
        behind = form.opening[1] + mark(tokenizer, form.opening[1], form.before)
        places["SYSTEM"] = f"{quoted(form.opening[0])} + text(messages[0]) + {quoted(behind)}"
    return re.sub("|".join(places), lambda place: places[place[0]], JINJA)


def quoted(text: str) -> str:
    """A text as Jinja writes it."""
    for escape, c in reversed(ESCAPES.items()):
        text = text.replace(c, f"\\{escape}")
    return "'" + text.replace("'", "\\'") + "'"


def cut_at_marks(made: Any) -> None:
    """Makes a tokenizers.Tokenizer cut texts at the marks, and drop these."""
    cut = need("tokenizers", WHY).pre_tokenizers
    made.pre_tokenizer = cut.Sequence([cut.Split(PART, "removed"), made.pre_tokenizer])


def mark(tokenizer: Tokenizer, left: str, right: str) -> str:
    """PART if a text could be encoded otherwise in one than in two, the first of which ends with `left`, and the second begins with
    `right`; else "". Each may also hold other text, whose outer characters are no blanks."""
    if tokenizer.kind == "longest":
        return PART if spanned(tokenizer, left.encode(), right.encode()) else ""
    words = need("tokenizers", WHY).pre_tokenizers.ByteLevel(add_prefix_space=False)

    def cut(text: str) -> list[str]:
        return [word for word, _ in words.pre_tokenize_str(text)]

    pairs = [(a + left, right + b) for a in KINDS for b in KINDS]
    return "" if all(cut(a + b) == cut(a) + cut(b) for a, b in pairs) else PART


def spanned(tokenizer: Tokenizer, left: bytes, right: bytes) -> bool:
    """True if a piece could begin in the first text and end in the second."""
    cuts = ((piece[:i], piece[i:]) for piece in tokenizer.pieces for i in range(1, len(piece)))
    return any(
        (left.endswith(a) or a.endswith(left)) and (right.startswith(b) or b.startswith(right))
        for a, b in cuts
    )
