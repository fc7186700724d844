"""The learning of byte pairs from texts with the package tokenizers, in a child process if it takes long.

The package neither returns to Python nor looks at signals while it learns. So a child process does it, and the caller
waits for it in short steps: Ctrl-C and SIGTERM end both at once, and a progress line can show that work goes on.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from pyllmc.base.errors import DataError, OutOfMemory, need, spare_threads
from pyllmc.text.bpe import BYTE_OF, MAX_PIECE, packed, printed_bytes, unpacked

# Runs without a space are cut to this length, because the package's time grows with the square of a word's length.
LONGEST_RUN = 256
FEW = 1 << 18  # characters at most that are learnt from without a child, because that takes a moment only
STEP = 0.3  # seconds between two signs of life
CHILD = (
    "import sys; sys.path[:] = sys.argv[2:]; from pyllmc.text.bpe_learn import child; child(int(sys.argv[1]))"
)
END = (1 << 64) - 1  # stands in place of a text's length when there are no more texts


def learn(texts: Iterable[str], max_vocab: int, alive: Callable[[], None] | None = None) -> list[bytes]:
    """The pieces learnt from texts: the 256 bytes, then merges of the commonest pairs, the most frequent first; no EOT.

    There are at most max_vocab - 1 pieces; fewer if no pair occurs twice. alive: called now and then during long work.
    Needs the package tokenizers. Raises DataError.
    """
    hf = need("tokenizers", "learning a bpe vocabulary")
    first: list[str] = []
    texts, size = iter(texts), 0
    for text in texts:
        first.append(text)
        size += len(text)
        if size > FEW and sys.executable:
            return _learn_in_child(itertools.chain(first, texts), max_vocab, alive or (lambda: None))
    return learn_here(hf, first, max_vocab)


def learn_here(hf: Any, texts: Iterable[str], max_vocab: int) -> list[bytes]:
    model = hf.Tokenizer(hf.models.BPE())
    runs = hf.Regex(rf"\S{{{LONGEST_RUN}}}|\s{{{LONGEST_RUN}}}")
    model.pre_tokenizer = hf.pre_tokenizers.Sequence(
        [hf.pre_tokenizers.Split(runs, "isolated"), hf.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = hf.trainers.BpeTrainer(
        vocab_size=max_vocab - 1,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=list(BYTE_OF),
        max_token_length=MAX_PIECE,
    )
    model.train_from_iterator(texts, trainer)
    vocabulary = model.get_vocab()
    return [printed_bytes(symbol) for symbol in sorted(vocabulary, key=vocabulary.__getitem__)]


# ---------------------------------------------------------------------------------------------------------
# the parent


def _learn_in_child(texts: Iterable[str], max_vocab: int, alive: Callable[[], None]) -> list[bytes]:
    with tempfile.TemporaryFile() as found, tempfile.TemporaryFile() as said:
        command = [sys.executable, "-c", CHILD, str(max_vocab), *sys.path]
        try:
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=found, stderr=said)
        except BlockingIOError:  # a limit (ulimit -u) forbids another process
            return learn_here(need("tokenizers", "learning a bpe vocabulary"), texts, max_vocab)
        try:
            _send(child.stdin, texts)  # type: ignore[arg-type]
            while not _ended(child):
                alive()
        finally:  # this runs also when a signal ends this process
            child.kill()
            child.wait()
        if child.returncode:
            raise (OutOfMemory if child.returncode in (-6, -9) else DataError)(_why(child.returncode, said))
        found.seek(0)
        return unpacked(found.read())


def _send(to: BinaryIO, texts: Iterable[str]) -> None:
    try:
        for text in texts:
            data = text.encode()
            to.write(len(data).to_bytes(8, "little") + data)
        to.write(END.to_bytes(8, "little"))
        to.flush()
    except BrokenPipeError:
        pass  # the child's status says why


def _ended(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(STEP)
        return True
    except subprocess.TimeoutExpired:
        return False


def _why(status: int, said: BinaryIO) -> str:
    said.seek(0)
    last = (said.read().decode("utf-8", "replace").strip() or f"exit status {status}").splitlines()[-1]
    if status < 0:
        last = f"signal {-status}, as when memory runs out: learn from less text or lower --max_vocab"
    return f"the process that learns byte pairs died: {last}"


# ---------------------------------------------------------------------------------------------------------
# the child


def child(max_vocab: int) -> None:
    """Learn in the child: read texts from stdin, write pieces to stdout, and end when the parent ends in any way."""
    with suppress(RuntimeError):  # a limit (ulimit -u) forbids another thread
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    spare_threads()
    pieces = learn_here(need("tokenizers", "learning"), _received(sys.stdin.buffer), max_vocab)
    sys.stdout.buffer.write(packed(pieces))
    sys.stdout.buffer.flush()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _received(source: BinaryIO) -> Iterator[str]:
    while (size := int.from_bytes(source.read(8), "little")) != END:
        data = source.read(size)
        if len(data) < size or not size:
            os._exit(1)  # the parent has ended, because it never sends an empty text
        yield data.decode()
