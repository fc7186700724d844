"""De-tokenizers: text as people write it, from which the very words come back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllmc.evaluate.detokenize import BOOKS, LM1B, PTB, WIKITEXT

ALL = {"wikitext": WIKITEXT, "ptb": PTB, "books": BOOKS, "lm1b": LM1B}
KNOWN = [
    (WIKITEXT, "= = Early life = =", "== Early life =="),
    (WIKITEXT, "a well @-@ known 1 @,@ 812 @.@ 5 , and", "a well-known 1,812.5, and"),
    (WIKITEXT, 'he ( born 1969 ) said " yes , it \'s " to Mr. Ash .', 'he (born 1969) said "yes, it\'s" to Mr. Ash.'),
    (WIKITEXT, "they didn 't see <unk> @-@ based J. R. Ash in the U.S. , at 5 % !", "they didn't see <unk>-based J. R. Ash in the U.S., at 5%!"),
    (WIKITEXT, "[ sic ] { a } $ 5 ; € 6 : what ?", "[sic] {a} $5; €6: what?"),
    (PTB, "mr. <unk> 's shares were n't $ N a share", "mr. <unk>'s shares weren't $N a share"),
    (PTB, "traders ' hopes in the u.s.", "traders' hopes in the u.s."),
    (BOOKS, "`` Well , '' said he , `` I do n't know Mr. Toad 's house ! ''", '"Well," said he, "I don\'t know Mr. Toad\'s house!"'),
    (LM1B, '" It \'s a 5 % rise , " an aide ( who didn \'t stay ) said .', '"It\'s a 5% rise," an aide (who didn\'t stay) said.'),
]  # fmt: skip
# the words that a rule writes close to others, words that look like two, and anything
PARTS = [
    *"@-@ @,@ @.@ `` '' 's n't 't ' ( ) [ $ % , . ; = - -- ... U.S. Mr. Co. <unk> re-think don't 3,5 a.b \"".split(),
    '"',
]
WORDS = st.sampled_from(PARTS) | st.text(st.characters(codec="utf-8", exclude_characters=" "), min_size=1)


@pytest.mark.parametrize("detokenizer, words, text", KNOWN, ids=lambda x: x if isinstance(x, str) else "")
def test_text_is_as_people_write_it(detokenizer, words, text):
    assert detokenizer.join(words.split()) == text
    assert detokenizer.split(text) == words.split()


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=300)
@given(words=st.lists(WORDS, max_size=12))
def test_every_word_comes_back(name, words):
    text = ALL[name].join(words)
    assert ALL[name].split(text) == words


@pytest.mark.parametrize("name", ALL)
@given(one=st.lists(WORDS, max_size=5), other=st.lists(WORDS, max_size=5))
def test_two_texts_are_never_written_alike(name, one, other):
    assert (ALL[name].join(one) == ALL[name].join(other)) == (one == other)


def test_a_word_that_looks_like_two_is_marked():
    assert WIKITEXT.join(["a", "re-think"]) == "a  re-think"
    assert WIKITEXT.join(["a", "re", "@-@", "think"]) == "a re-think"


def test_the_second_quotation_mark_closes_and_the_third_opens():
    assert LM1B.join('" a " b " c "'.split()) == '"a" b "c"'
