"""How likely a model finds what follows a context: tokens of a stream, choices, words. In batches, each context computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pyllmc.base.checks import as_count
from pyllmc.base.errors import DataError, InvalidArgument, OutOfMemory, counted
from pyllmc.engine import _ffi
from pyllmc.evaluate.items import Choice, Rolling, Word
from pyllmc.model import Model
from pyllmc.text.tokenizer import Tokenizer

BLOCK = 512  # items that are sorted by length and then come out in their own order
ROWS = 2048  # tokens that a batch holds at most
STEP = 64  # rooms are multiples of it, so that few are made

Opener = Callable[[int, int], Model]  # (B, T) -> the model with that room


class Scorer:
    """A model that is asked how likely tokens are. All logarithms are natural.

    model: any Model. tokenizer: the one that its ids belong to; None: texts cannot be encoded. B: sequences in a batch; by default
    the model's B. reopen(B, T): opens the same model with another room, as long as the model's context is at least T: then each task
    has the room that it needs, and `model` may have any. Raises InvalidArgument, OutOfMemory.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer | None = None, B: int = 0, reopen: Opener | None = None
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._B, self._reopen = as_count("B", B), reopen
        self._held: list[np.ndarray] = []  # the ids whose keys and values each sequence of the cache holds
        if reopen is None and self._B > self._room.B:
            raise InvalidArgument(f"B={B} is more than the model's, which was made for B={self._room.B}")

    @property
    def _room(self) -> Any:
        return self.model._arena.room

    @property
    def T(self) -> int:
        """The longest sequence: the model's context, or what its memory is made for if that cannot be changed."""
        return self.model.config.max_seq_len if self._reopen else self._room.T

    @property
    def B(self) -> int:
        """The sequences of a batch."""
        return min(self._B or self._room.B, self._room.B)

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

    # ---- streams ----

    def rolling(self, item: Rolling) -> np.ndarray:
        """The log-probability of each of ids[first:], float64."""
        return np.concatenate([np.zeros(0), *self.rolling_parts(item)])

    def rolling_parts(self, item: Rolling, skip: int = 0) -> Iterator[np.ndarray]:
        """The same in parts, one a batch. skip: how many log-probabilities of whole parts are known already.

        The first window scores all targets that it holds, each further one `stride` more, with the tokens before them that
        its `window` still holds: every target is scored once.
        """
        windows = self._windows(item)
        self._make_room(max(end - start for start, _, end in windows) - 1, len(windows))
        done = 0
        for at in range(0, len(windows), self.B):
            batch = windows[at : at + self.B]
            done += sum(end - scored for _, scored, end in batch)
            if done > skip:
                yield np.concatenate(
                    self._follow([(item.ids[a:b], item.ids[b:e]) for a, b, e in batch], [0] * len(batch))[0]
                )

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
        """For each item, in order: the log-probabilities of the tokens of each choice."""
        for at, item in enumerate(items):
            self._check_choice(at, item)
        lengths = [len(item.context) - 1 + max(map(len, item.choices)) for item in items]
        self._make_room(max(lengths, default=1), len(items))
        yield from self._in_order(items, lambda item: len(item.context), self._fits, self._choose)

    def _check_choice(self, at: int, item: Choice) -> None:
        where = f"item {at + 1}"
        if not len(item.context):
            raise InvalidArgument(
                f"{where} has no context: begin it with a token, such as the one that ends documents"
            )
        if not item.choices or not all(map(len, item.choices)):
            raise InvalidArgument(f"{where} has no choice, or an empty one: each needs at least one token")
        longest = len(item.context) + max(map(len, item.choices))
        if longest - 1 > self.T:
            raise InvalidArgument(
                f"{where} takes {longest} tokens, context and longest choice, and the model sees {self.T}: "
                "give fewer shots, a shorter item, or a model with a longer context"
            )

    def _fits(self, batch: list[Choice]) -> bool:
        """True if the longest choice fits behind the longest context, because shorter ones are filled up to it."""
        context = max(len(item.context) for item in batch) - 1
        return context + max(len(choice) for item in batch for choice in item.choices) <= self._room.T

    def _choose(self, items: list[Choice]) -> list[list[np.ndarray]]:
        """The contexts go through the model once; then the first choice of every item, the second, and so on, the longest
        ones of each item together."""
        slots = sorted(range(len(items)), key=lambda i: -len(items[i].choices))
        orders = [sorted(range(len(c)), key=lambda k: -len(c[k])) for c in (items[i].choices for i in slots)]
        contexts = [items[i].context for i in slots]
        self._read([context[:-1] for context in contexts])
        found: list[list[np.ndarray]] = [[np.zeros(0)] * len(item.choices) for item in items]
        for turn in range(len(orders[0])):
            active = [s for s, order in enumerate(orders) if turn < len(order)]
            pairs = [(contexts[s][-1:], items[slots[s]].choices[orders[s][turn]]) for s in active]
            told, _ = self._follow(pairs, [len(contexts[s]) - 1 for s in active], keep=True)
            for s, logs in zip(active, told):
                found[slots[s]][orders[s][turn]] = logs
        return found

    # ---- words ----

    def words(self, items: Sequence[Word]) -> Iterator[tuple[float, bool]]:
        """For each item, in order: the log-probability of its target, and whether each of its tokens is the likeliest one.

        A context too long for the model loses its beginning.
        """
        for at, item in enumerate(items):
            if not len(item.context) or not 0 < len(item.target) <= self.T:
                raise InvalidArgument(
                    f"item {at + 1} has {counted(len(item.context), 'token')} of context and {len(item.target)} of the target: "
                    f"the context needs one, the target 1 to {self.T}"
                )
        self._make_room(max((len(i.context) + len(i.target) - 1 for i in items), default=1), len(items))
        yield from self._in_order(items, lambda item: len(item.context) + len(item.target), None, self._guess)

    def _guess(self, items: list[Word]) -> list[tuple[float, bool]]:
        pairs = [(item.context[len(item.target) - 1 - self._room.T :], item.target) for item in items]
        told, likeliest = self._follow(pairs, [0] * len(items), [item.banned for item in items])
        return [
            (float(logs.sum()), bool((ids == item.target).all()))
            for logs, ids, item in zip(told, likeliest, items)
        ]

    # ---- batches ----

    def _in_order(
        self,
        items: Sequence[Any],
        length: Callable[[Any], int],
        fits: Callable[[list[Any]], bool] | None,
        score: Any,
    ) -> Iterator[Any]:
        """score(batch) of batches of similar length, in the order of the items."""
        for start in range(0, len(items), BLOCK):
            block = items[start : start + BLOCK]
            results: list[Any] = [None] * len(block)
            for batch in self._batches(
                sorted(range(len(block)), key=lambda i: -length(block[i])), block, fits
            ):
                for i, result in zip(batch, score([block[i] for i in batch])):
                    results[i] = result
            yield from results

    def _batches(self, order: list[int], items: Sequence[Any], fits: Any) -> Iterator[list[int]]:
        batch: list[int] = []
        for i in order:
            if batch and (len(batch) == self.B or (fits and not fits([items[j] for j in [*batch, i]]))):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _make_room(self, longest: int, many: int) -> None:
        """Opens the model again if it was made for shorter sequences, or for much longer ones and fewer at a time."""
        T = min(self.T, -(-longest // STEP) * STEP)
        B = max(1, min(self._B or ROWS // T, many))
        if self._reopen is None or (longest <= self._room.T <= 2 * T and B <= self._room.B <= 2 * B):
            return
        self._held = []
        while True:
            del self.model  # its memory goes before the new one's is taken
            try:
                self.model = self._reopen(B, T)
                return
            except OutOfMemory:
                self.model = self._reopen(1, 1)
                if B == 1:
                    raise
                B //= 2

    def _read(self, contexts: list[np.ndarray]) -> None:
        """Has sequence i of the cache hold contexts[i]. What it holds already from its beginning on is not computed again."""
        held = [_alike(old, new) for old, new in zip(self._held, contexts)]
        pos = held + [0] * (len(contexts) - len(held))
        n = max(len(context) - at for context, at in zip(contexts, pos))
        pos = [min(at, self._room.T - n) for at in pos]  # the shorter ones are filled up to n
        if n:
            self._run(
                [context[at:] for context, at in zip(contexts, pos)], [np.zeros(0, np.int32)] * len(pos), pos
            )
        self._held = [context.copy() for context in contexts]

    def _follow(
        self,
        pairs: list[tuple[np.ndarray, np.ndarray]],
        pos: list[int],
        banned: Sequence[np.ndarray | None] | None = None,
        keep: bool = False,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each (context, target): the log-probabilities of the target's tokens. Sequence i goes on at pos[i]; keep: nothing is
        written before that. banned: the likeliest ids in the targets' places are told, too, in the first place of target i none
        of banned[i]."""
        inputs = [np.concatenate([context, target])[:-1] for context, target in pairs]
        losses, logits = self._run(inputs, [target for _, target in pairs], pos, banned is not None)
        if not keep:
            self._held = []
        ends = np.cumsum([len(target) for _, target in pairs])[:-1]
        told = [
            -row[len(i) - len(t) : len(i)].astype(np.float64) for row, i, (_, t) in zip(losses, inputs, pairs)
        ]
        if banned is None:
            return told, []
        for row, ids in zip([0, *ends], banned):
            logits[row, [] if ids is None else ids] = -np.inf
        return told, np.split(logits.argmax(1), ends)

    def _run(
        self, inputs: list[np.ndarray], targets: list[np.ndarray], pos: list[int], logits: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Appends inputs[i] behind pos[i] tokens of sequence i; targets[i] are those of its last tokens. Returns losses (b, n), and
        the logits of the targets, in order, if they are wanted."""
        b, n = len(inputs), max(map(len, inputs))
        tokens, wanted = np.zeros((b, n), np.int32), np.full((b, n), -1, np.int32)
        for i, (given, target) in enumerate(zip(inputs, targets)):
            tokens[i, : len(given)] = given
            wanted[i, len(given) - len(target) : len(given)] = target
        losses = np.empty((b, n), np.float32)
        V = self.model.config.vocab_size
        out = np.empty((sum(map(len, targets)) if logits else 0, V), np.float32)
        ffi, lib, at = _ffi.ffi(), self.model._lib, np.array(pos, np.int32)
        ints = [ffi.cast("int *", x.ctypes.data) for x in (tokens, wanted, at)]
        floats = [ffi.cast("float *", x.ctypes.data if x.size else 0) for x in (losses, out)]
        _ffi.check(lib, lib.llmc_model_score(self.model._handle, *ints, b, n, *floats))
        return losses, out


def _alike(a: np.ndarray, b: np.ndarray) -> int:
    """How many ids two sequences have in common from their beginning on."""
    n = min(len(a), len(b))
    apart = np.flatnonzero(a[:n] != b[:n])
    return int(apart[0]) if len(apart) else n
