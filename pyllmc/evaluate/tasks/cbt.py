"""The Children's Book Test (Hill et al. 2016): which of ten words fills the blank of the 21st sentence."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pyllmc.base.errors import BadFile
from pyllmc.evaluate.detokenize import BOOKS
from pyllmc.evaluate.fetch import Part, read_lines
from pyllmc.evaluate.items import Choice
from pyllmc.evaluate.task import Questions, Records, choice, cited

BLANK = "XXXXX"
SENTENCES = 21
CHOICES = 10


class Question(NamedTuple):
    """20 sentences, the 21st with a blank in it, the answer, and the words that it is among; all tokenised."""

    context: list[str]
    sentence: str
    answer: str
    candidates: list[str]


class ChildrensBookTest(Questions):
    """The GPT-2 paper's protocol (section 3.2): the probability of each choice and of the rest of the sentence after it. It takes the
    validation part, because a book of the test part is in GPT-2's training data, and a de-tokenizer."""

    metrics = ("acc",)
    protocol = "likeliest choice with the rest of its sentence, de-tokenised, validation part (GPT-2 paper, sec. 3.2)"
    record = "question"
    fields = ("sentences", "question", "answer", "options")

    def __init__(self, kind: str) -> None:
        """kind: CN (common nouns) or NE (named entities)."""
        self.name = f"cbt_{kind.lower()}"
        form = "21 numbered lines for each question, an empty line behind it"
        self.test = Part((f"cbtest_{kind}_valid_2000ex.txt",), form, "cam-cst/cbt", kind, "validation")
        self.train = Part((f"cbtest_{kind}_train.txt",), form, "cam-cst/cbt", kind, "train")

    def from_file(self, path: Path) -> Iterable[Question]:
        block: list[str] = []
        start = 1
        for number, line in enumerate([*read_lines(path), ""], 1):
            if line.strip():
                block.append(line)
            elif block:
                yield _question(block, f"{path}:{start}")
                block = []
            start = number + 1 if not block else start

    def from_row(self, row: dict[str, Any]) -> Question:
        return _checked(
            Question(list(row["sentences"]), row["question"], row["answer"], list(row["options"])),
            "a row of the hub",
        )

    def items(self, records: Records, scorer: Any, shots: int = 0, seed: int = 0) -> list[Choice]:
        """Examples are passages with the blank filled in."""
        shown = self.examples(records, shots, seed)
        head = cited([f"{_context(q)} {BOOKS.join(_filled(q, q.answer))}" for q in shown])
        found = []
        for q in records:
            before, texts = _divided(q)
            answer = q.candidates.index(q.answer)
            context = f"{head}{_context(q)} {before}"
            found.append(choice(scorer, context, texts, answer, [1.0] * len(texts), cut=not shots))
        return found


def _question(lines: list[str], where: str) -> Question:
    """A question of its numbered lines: the last has the sentence, the answer, nothing, and the choices, with tabs between."""
    numbers = [line.partition(" ")[0] for line in lines]
    if numbers != [str(n + 1) for n in range(SENTENCES)]:
        raise BadFile(
            f"{where}: a question has {SENTENCES} lines, numbered from 1, and here are {len(lines)}: is the file cut short? Fetch it again"
        )
    texts = [line.partition(" ")[2] for line in lines]
    parts = [part.strip() for part in texts[-1].split("\t")]
    if len(parts) < 3:
        raise BadFile(
            f"{where}: line {SENTENCES} has no answer and choices behind tabs: fetch the file again"
        )
    return _checked(Question(texts[:-1], parts[0], parts[1], parts[-1].split("|")), where)


def _checked(q: Question, where: str) -> Question:
    if q.sentence.split().count(BLANK) != 1:
        raise BadFile(f"{where}: the sentence asked about has not one {BLANK}: fetch the file again")
    if q.answer not in q.candidates or len(q.candidates) != CHOICES or not q.candidates[-1]:
        raise BadFile(
            f"{where}: the answer {q.answer!r} is not among {CHOICES} choices, {'|'.join(q.candidates)!r}: fetch the file again"
        )
    return q._replace(candidates=[word for word in q.candidates if word])


def _context(q: Question) -> str:
    return " ".join(BOOKS.join(sentence.split()) for sentence in q.context)


def _filled(q: Question, word: str) -> list[str]:
    """The words of the sentence with one in its blank."""
    return [word if given == BLANK else given for given in q.sentence.split()]


def _divided(q: Question) -> tuple[str, list[str]]:
    """What stands before the blank, and for each choice what follows: the word and the rest of the sentence."""
    words = q.sentence.split()
    before = words[: words.index(BLANK)]
    wholes = [BOOKS.join(_filled(q, word)) for word in q.candidates]
    head = BOOKS.join(before)
    if not all(whole.startswith(head) for whole in wholes):
        head = ""  # a mark before the blank looks another way when it stands alone
    return head, [whole[len(head) :] for whole in wholes]
