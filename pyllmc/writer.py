"""The C engine's writer and chat, seen from Python: text from a model, piece by piece, and talks with it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Union

from pyllmc.adopt import adopt_model
from pyllmc.base.checks import NotCopied, as_count, as_flag, as_int, as_path, as_text, refuse
from pyllmc.base.errors import BadFile, DataError, InvalidArgument, SystemFailure
from pyllmc.convert import hub
from pyllmc.convert.companions import named, why_none_beside
from pyllmc.convert.kinds import Found, find
from pyllmc.convert.source import locate
from pyllmc.engine import _ffi
from pyllmc.engine.arguments import make_sampling
from pyllmc.engine.settings import Options
from pyllmc.engine.steps import Step, Watch
from pyllmc.model import Model
from pyllmc.text.bpe import MAX_PIECE
from pyllmc.text.tokenizer import Tokenizer, utf8

Path = Union[str, "os.PathLike[str]"]
TokenizerSource = Union[Tokenizer, bytes, Path]
ENDS = ("", "eot", "stop", "limit")  # LLMC_GOING_ON and the values behind it


def _utf8(text: str | bytes, name: str = "text") -> bytes:
    if not isinstance(text, (str, bytes)):
        refuse(name, text, "a text (str, or bytes of UTF-8)")
    try:
        return text if isinstance(text, bytes) else utf8(text)
    except DataError as e:
        raise InvalidArgument(str(e)) from None


def as_texts(name: str, texts: Any) -> list[bytes]:
    """The bytes of one text or of several."""
    if isinstance(texts, (str, bytes)):
        return [_utf8(texts, name)]
    if not isinstance(texts, Sequence):
        refuse(name, texts, "a text or a list of texts")
    return [_utf8(text, name) for text in texts]


def _pieces(lib: Any, following: Any, handle: Any) -> Iterator[str]:
    """Yields the pieces that `following` hands out; bytes that are no UTF-8 become U+FFFD."""
    piece, size = _ffi.ffi().new("char **"), _ffi.ffi().new("int64_t *")
    while _ffi.check(lib, following(handle, piece, size)) > 0:
        yield bytes(_ffi.ffi().buffer(piece[0], size[0])).decode("utf-8", "replace")


class Answers:
    """The answers of one talk, which share a context: each can be read until the next one is asked for.

    turn: held while one is asked for or read on, so that threads never read each other's.
    """

    def __init__(self, remedy: str) -> None:
        self._asked, self._remedy = 0, remedy
        self.turn = threading.RLock()

    def ask(self) -> None:
        """Ends the answer before."""
        self._asked += 1

    def parts(self, parts: Iterator[Any]) -> Iterator[Any]:
        """The parts of the newest answer. They raise InvalidArgument once another one was asked for."""
        return self._parts(parts, self._asked)

    def _parts(self, parts: Iterator[Any], number: int) -> Iterator[Any]:
        while (part := self._next(parts, number)) is not None:
            yield part

    def _next(self, parts: Iterator[Any], number: int) -> Any:
        with self.turn:
            if number != self._asked:
                raise InvalidArgument(self._remedy)
            return next(parts, None)


def open_tokenizer(lib: Any, source: TokenizerSource) -> Any:
    """Makes a C tokenizer of Python's, of a tokenizer.bin's bytes, or of the path of a tokenizer.bin or vocab.bpe."""
    out = _ffi.ffi().new("llmc_tokenizer **")
    source = source.to_bytes() if isinstance(source, Tokenizer) else source
    if isinstance(source, bytes):
        if not source:
            raise DataError(
                "the model carries no tokenizer, and none that fits it lies beside: name a tokenizer.bin or vocab.bpe"
            )
        _ffi.check(lib, lib.llmc_tokenizer_read(out, source, len(source), b"the model's tokenizer"))
    else:
        _ffi.check(lib, lib.llmc_tokenizer_open(out, _ffi.encoded(as_path("tokenizer", source))))
    return _ffi.ffi().gc(out[0], lib.llmc_tokenizer_free)


class Writer(NotCopied):
    """A model and a tokenizer that write.

    >>> for piece in pyllmc.Writer(model).stream("Once upon a time"):
    ...     print(piece, end="", flush=True)

    model: a Model with room for one text at least, or the path of anything that Model loads. tokenizer: a Tokenizer, a tokenizer.bin's
    bytes, or the path of one or of OpenAI's vocab.bpe; default: the one that came with the weights or lies beside them.
    Raises DataError, BadFile, SystemFailure.
    """

    _INSTEAD = "make it anew: pyllmc.Writer(path)"

    def __init__(self, model: Model | Path, tokenizer: TokenizerSource | None = None) -> None:
        self.model = model = model if isinstance(model, Model) else open_model(model)
        self._lib = model._lib
        _check_context(model)
        source = model._source  # read first, because asking for tokenizer_bytes clears it
        if tokenizer is None and not model.tokenizer_bytes and source:
            if why := why_none_beside(source, model.config.vocab_size):
                raise BadFile(f"the model carries no tokenizer, and {why}")
        self._tokenizer = open_tokenizer(self._lib, model.tokenizer_bytes if tokenizer is None else tokenizer)
        if tokenizer is not None:  # a tokenizer that was given may be another model's
            is_path = not isinstance(tokenizer, (bytes, Tokenizer))
            name = _ffi.encoded(tokenizer) if is_path else b"the tokenizer"  # type: ignore[arg-type]
            V = model.config.vocab_size
            _ffi.check(self._lib, self._lib.llmc_tokenizer_fits(self._tokenizer, V, name))
        self.end = ""  # how the last text ended: "eot", "stop" or "limit"; "" while it goes on

    def stream(
        self,
        prompt: str | bytes = "",
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Yields the text that follows `prompt`, in pieces of whole characters, as soon as they are certain.

        The text begins where documents do. It ends with the document, before the first of the `stop` strings, or
        after max_new_tokens: see `end`. Ids that the tokenizer does not know are never drawn. The other
        arguments are those of Model.generate.
        """
        how = make_sampling(temperature, top_k, top_p, seed, repetition_penalty)
        return self._follow(self._begin(prompt, max_new_tokens, how, stop))

    def steps(
        self,
        prompt: str | bytes = "",
        max_new_tokens: int = 200,
        alternatives: int = 5,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
    ) -> Iterator[Step]:
        """Yields each token that stream would draw, with its probability and the likeliest `alternatives`.

        The last one may be the end of the document, or the token that completes a stop string.
        """
        how = make_sampling(temperature, top_k, top_p, seed, repetition_penalty)
        most = as_count("alternatives", alternatives)
        return self._follow_steps(self._begin(prompt, max_new_tokens, how, stop), most)

    def _open(self, most: int, how: Any, stop: Sequence[str] | Sequence[bytes]) -> Any:
        """A C writer that has no prompt yet."""
        lib, ffi = self._lib, _ffi.ffi()
        out = ffi.new("llmc_writer **")
        _ffi.check(lib, lib.llmc_writer_new(out, self.model._handle, self._tokenizer, how, most))
        owner = self.model._arena.owner  # held: the model may move to larger memory while a text is written
        handle = ffi.gc(out[0], lambda pointer, owner=owner: lib.llmc_writer_free(pointer))
        for text in as_texts("stop", stop):
            _ffi.check(lib, lib.llmc_writer_stop_at(handle, text, len(text)))
        return handle

    def _begin(self, prompt: str | bytes, most: int, how: Any, stop: Sequence[str]) -> Any:
        handle = self._open(as_int("max_new_tokens", most), how, stop)
        self._prompt(handle, _utf8(prompt, "prompt"))
        return handle

    def _prompt(self, handle: Any, data: bytes) -> None:
        _ffi.check(self._lib, self._lib.llmc_writer_prompt(handle, data, len(data), 0))

    def _follow(self, handle: Any) -> Iterator[str]:
        self.end = ""
        yield from _pieces(self._lib, self._lib.llmc_writer_next, handle)
        self.end = ENDS[self._lib.llmc_writer_end(handle)]

    def _follow_steps(self, handle: Any, most: int) -> Iterator[Step]:
        lib, ffi = self._lib, _ffi.ffi()
        piece, size = ffi.new("char **"), ffi.new("int64_t *")
        V = self.model.config.vocab_size
        watch = Watch(lib, lib.llmc_writer_generation(handle), V, most, self._text_of)
        self.end = end = ""
        while not end:
            _ffi.check(lib, lib.llmc_writer_step(handle, piece, size))
            end = ENDS[lib.llmc_writer_end(handle)]
            if end != "limit":  # at the limit no token is drawn any more
                yield watch.step()
        self.end = end

    def _text_of(self, id: int) -> str:
        """The text of a token; "" if only the model knows the id."""
        lib, ffi = self._lib, _ffi.ffi()
        if id >= lib.llmc_tokenizer_size(self._tokenizer):
            return ""
        ids, out = ffi.new("int *", id), ffi.new("char[]", MAX_PIECE)
        n = _ffi.check(lib, lib.llmc_tokenizer_decode(self._tokenizer, ids, 1, out, MAX_PIECE))
        return bytes(ffi.buffer(out, n)).decode("utf-8", "replace")

    def write(self, prompt: str = "", *args: Any, **named: Any) -> str:
        """`prompt` and the text that follows it; the arguments are those of stream."""
        return as_text("prompt", prompt) + "".join(self.stream(prompt, *args, **named))


