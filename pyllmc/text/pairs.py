"""Prompts and answers in records: the forms in which other projects write them, and what is wrong with a record.

    {"prompt": ..., "completion": ...}       also response or answer; question and answer; instruction and response
    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]}             OpenAI's
    {"instruction": ..., "input": ..., "output": ...}                                        Alpaca's; input may be empty
    {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}               ShareGPT's

A record may have a system text: a first message of that role, or a field "system". White space around a text is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from pyllmc.base.errors import DataError
from pyllmc.text.characters import How, Source
from pyllmc.text.masks import Marked
from pyllmc.text.readers import RECORDS
from pyllmc.text.template import Talk, Template, Turn
from pyllmc.text.tokenizer import check_characters

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
)
LISTS = ("messages", "conversations")
INPUT = "\n\n### Input:\n"  # stands between Alpaca's instruction and its input in Alpaca's template
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


def looks_like_pairs(record: Any) -> bool:
    """True if a record has the fields of one of the forms."""
    if not isinstance(record, dict):
        return False
    return any(isinstance(record.get(name), list) for name in LISTS) or any(
        a in record and b in record for a, b in PAIRS
    )


def lacks_an_answer(record: Any) -> bool:
    """True if a record has a prompt, and no answer to it."""
    return isinstance(record, dict) and not looks_like_pairs(record) and any(a in record for a, _ in PAIRS)


def talk_of(record: Any, alpaca: bool = False) -> Talk:
    """The turns of a record. Raises DataError, which says what is wrong and the remedy, but not where."""
    if not isinstance(record, dict):
        raise DataError("an object with a prompt and an answer was expected: mend or remove it")
    for name in LISTS:
        if isinstance(record.get(name), list):
            return _of_messages(record[name], name)
    fields = next((pair for pair in PAIRS if pair[0] in record and pair[1] in record), None)
    if not fields:
        has = ", ".join(map(str, list(record)[:12])) or "none"
        raise DataError(
            f"no fields of a prompt and its answer (it has {has}): name them prompt and completion, or messages"
        )
    prompt, answer = (record[name] for name in fields)
    if isinstance(prompt, list) and isinstance(answer, list):
        return _of_messages(prompt + answer, f"{fields[0]} and {fields[1]}")
    asked, more = _text(prompt, fields[0]), record.get("input")
    if fields[0] == "instruction" and more and _text(more, "input", may_be_empty=True):
        asked += (INPUT if alpaca else "\n") + _text(more, "input")
    system = record.get("system")
    return Talk(
        _text(system, "system", may_be_empty=True) if system else "",
        [Turn(asked, _text(answer, fields[1]))],
    )


def _text(value: Any, name: str, may_be_empty: bool = False) -> str:
    if isinstance(value, list):  # OpenAI's parts of a message
        parts = [part.get("text") if isinstance(part, dict) else None for part in value]
        if parts and all(isinstance(part, str) for part in parts):
            value = "".join(parts)  # type: ignore[arg-type]
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise DataError(
            f"{name} is no text ({kind}): mend the record, or leave such ones out with --skip_null"
        )
    check_characters(value, name)
    if not value.strip() and not may_be_empty:
        raise DataError(f"{name} is empty: mend the record, or leave such ones out with --skip_null")
    return value.strip()


def _of_messages(messages: list[Any], field: str) -> Talk:
    system, turns, asked = "", [], ""
    for i, message in enumerate(messages):
        role, text, learnt = _message(message, f"{field}.{i}")
        if role == "system" and i == 0:
            system = text
        elif role == "system":
            raise DataError(f"{field}.{i} is a system text that is not the first message: remove it")
        elif (role == "user") == bool(asked):
            wanted = "an answer follows a prompt" if asked else "a prompt comes before each answer"
            raise DataError(f"{field}.{i} is of {role}, and {wanted}: mend or remove the record")
        elif role == "user":
            asked = text
        else:
            turns.append(Turn(asked, text, learnt))
            asked = ""
    if asked or not turns:
        why = "ends with a prompt that has no answer" if asked else "holds no turns"
        raise DataError(f"{field} {why}: mend the record, or leave such ones out with --skip_null")
    return Talk(system, turns)


def _message(message: Any, name: str) -> tuple[str, str, bool]:
    """(role, text, whether an answer is learnt: OpenAI's "weight": 0 means that it is not)."""
    if not isinstance(message, dict):
        raise DataError(f"{name} is no object with role and content: mend or remove the record")
    said = message.get("role", message.get("from"))
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        known = ", ".join(ROLES)
        raise DataError(
            f"{name} has the role {said!r}, which is none of {known}: rename or remove such messages"
        )
    field = "content" if "content" in message else "value"
    text = _text(message.get(field), f"{name}.{field}", may_be_empty=role == "system")
    weight = message.get("weight", 1)
    if isinstance(weight, str) or weight not in (0, 1):
        raise DataError(f"{name}.weight is {weight!r}: write 0 for an answer that is not learnt, or 1")
    return role, text, weight != 0


def first_record(sources: list[Source], how: How) -> Any:
    """The first record of the first file that holds records, whole; None if no file does."""
    for source in sources:
        if source.kind in RECORDS:
            whole = replace(how, pairs=source.kind not in (".jsonl", ".ndjson"))  # a line of JSON always is
            return next((record for _, record in RECORDS[source.kind](source, whole)), None)
    return None


def read_pairs(
    sources: list[Source], how: How, template: Template, learn_prompt: bool = False
) -> Iterator[Marked]:
    """Yield every record as text. Raises DataError with file and line; how.skip_null leaves such records out."""
    how.skipped, found = 0, False
    alpaca = "### Instruction:" in template.line
    for source in sources:
        for where, record in records_of(source, how):
            try:
                text = template.render(talk_of(record, alpaca), learn_prompt)
            except DataError as e:
                if not how.skip_null:
                    raise DataError(f"{where}: {e}") from None
                how.skipped += 1
                continue
            found = True
            yield text
    if not found:
        more = f" and {len(sources) - 1} more" if sources[1:] else ""
        raise DataError(
            f"{sources[0].name}{more}: no record with a prompt and an answer: name a file with some"
        )


def records_of(source: Source, how: How) -> Iterator[tuple[str, Any]]:
    reader: Callable[[Source, How], Iterator[tuple[str, Any]]] | None = RECORDS.get(source.kind)
    if not reader:
        raise DataError(
            f"{source.name} holds no records, and the other input holds pairs: prepare them apart, in two data sets"
        )
    return reader(source, how)
