"""python -m pyllmc.chat MODEL [TOKENIZER]: talk with a model. The same as ./chat_gpt2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence

from pyllmc.base.errors import (
    INTERRUPTED,
    InvalidArgument,
    begin_command,
    exit_code,
    line_of,
    run_command,
)

if __name__ == "__main__":
    begin_command("numpy", "cffi")

from pyllmc.base import live
from pyllmc.base.signals import answered_by_turns
from pyllmc.engine import _ffi
from pyllmc.trainer import Options
from pyllmc.writer import Chat

PROG = "pyllmc.chat"


def show(text: str) -> None:
    live.clear()
    print(text, end="", flush=True)


def columns() -> int:
    """The width, at this moment, of the terminal that is written to; 0 if output goes to no terminal."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 0


class Wrapped:
    """Shows pieces of a text without breaking a word at the terminal's edge."""

    def __init__(self) -> None:
        self._lib, ffi = _ffi.load(), _ffi.ffi()
        self._handle = ffi.gc(self._lib.llmc_wrap_new(), self._lib.llmc_wrap_free)
        self._out, self._size = ffi.new("char **"), ffi.new("int64_t *")

    def show(self, text: str) -> None:
        self._next(text.encode("utf-8", "replace"))

    def end(self) -> None:
        """Shows the last word, which was held back."""
        self._next(None)

    def _next(self, text: bytes | None) -> None:
        ffi = _ffi.ffi()
        data = ffi.NULL if text is None else text
        found = self._lib.llmc_wrap_next(
            self._handle, columns(), data, len(text or b""), self._out, self._size
        )
        _ffi.check(self._lib, found)
        show(bytes(ffi.buffer(self._out[0], self._size[0])).decode("utf-8", "replace"))


def answer(chat: Chat, text: str | bytes, label: str = "") -> None:
    pieces, wrapped = chat.say(text), Wrapped()
    try:
        wrapped.show(label)
        for piece in pieces:
            wrapped.show(piece)
    finally:  # the last word is shown after Ctrl-C, too, because the answer so far stays in the context
        wrapped.end()
    show("\n")


def answer_or_tell(chat: Chat, text: str | bytes, label: str = "") -> int:
    """Answers a turn, or reports why it was refused, e.g. because it is too long; returns the exit code."""
    try:
        answer(chat, text, label)
    except InvalidArgument as error:
        print(f"{PROG}: {line_of(error)}", file=sys.stderr)
        return exit_code(error)
    return 0


def line_reader() -> Callable[[str], bytes]:
    """A function that shows a label and reads a line; it returns b"" at the end.

    It uses readline, which gives arrow keys and a history of this talk. Without readline, or if the terminal cannot move
    its cursor, it reads from the system, because input() without readline loses a byte of a line that Ctrl-D ends.
    """
    if os.environ.get("TERM", "dumb") == "dumb" or not sys.stdout.isatty() or not _has_readline():
        return _plain_line
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    return _edited_line


def _has_readline() -> bool:
    try:
        import readline  # noqa: F401 (input() uses it from now on)
    except ImportError:
        return False
    return True


def _plain_line(label: str) -> bytes:
    show(label)
    return sys.stdin.buffer.readline()


def _edited_line(label: str) -> bytes:
    try:
        return os.fsencode(input(label)) + b"\n"
    except EOFError:
        return b""


def talk_at_terminal(chat: Chat) -> int:
    """Talks until the input ends. Ctrl-C ends an answer; a second one, with no turn since the first, ends the program."""
    about = Wrapped()
    about.show(chat.about)
    about.end()
    show("\n\n")
    with answered_by_turns() as begin_turn:
        return take_turns(chat, begin_turn)


def take_turns(chat: Chat, begin_turn: Callable[[], None]) -> int:
    interrupted = False
    read_line = line_reader()
    while True:
        try:
            line = read_line(chat.label(False))
            if not line:
                print()
                return 0
            interrupted = False
            begin_turn()
            answer_or_tell(chat, line, chat.label(True))
        except KeyboardInterrupt:
            live.clear()
            print()
            if interrupted:
                return INTERRUPTED
            interrupted = True


def talk(chat: Chat, turns: Iterable[str | bytes]) -> int:
    return max((answer_or_tell(chat, turn) for turn in turns), default=0)


def main(arguments: Sequence[str] | None = None) -> int:

    def work() -> int:
        options = Options(_ffi.load(), chat=True)
        asked = options.parse(sys.argv[1:] if arguments is None else arguments)
        if asked:
            print(asked.rstrip())
            return 0
        chat = Chat(options=options)
        if options.is_given("prompt"):
            return talk(chat, [os.fsencode(options.get("prompt"))])
        return talk_at_terminal(chat) if sys.stdin.isatty() else talk(chat, sys.stdin.buffer)

    return run_command(PROG, work)


if __name__ == "__main__":
    sys.exit(main())
