"""How likely a model finds what follows a context: tokens of a stream, choices, words. Each context is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyllmc.base.checks import as_count
from pyllmc.base.errors import DataError, InvalidArgument, counted
from pyllmc.engine import _ffi
from pyllmc.evaluate.items import Choice, Rolling, Word
from pyllmc.model import Model
from pyllmc.text.tokenizer import Tokenizer

NONE = np.zeros(0, np.int32)


class Span(NamedTuple):
    """Tokens that go through the model together, behind the first `pos` tokens of the cache; the targets of the last of them."""

    tokens: np.ndarray
    targets: np.ndarray
    pos: int


class Scorer:
    """A model that is asked how likely tokens are. All logarithms are natural.

    model: any Model; it computes up to B T tokens at once, of however many items, without padding. tokenizer: the one that its ids
    belong to; None: texts cannot be encoded. B: less than the model's, for shorter batches. between: is called before each batch,
    and may end the scoring by what it raises. Raises InvalidArgument.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer | None = None,
        B: int = 0,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.tokenizer, self._between = model, tokenizer, between
        room = model._arena.room
        if as_count("B", B) > room.B:
            raise InvalidArgument(f"B={B} is more than the model's, which was made for B={room.B}")
        self._rows = (B or room.B) * room.T
        # A ring (csrc/tensors.def) forgets a context while its first continuation is scored.
        self._shares = "ring" not in model._arena.names("acts")

    @property
    def T(self) -> int:
        """The longest sequence that the model was made for."""
        return int(self.model._arena.room.T)

    @property
    def eot(self) -> int:
        """The id that a text begins with; -1 if the tokenizer has none."""
        return self.tokenizer.eot if self.tokenizer else -1

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32. Raises DataError if the tokenizer cannot write it."""
        if self.tokenizer is None:
            raise DataError(
                "the model has no tokenizer, so texts cannot be scored: name one with --tokenizer"
            )
        try:
            return np.array(self.tokenizer.encode(text), np.int32)
        except DataError as error:
            raise DataError(f"the tokenizer cannot write {text!r:.60}: {error}") from None

    def check(self, items: Sequence[Any]) -> None:
        """Refuses what the model cannot be asked. Raises InvalidArgument."""
        for at, item in enumerate(items):
            if isinstance(item, Rolling):
                self._windows(item)
            elif isinstance(item, Choice):
                self._check_choice(at, item)
            else:
                self._check_word(at, item)

    # ---- streams ----

    def rolling(self, item: Rolling) -> np.ndarray:
        """The log-probability of each of ids[first:], float64."""
        return np.concatenate(list(self.rolling_parts(item)))

    def rolling_parts(self, item: Rolling, skip: int = 0) -> Iterator[np.ndarray]:
        """The same in parts, one a window. skip: how many log-probabilities, of whole parts, are known already.

        The first window scores all targets that it holds, each further one `stride` more, with the tokens before them that
        its `window` still holds: every target is scored once.
        """
        rest = (w for w in self._windows(item) if w[2] - item.first > skip)
        spans = (Span(item.ids[start : end - 1], item.ids[scored:end], 0) for start, scored, end in rest)
        return self._each(spans)

    def _windows(self, item: Rolling) -> list[tuple[int, int, int]]:
        """(start, scored, end) of each window: it holds ids[start:end], and scores ids[scored:end]."""
        n, first, window = len(item.ids), item.first, item.window or self.T
        if not 1 <= first < n:
            raise InvalidArgument(
                f"a text of {counted(n, 'token')}, of which {first} are context, has none to score: give a longer one"
            )
        if window > self.T or not 1 <= item.stride <= window:
            raise InvalidArgument(
                f"a window of {window} tokens and a stride of {item.stride} do not fit a model whose T is {self.T}: "
                "take a window of at most T, and a stride of at most a window"
            )
        found, scored = [], first
        end = min(window + 1 if first <= window else first + item.stride, n)
        while scored < n:
            found.append((max(0, end - 1 - window), scored, end))
            scored, end = end, min(end + item.stride, n)
        return found

    # ---- choices ----

    def choices(self, items: Sequence[Choice]) -> Iterator[list[np.ndarray]]:
        """For each item, in order: the log-probabilities of the tokens of each choice, float64.

        What a context shares with the one before it, from its beginning on, is not computed again; but a model whose banded
        layers keep less than T rows computes each context anew for each choice.
        """
        self.check(items)
        logs = self._each((self._spans_of if self._shares else self._whole_spans_of)(items))
        for item in items:
            found: list[np.ndarray] = []
            while len(found) < len(item.choices):
                told = next(logs)
                if len(told):
                    found.append(told)
            yield found

    def _spans_of(self, items: Sequence[Choice]) -> Iterator[Span]:
        """The spans of each item: its context but for the last token, then every choice behind that token."""
        held = NONE
        for item in items:
            before, last = item.context[:-1], item.context[-1:]
            known = _alike(held, before)
            if known < len(before):
                yield Span(before[known:], NONE, known)
            for choice in item.choices:
                yield Span(np.concatenate([last, choice[:-1]]), choice, len(before))
            held = before

    def _whole_spans_of(self, items: Sequence[Choice]) -> Iterator[Span]:
        """The same where a context cannot be shared: every choice behind the whole of it."""
        for item in items:
            for choice in item.choices:
                yield Span(np.concatenate([item.context, choice[:-1]]), choice, 0)

    def _check_choice(self, at: int, item: Choice) -> None:
        where = f"item {at + 1}"
        if not len(item.context):
            raise InvalidArgument(
                f"{where} has no context: begin it with a token, such as the one that ends documents"
            )
        if not item.choices or not all(map(len, item.choices)):
            raise InvalidArgument(f"{where} has no choice, or an empty one: each needs at least one token")
        longest = len(item.context) + max(map(len, item.choices)) - 1
        if longest > self.T:
            raise InvalidArgument(
                f"{where} takes {longest} tokens, context and longest choice, and the model sees {self.T}: "
                "give fewer shots, a shorter item, or a model with a longer context"
            )

    # ---- words ----

    def words(self, items: Sequence[Word]) -> Iterator[tuple[float, bool]]:
        """For each item, in order: the log-probability of its target, and whether each of its tokens is the likeliest one.

        A context too long for the model loses its beginning.
        """
        self.check(items)
        ids = (np.concatenate([item.context, item.target])[-self.T - 1 :] for item in items)
        spans = (Span(x[:-1], item.target, 0) for x, item in zip(ids, items))
        rest = iter(items)
        for batch in self._batches(spans):
            told, logits = self._run(batch, True)
            for logs, row, item in zip(told, logits, rest):
                row[0, NONE if item.banned is None else item.banned] = -np.inf
                yield float(logs.sum()), bool((row.argmax(1) == item.target).all())

    def _check_word(self, at: int, item: Word) -> None:
        if not len(item.context) or not 0 < len(item.target) <= self.T:
            raise InvalidArgument(
                f"item {at + 1} has {counted(len(item.context), 'token')} of context and {len(item.target)} of the target: "
                f"the context needs one, the target 1 to {self.T}"
            )

    # ---- batches ----

    def _batches(self, spans: Iterable[Span]) -> Iterator[list[Span]]:
        """As many spans at a time as the model has memory for."""
        batch: list[Span] = []
        rows = 0
        for span in spans:
            rows += len(span.tokens)
            if rows > self._rows:
                yield batch
                batch, rows = [], len(span.tokens)
            batch.append(span)
        if batch:
            yield batch

    def _each(self, spans: Iterable[Span]) -> Iterator[np.ndarray]:
        """The log-probabilities of each span's targets."""
        for batch in self._batches(spans):
            yield from self._run(batch)[0]

    def _run(self, spans: list[Span], logits: bool = False) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The log-probabilities of each span's targets, and their logits (targets, V) if they are wanted."""
        self._between()
        tokens = np.concatenate([span.tokens for span in spans]).astype(np.int32)
        counts = np.array([len(span.tokens) for span in spans], np.int32)
        pos = np.array([span.pos for span in spans], np.int32)
        targets, losses = np.full(len(tokens), -1, np.int32), np.empty(len(tokens), np.float32)
        places = [slice(end - len(span.targets), end) for span, end in zip(spans, np.cumsum(counts))]
        for place, span in zip(places, spans):
            targets[place] = span.targets
        ends = np.cumsum([len(span.targets) for span in spans])
        out = np.empty((int(ends[-1]), self.model.config.vocab_size) if logits else 0, np.float32)
        self._call(tokens, targets, counts, pos, losses, out)
        told = [-losses[place].astype(np.float64) for place in places]
        return told, np.split(out, ends[:-1]) if logits else []

    def _call(self, *arrays: np.ndarray) -> None:
        ffi, lib = _ffi.ffi(), self.model._lib
        ints = [ffi.cast("int *", x.ctypes.data) for x in arrays[:4]]
        floats = [ffi.cast("float *", x.ctypes.data if x.size else 0) for x in arrays[4:]]
        _ffi.check(lib, lib.llmc_model_score(self.model._handle, *ints, len(arrays[2]), *floats))


def _alike(a: np.ndarray, b: np.ndarray) -> int:
    """How many ids two sequences have in common from their beginning on."""
    n = min(len(a), len(b))
    apart = np.flatnonzero(a[:n] != b[:n])
    return int(apart[0]) if len(apart) else n


def B_for(T: int) -> int:
    """The B with which a model of T scores fast: batches of some 2,048 tokens."""
    return max(1, 2048 // T)