def _check_context(model: Model) -> None:
    """Raises InvalidArgument if a model that could see more has room for one token only, as pyllmc.nn.GPT has at first."""
    most = model.config.max_seq_len
    if model._arena.room.T < min(2, most):
        raise InvalidArgument(
            f"this model has room for 1 token at a time, so each would follow from the last one alone: make it with T={most}, "
            f"such as pyllmc.nn.GPT(source, T={most})"
        )


def open_model(path: Path, **how: Any) -> Model:
    """Opens weights of any kind that Model loads; for one text at a time, unless B is given. Raises DataError or LlmcError."""
    return Model(find_weights(path), **{"B": 1, "training": False, "keep_logits": False, **how})


def find_weights(path: Path) -> Found:
    """The weights at a path, or of the hub. Raises DataError or LlmcError."""
    name = as_path("path", path)
    place = locate(name)
    if place is None and name in hub.OPENAI:
        raise SystemFailure(f"{name} is a size, and only trained weights write: OpenAI's are hub:{name}")
    if place is None:
        raise SystemFailure(f"{name} does not exist: give a run folder, a checkpoint or other weights")
    return find(place)


def open_writer(path: Path, tokenizer: str = "", **how: Any) -> Writer:
    """A Writer of the weights at `path`; tokenizer: any that `python -m pyllmc.tokenizer` takes, or an export's folder."""
    if not as_text("tokenizer", tokenizer):
        return Writer(open_model(path, **how))
    found, where = named(tokenizer)
    if not found:
        raise DataError(
            f"--tokenizer={tokenizer} ({where}) cannot be written with: name a tokenizer.bin or vocab.bpe"
        )
    return Writer(open_model(path, **how), found)


