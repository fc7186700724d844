"""GPT-3's priming (Brown et al. 2020, section 2): examples of a task before a query, so that a model that was never trained for
the task goes on with the answer. No example is "zero-shot", one "one-shot", several "few-shot"."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Union

from pyllmc.base.checks import NotCopied, as_count, as_int, as_path, as_text, refuse
from pyllmc.base.errors import BadFile, DataError, InvalidArgument, counted
from pyllmc.base.files import reading
from pyllmc.engine import _ffi
from pyllmc.engine.arguments import make_sampling
from pyllmc.engine.steps import Step
from pyllmc.model import Model
from pyllmc.text.tokenizer import check_characters, shown
from pyllmc.writer import Answers, Path, Writer, as_texts, open_model

SEPARATOR, END = " => ", "\n"
FIELDS = ("query", "answer")
MOST = 64  # tokens in an answer

Pair = tuple[str, str]
Source = Union[Writer, Model, Path]


class Form(NamedTuple):
    """How examples are written: the task, then a line `query` `separator` `answer` `end` for each.

    task: a text before the examples, such as "Translate English to French:"; it ends like an example.
    """

    separator: str = SEPARATOR
    end: str = END
    task: str = ""

    def checked(self) -> Form:
        for name, text in self._asdict().items():
            if not _text(name, text) and name != "task":
                raise InvalidArgument(f"{name} is empty: an answer could not be told from what is beside it")
        return self

    def head(self, examples: Sequence[Pair]) -> str:
        """The text before a query: the same for all queries."""
        task = f"{self.task}{self.end}" if self.task else ""
        return task + "".join(f"{query}{self.separator}{answer}{self.end}" for query, answer in examples)

    def asked(self, query: str) -> str:
        """A query and the separator, but for the spaces at its end: most byte-pair tokenizers join a space to the word
        behind it, so the model writes them itself."""
        return query + self.separator.rstrip(" ")

    @property
    def gap(self) -> str:
        """The spaces that an answer begins with."""
        return " " * (len(self.separator) - len(self.separator.rstrip(" ")))

    def problem(self, query: str, answer: str) -> str:
        """Why the form cannot write an example, or ''."""
        if not query or not answer:
            return f"the {FIELDS[bool(query)]} is empty"
        for name, text in zip(FIELDS, (query, answer)):
            if self.end in text:
                return f"the {name} holds '{shown(self.end.encode())}', with which an answer ends: take another end"
        if self.separator in query:
            return f"the query holds the separator '{shown(self.separator.encode())}': take another separator"
        return ""


def _text(name: str, value: Any, where: str = "") -> str:
    try:
        check_characters(as_text(f"{where}{name}", value), what=name, where=where)
    except DataError as error:
        raise InvalidArgument(str(error)) from None
    return str(value)


def _pair(example: Any, where: str, form: Form) -> Pair:
    """An example as a pair of texts. Raises InvalidArgument with its place."""
    if isinstance(example, (str, bytes)) or not isinstance(example, Sequence) or len(example) != 2:
        refuse(where, example, "a pair (query, answer)")
    query, answer = (_text(name, text, f"{where}: ") for name, text in zip(FIELDS, example))
    problem = form.problem(query, answer)
    if problem:
        raise InvalidArgument(f"{where}: {problem}")
    return query, answer


def _pairs(examples: Any, form: Form) -> list[Pair]:
    if isinstance(examples, (str, bytes)) or not isinstance(examples, Sequence):
        refuse("examples", examples, "a list of pairs (query, answer)")
    return [_pair(example, f"examples[{i}]", form) for i, example in enumerate(examples)]


def _asked(query: Any, form: Form) -> str:
    problem = form.problem(_text("query", query), "-")
    if problem:
        raise InvalidArgument(f"query {query!r:.60}: {problem}")
    return form.asked(query)


def prime(
    examples: Sequence[Pair], query: str, separator: str = SEPARATOR, end: str = END, task: str = ""
) -> str:
    """The prompt of GPT-3's priming: the task if there is one, the examples, and the query without an answer.

    >>> pyllmc.prime([("cat", "chat"), ("dog", "chien")], "house")
    'cat => chat\\ndog => chien\\nhouse =>'

    A model goes on with the answer and `end`. The prompt ends before the separator's last spaces, because most byte-pair tokenizers
    join a space to the word behind it. Raises InvalidArgument for what the form cannot write.
    """
    form = Form(separator, end, task).checked()
    return form.head(_pairs(examples, form)) + _asked(query, form)


def read_examples(path: Path, form: Form | None = None) -> list[Pair]:
    """The examples of a .jsonl file: a line {"query": text, "answer": text} each; empty lines do not count.

    Raises BadFile with the number of the line.
    """
    name, form = as_path("path", path), Form() if form is None else form
    if not isinstance(form, Form):
        refuse("form", form, "a Form, such as pyllmc.priming.Form(separator='>')")
    with reading(name), open(name, "rb") as f:
        lines = f.read().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    found = [_record(line, f"{name}:{number}", form) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise BadFile(f'{name} holds no example: write a line {{"query": "...", "answer": "..."}} for each')
    return found


def _record(line: bytes, where: str, form: Form) -> Pair:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{where}: no JSON in UTF-8 ({error}): {_WANTED}") from None
    if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in FIELDS):
        raise BadFile(f"{where}: not an object with the texts query and answer: {_WANTED}")
    try:
        return _pair([record[name] for name in FIELDS], where, form)
    except InvalidArgument as error:
        raise BadFile(str(error)) from None


_WANTED = 'write {"query": "...", "answer": "..."} on each line'


class Primer(NotCopied):
    """A model that has read examples, and answers queries.

    >>> primer = pyllmc.Primer("models/124M", [("cat", "chat"), ("dog", "chien")])
    >>> primer.answer("house")

    The examples are read once: the model keeps their keys and values in its cache for all queries, as long as nothing else uses
    it. What is written into an array of model.params goes unnoticed: assign params[name] = array, and the examples are read with the
    new weights. If the context cannot hold all examples, beside one more line as long as the longest of them (or `longest`), the first
    ones are left out, with a RuntimeWarning; `shots` is the number of those that are used.

    model: a Writer, a Model, or what Writer takes. examples: pairs (query, answer). separator, end, task: see Form.
    max_new_tokens: an answer ends before `end`, with the document, after so many tokens, or where the context is full;
        writer.end tells which, as Writer.end does.
    temperature, top_k, top_p, seed, repetition_penalty: those of Model.generate. Each query is drawn with `seed`, so an answer
        does not depend on the queries before it. stop: further texts that end an answer.
    Raises InvalidArgument, and what Writer raises.
    """

    _INSTEAD = "make it anew: pyllmc.Primer(path, examples)"

    def __init__(
        self,
        model: Source,
        examples: Sequence[Pair] = (),
        *,
        separator: str = SEPARATOR,
        end: str = END,
        task: str = "",
        max_new_tokens: int = MOST,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        longest: str = "",
    ) -> None:
        self.form = Form(separator, end, task).checked()
        pairs = _pairs(examples, self.form)
        self.writer = model if isinstance(model, Writer) else Writer(_opened(model))
        self._most = as_count("max_new_tokens", max_new_tokens)
        self._T = self.writer.model._arena.room.T
        self._seed = seed
        how = make_sampling(temperature, top_k, top_p, seed, repetition_penalty)
        stops = [end.encode(), *as_texts("stop", stop)]
        self._open = lambda: self.writer._open(self._most, how, stops)
        self._handle = self._open()
        self.examples = self._fitting(pairs, _text("longest", longest))
        self._read_examples()
        self._answers = Answers(
            "another query was asked before this answer had ended: take an answer to its end, or make a Primer for each"
        )

    @property
    def shots(self) -> int:
        """How many examples are used."""
        return len(self.examples)

    def stream(self, query: str, seed: int | None = None) -> Iterator[str]:
        """Yields the answer in pieces, as Writer.stream does. seed: takes the place of the primer's."""
        with self._answers.turn:
            self._ask(query, seed)
            pieces = self.writer._follow(self._handle)
            return self._answers.parts(_without(self.form.gap, pieces))

    def answer(self, query: str, seed: int | None = None) -> str:
        """The answer to a query, without the separator's spaces and without the end. Calls from several threads wait for each other."""
        with self._answers.turn:
            return "".join(self.stream(query, seed))

    def steps(self, query: str, alternatives: int = 5, seed: int | None = None) -> Iterator[Step]:
        """Yields each token of the answer, as Writer.steps does; the last one may complete the end."""
        most = as_count("alternatives", alternatives)
        with self._answers.turn:
            self._ask(query, seed)
            return self._answers.parts(self.writer._follow_steps(self._handle, most))

    # ---- the context ----

    def _read_examples(self) -> None:
        if head := self.form.head(self.examples):
            self.writer._prompt(self._handle, head.encode())
        self.tokens = self._held()  # the examples', and the one that begins a document
        self._memory = self.writer.model._arena.owner

    def _follow_model(self) -> None:
        """Reads the examples anew if the model has moved to other memory, as that of pyllmc.nn.GPT does when it grows."""
        if self._memory is not self.writer.model._arena.owner:
            self._T, self._handle = self.writer.model._arena.room.T, self._open()
            self._read_examples()

    def _held(self) -> int:
        lib, n = self.writer._lib, _ffi.ffi().new("int *")
        lib.llmc_generation_ids(lib.llmc_writer_generation(self._handle), 0, n)
        return n[0]

    def _count(self, text: str) -> int:
        """The tokens of a text."""
        data, lib = text.encode(), self.writer._lib
        return _ffi.check(
            lib,
            lib.llmc_tokenizer_encode(self.writer._tokenizer, data, len(data), _ffi.ffi().NULL, 0),
        )

    def _fitting(self, pairs: list[Pair], longest: str) -> list[Pair]:
        """The last pairs that the context holds, with room for one more line."""
        counts = [self._count(self.form.head([pair])) for pair in pairs]
        line = max([*counts, self._count(self.form.asked(longest)) + 1])
        room = self._T - 1 - line  # 1: the token that begins a document
        kept = list(pairs)
        while kept and self._count(self.form.head(kept)) > room:
            over = self._count(self.form.head(kept)) - room
            while kept and over > 0:
                over -= counts[-len(kept)]
                kept.pop(0)
        alone = self._count(self.form.head([])) + self._count(self.form.asked(longest)) + 1
        if alone > self._T - 1:
            raise InvalidArgument(
                f"the task and the query alone take {alone} of the {self._T} tokens of the context: shorten them"
            )
        if pairs and not kept:
            raise InvalidArgument(
                f"the context of {self._T} tokens holds no example beside a query: one line takes up to {line} tokens; "
                "give shorter examples or a model with a longer context"
            )
        if len(kept) < len(pairs):
            warnings.warn(
                f"the context of {self._T} tokens holds the last {len(kept)} of {counted(len(pairs), 'example')}; "
                "the others are left out",
                RuntimeWarning,
                stacklevel=3,
            )
        return kept

    def _ask(self, query: str, seed: int | None) -> None:
        """Puts a query behind the examples, in place of the last one and its answer."""
        asked, lib = _asked(query, self.form), self.writer._lib
        self._follow_model()
        first = (
            0 if self.tokens else 1
        )  # without examples, the query is preceded by the token that begins a document
        room = self._T - self.tokens - first - self._count(asked)
        if room < 1:
            raise InvalidArgument(
                f"query {query!r:.60}: the context of {self._T} tokens has no room for an answer behind it and "
                f"{counted(self.shots, 'example')}; give fewer examples, or the query as longest=..."
            )
        most = min(self._most, room)
        seed = self._seed if seed is None else as_int("seed", seed, 64)
        self._answers.ask()
        _ffi.check(lib, lib.llmc_writer_rewind(self._handle, self.tokens, seed, most))
        self.writer._prompt(self._handle, asked.encode())


def _opened(model: Any) -> Model:
    return model if isinstance(model, Model) else open_model(model)


def _without(gap: str, pieces: Iterator[str]) -> Iterator[str]:
    """The pieces without `gap` at their beginning."""
    head = ""
    for piece in pieces:
        if len(head) < len(gap):
            head += piece
            piece = head.removeprefix(gap) if len(head) >= len(gap) else ""
        if piece:
            yield piece
    if 0 < len(head) < len(gap):
        yield head
