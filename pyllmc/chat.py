"""python -m pyllmc.chat MODEL [TOKENIZER]: talk with a model. The same as ./chat_gpt2."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from pyllmc.errors import INTERRUPTED, InvalidArgument, begin_command, exit_code, line_of, run_command

if __name__ == "__main__":
    begin_command("numpy", "cffi")

from pyllmc import _ffi
from pyllmc.trainer import Options
from pyllmc.writer import Chat

PROG = "pyllmc.chat"


def show(text: str) -> None:
    print(text, end="", flush=True)


def answer(chat: Chat, text: str | bytes) -> None:
    for piece in chat.say(text):
        show(piece)
    show("\n")


def answer_or_tell(chat: Chat, text: str | bytes, before: str = "") -> int:
    """A turn that cannot be is no reason to leave whoever sits there, or the turns behind it. The exit code."""
    try:
        answer(chat, text)
    except InvalidArgument as error:
        print(f"{before}{PROG}: {line_of(error)}", file=sys.stderr)
        return exit_code(error)
    return 0


def talk_at_terminal(chat: Chat) -> int:
    """Ctrl-C ends an answer, and without a turn since the last Ctrl-C the program."""
    print(f"{chat.about}\n")
    interrupted = False
    while True:
        try:
            show(chat.label(False))
            line = sys.stdin.buffer.readline()  # input() loses a byte of a line that Ctrl-D ends
            if not line:
                print()
                return 0
            interrupted = False
            show(chat.label(True))
            answer_or_tell(chat, line, before="\n")
        except KeyboardInterrupt:
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
            return talk(chat, [_ffi.typed(options.get("prompt"))])
        return talk_at_terminal(chat) if sys.stdin.isatty() else talk(chat, sys.stdin.buffer)

    return run_command(PROG, work)


if __name__ == "__main__":
    sys.exit(main())