def weights_told(path: Path, before: str, after: str = "") -> str:
    """One line about the weights that a run folder stands for; "" if `path` is no run folder.

    If the last step ended worse, the line also has a command for that one: `before`, its path, `after`.
    """
    lib, text = _ffi.load(), _ffi.ffi().new("char[]", 1 << 14)
    named = {"path": path, "before": before, "after": after}
    words = [_ffi.encoded(as_path(name, value)) for name, value in named.items()]
    _ffi.check(lib, lib.llmc_run_told(*words, text, 1 << 14))
    return os.fsdecode(_ffi.ffi().string(text))


def tell_weights(prog: str, path: Path, before: str, after: str = "") -> None:
    """Prints weights_told on standard error, for commands."""
    if told := weights_told(path, before, after):
        print(f"{prog}: {told}", file=sys.stderr)


def write_text(options: Options) -> Iterator[str]:
    """Opens --model; returns --prompt, as a turn if there is a template, and the text after it, in pieces."""
    adopt_model(options)
    lib, out = options.load(), _ffi.ffi().new("llmc_writer **")
    _ffi.check(lib, lib.llmc_writer_open(out, options.handle))
    handle = _ffi.ffi().gc(out[0], lib.llmc_writer_free)
    _ffi.check(lib, lib.llmc_writer_begin(handle, options.handle))
    return _pieces(lib, lib.llmc_writer_next, handle)


class Chat(NotCopied):
    """A talk in turns and answers, as in ./chat_gpt2.

    >>> chat = pyllmc.Chat("models/124M", seed=1)
    >>> for piece in chat.say("What is a fox?"):
    ...     print(piece, end="", flush=True)

    model, tokenizer: a run folder or a weight file; a tokenizer.bin or vocab.bpe, by default the one that travels with
    the weights or lies beside them. options: those of `python -m pyllmc.chat --help`, such as user="Alice",
    temperature=0.7, template="story". Raises InvalidArgument, BadFile, SystemFailure, OutOfMemory.
    """

    _INSTEAD = "make another and say the turns again"

    def __init__(
        self, model: Any = None, tokenizer: Any = None, *, options: Options | None = None, **named: Any
    ) -> None:
        if options is not None and not isinstance(options, Options):
            refuse(
                "options",
                options,
                "the Options of pyllmc.trainer; name options singly: pyllmc.Chat(path, seed=1)",
            )
        self.options = options or Options(_ffi.load(), chat=True)
        for name, value in {"model": model, "tokenizer": tokenizer, **named}.items():
            if value is not None:
                self.options.set(name, value)
        adopt_model(self.options)
        self._lib = self.options.load()
        out = _ffi.ffi().new("llmc_chat **")
        _ffi.check(self._lib, self._lib.llmc_chat_new(out, self.options.handle))
        self._handle = _ffi.ffi().gc(out[0], self._lib.llmc_chat_free)
        self._answers = Answers(
            "another turn was said before this answer had ended: take an answer to its end, or make a Chat for each talk"
        )

    def say(self, text: str | bytes) -> Iterator[str]:
        """Takes a turn (bytes are UTF-8); returns the pieces of its answer.

        Pieces that are not read before the next turn are forgotten: reading them then raises InvalidArgument.
        """
        data = _utf8(text)
        with self._answers.turn:
            self._answers.ask()
            _ffi.check(self._lib, self._lib.llmc_chat_say(self._handle, data, len(data)))
            return self._answers.parts(_pieces(self._lib, self._lib.llmc_chat_next, self._handle))

    @property
    def end(self) -> str:
        """How the last answer ended: "eot", "stop" or "limit"; "" while it goes on."""
        return ENDS[self._lib.llmc_chat_end(self._handle)]

    @property
    def about(self) -> str:
        """A text for a person at a terminal: the model's name and how to talk with it."""
        return _ffi.text(self._lib.llmc_chat_about(self._handle))

    def label(self, answer: bool) -> str:
        """The label that a terminal shows before a turn, or before an answer."""
        return _ffi.text(self._lib.llmc_chat_label(self._handle, as_flag("answer", answer)))
