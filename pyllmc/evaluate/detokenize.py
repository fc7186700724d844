"""De-tokenizers: tokenised text as people write it, and back without loss.

The GPT-2 paper (section 3.1) scores data sets "using invertible de-tokenizers which remove as many of these tokenization /
pre-processing artifacts as possible". It publishes none, so these are our own. They are invertible for every text:
`split(join(words)) == words`. So a text's probability is that of the tokenised text, and a figure may divide it by the words of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

ABBREVIATIONS = (
    "(?:Mr|Mrs|Ms|Messrs|Dr|St|Jr|Sr|Prof|Gen|Col|Maj|Lt|Sgt|Capt|Rev|Gov|Sen|Rep|Pres|No|vs|Vol|Inc|Corp|Co|Ltd|Bros|Mt|Ft"
    r"|[^\W\d_](?:\.[^\W\d_])*)\."  # initials, U.S., a.m.
)


@dataclass(frozen=True)
class Detokenizer:
    """A way to write words without the spaces that a tokenizer put between them.

    opening, closing: regular expressions of words that stand close to the word behind them, or before them. abbreviation: those
    words whose period is theirs. joining: words that stand close to both neighbours, and what is written for them. quotes: the
    words for an opening and a closing quotation mark, both of which are written as "; where both are ", every second one closes.
    """

    opening: str
    closing: str
    abbreviation: str = "(?!)"
    joining: dict[str, str] = field(default_factory=dict)
    quotes: tuple[str, str] = ('"', '"')

    def join(self, words: Iterable[str]) -> str:
        """The words as text. A word holds no space and is not empty."""
        return " ".join(map(self._spelled, self._pieces(words)))

    def split(self, text: str) -> list[str]:
        """The words of a text that `join` wrote."""
        words: list[str] = []
        exact = False  # an additional space stands before a word that is written as it is
        for piece in text.split(" "):
            words += [piece] if exact and piece else self._words_of(piece)
            exact = not piece
        return words

    def _pieces(self, words: Iterable[str]) -> Iterator[list[str]]:
        """The words that stand close to each other."""
        piece: list[str] = []
        opened, close = False, False  # within quotation marks; the next word stands close
        for word in words:
            opens, closes = self._sides(word, piece, opened)
            if piece and not (close or closes):
                yield piece
                piece = []
            piece.append(word)
            close = opens
            opened ^= word in self.quotes
        if piece:
            yield piece

    def _sides(self, word: str, piece: list[str], opened: bool) -> tuple[bool, bool]:
        """Whether a word stands close to the one behind it, and to the one before it."""
        if word.isalnum():
            return False, False  # most words, and no mark is one
        if word in self.joining:
            return True, True
        if word in self.quotes:
            closes = opened if self.quotes[0] == self.quotes[1] else word == self.quotes[1]
            return not closes, closes
        close = re.fullmatch(self.closing, word) or (word == "=" and piece[-1:] == ["="])  # a heading's ==
        return bool(re.fullmatch(self.opening, word)), bool(close)

    def _spelled(self, piece: list[str]) -> str:
        """A piece as text, if its words can be told from that; else the words with spaces between."""
        text = "".join('"' if word in self.quotes else self.joining.get(word, word) for word in piece)
        if self._words_of(text) == piece:
            return text
        return " ".join(word if self._words_of(word) == [word] else f" {word}" for word in piece)

    def _words_of(self, text: str) -> list[str]:
        """The words of a piece: opening marks, the word with what joins it to others, closing marks."""
        if text.isalnum():
            return [text]
        opening, closing = f'{self.opening}|"', f'{self.closing}|"'
        shape = rf"((?:{opening})*)({self.abbreviation}|.*?)((?:{closing})*)"
        match = re.fullmatch(shape, text, re.S)
        assert match, "the shape fits any text"
        head, word, tail = match.groups()
        before = [self.quotes[0] if mark == '"' else mark for mark in _all(opening, head)]
        after = [self.quotes[1] if mark == '"' else mark for mark in _all(closing, tail)]
        return [*before, *self._inner(word), *after]

    def _inner(self, word: str) -> list[str]:
        if word and not word.strip("="):
            return list(word)
        for name, written in self.joining.items():
            sides = r"(?<=\d)", r"(?=\d)"
            before, after = sides if written in ".," else (r"(?<=[\w>])", r"(?=[\w<])")
            word = re.sub(before + re.escape(written) + after, f" {name} ", word)
        return word.split(" ") if word else []


def _all(pattern: str, text: str) -> list[str]:
    return [match[0] for match in re.finditer(pattern, text)]


# WikiText: Moses' tokenizer, which wrote @-@, @,@ and @.@ for marks within a word; "it 's", "didn 't", " = = heading = = ".
# The clean-ups are those that NVIDIA's Megatron-LM and lm-eval apply to this data set, as far as they can be undone.
WIKITEXT = Detokenizer(
    opening=r"[(\[{$£€#]",
    closing=r"'(?:s|t|re|ve|ll|d|m)|[,.;:!?)\]}%]",
    abbreviation=ABBREVIATIONS,
    joining={"@-@": "-", "@,@": ",", "@.@": "."},
)

# Penn Treebank as Mikolov prepared it: lower case, no punctuation, numbers replaced by N: "$ N", "does n't", "the company 's".
PTB = Detokenizer(opening=r"[$#]", closing=r"n't|'(?:s|re|ve|ll|d|m)?")

# Penn Treebank's tokens with their punctuation, as the Children's Book Test and LAMBADA's plain text have them:
# `` said he '' , do n't , -LRB- and -RRB- for brackets (which stay, because they are rare).
BOOKS = Detokenizer(
    opening=r"[(\[{$£#]",
    closing=r"n't|'(?:s|S|re|ve|ll|d|m)|[,.;:!?)\]}%]",
    abbreviation=ABBREVIATIONS,
    quotes=("``", "''"),
)

# The One Billion Word benchmark: straight quotation marks, "it 's", "didn 't", and a space before every mark.
LM1B = Detokenizer(
    opening=r"[(\[{$£€#]",
    closing=r"'(?:s|t|re|ve|ll|d|m)|[,.;:!?)\]}%]",
    abbreviation=ABBREVIATIONS,
)
