"""Small files in the true formats of the benchmarks, with texts of our own, and a model that is asked about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import pyllmc
from pyllmc.convert.export import save
from pyllmc.evaluate.items import Choice, Rolling
from pyllmc.evaluate.scorer import Scorer
from pyllmc.text import dataset
from pyllmc.text.tokenizer import Tokenizer
from pyllmc.text.vocabularies import train

PASSAGES = [  # as LAMBADA's plain text has them: lower case, tokenised, quotes as `` and ''
    "`` where is the boat ? '' asked anna . nobody knew . they walked along the shore , and behind the last rock lay the boat",
    "the baker did n't sell bread on sundays . on monday tom went in , smelled the oven and asked for bread",
    "mr. grey kept bees -lrb- forty hives -rrb- . every summer he was stung , and still he loved his bees",
    "the lamp flickered twice . `` oil , '' said she , and went down the stairs to fill the lamp",
    "they 'd waited an hour for the train . then a whistle blew , and round the bend came the train",
    "he had n't slept for two nights , so when the song was over he was the first to sleep",
]
TEXTS = [  # as OpenAI's file has them
    '"Where is the boat?" asked Anna.\nNobody knew. They walked along the shore, and behind the last rock lay the boat',
    "The baker didn't sell bread on Sundays. On Monday Tom went in, smelled the oven and asked for bread",
    "Mr. Grey kept bees (forty hives). Every summer he was stung, and still he loved his\nbees",
    "The lamp flickered twice. “Oil,” said she, and went down the stairs to fill the lamp",
]
ARTICLES = [
    " = Otter Bridge = ",
    " ",
    ' Otter Bridge is a stone bridge , built in 1 @,@ 812 by Mr. Ash ( 1780 – 1851 ) . It \'s 4 @.@ 5 m wide ; locals call it " the Otter " . ',
    " ",
    " = = History = = ",
    " ",
    " The well @-@ known flood of 1850 didn 't reach it . The builders ' plans are <unk> . ",
    " = = = Later years = = = ",
    " It carries a 20 ° bend today . ",
    " ",
    " = Ash Hill = ",
    " ",
    " Ash Hill lies 3 km from the sea : it is [ partly ] wooded , and its top is <unk> @-@ free ! ",
    " ",
]
TREEBANK = [
    " the company said it does n't expect a loss this year ",
    " mr. <unk> 's shares rose $ N to $ N a share on monday ",
    " traders ' hopes were n't met in the u.s. market ",
]
SENTENCES = [
    "The minister didn 't answer , but \" it 's a 5 % rise , \" an aide said .",
    "The U.S. team won again ( its third cup ) .",
    "Rain is expected on Friday ; the roads will stay open .",
]
XML = (
    "<mediawiki>\n  <page>\n    <title>Heron</title>\n    <text>The '''heron''' fishes at dusk &amp; dawn. Größe: 90&nbsp;cm"
    "</text>\n  </page>\n"
)
LETTERS = "the heron fishes at dusk and dawn its size is nine zero centimetres "
ACTIVITIES = [
    ("Making tea", "A woman fills a kettle.", "then she", "pours water|eats the cup|sings to a dog|sells the tea", 0),
    ("How to fold a boat", "[header] How to fold a boat [title] Take paper. [step] Fold it.", "", "Fold it again.|Eat it all.|Burn it  now.|Drive it.", 0),
    ("Rowing", "Two men sit in a boat.", "they", "cook a soup|pull the oars|climb a tree|paint a wall", 1),
    ("Skating", "A girl ties her skates.", "she", "boils|sleeps on it|glides over the ice|reads", 2),
]  # fmt: skip


def cbt_question(n: int) -> str:
    """One question as the Children's Book Test has it: 21 numbered lines, in the last of which tabs divide the parts."""
    names = ["Fox", "Hen", "Owl", "Cat", "Dog", "Cow", "Pig", "Rat", "Bee", "Ant"]
    lines = [f"{i} `` Look , {names[(i + n) % 10]} , '' said the {names[i % 10]} , `` I do n't know Mr. Toad 's house ." for i in range(1, 21)]  # fmt: skip
    answer = names[n % 10]
    asked = f"21 `` Good day , '' said XXXXX 's friend , and the {names[(n + 1) % 10]} laughed ."
    return "\n".join([*lines, f"{asked}\t{answer}\t\t{'|'.join(names)}"])


def hellaswag_row(n: int) -> dict[str, object]:
    """The activities again and again, each time with their endings in another order."""
    label, a, b, endings, answer = ACTIVITIES[n % len(ACTIVITIES)]
    turn, texts = n // len(ACTIVITIES), endings.split("|")
    return {
        "ind": n,
        "activity_label": label,
        "ctx_a": a,
        "ctx_b": b,
        "ctx": f"{a} {b}".strip(),
        "split": "val",
        "split_type": "indomain",
        "label": (answer - turn) % 4,
        "endings": [texts[(i + turn) % 4] for i in range(4)],
        "source_id": f"activitynet~v_{n}",
    }


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def json_lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def whole(text: str, size: int) -> str:
    """The text again and again, `size` bytes of it."""
    return (text * (size // len(text.encode()) + 2)).encode()[:size].decode("utf-8", "ignore")


def make_files(folder: Path) -> Path:
    """A folder with a file of every benchmark, where its archive would have put it."""
    write(folder / "lambada_test.jsonl", json_lines([{"text": text} for text in TEXTS]))
    write(folder / "lambada_test_plain_text.txt", "".join(f"{text}\n" for text in PASSAGES[:4]))
    write(folder / "lambada_development_plain_text.txt", "".join(f"{text}\n" for text in PASSAGES))
    for kind in ("CN", "NE"):
        data = folder / "CBTest/data"
        questions = [cbt_question(n) + "\n\n" for n in range(6)]
        write(data / f"cbtest_{kind}_valid_2000ex.txt", "".join(questions[:4]))
        write(data / f"cbtest_{kind}_train.txt", "".join(questions[4:]))
    raw = "".join(f"{line}\n" for line in ARTICLES)
    write(folder / "wikitext-2/wiki.test.tokens", raw)
    write(folder / "wikitext-103/wiki.test.tokens", raw.replace("Ash", "<unk>"))
    write(folder / "wikitext-2-raw/wiki.test.raw", raw.replace("<unk>", "unfound"))
    write(folder / "ptb.test.txt", "".join(f"{line}\n" for line in TREEBANK))
    write(folder / "heldout/news.en.heldout-00000-of-00050", "".join(f"{line}\n" for line in SENTENCES))
    write(folder / "enwik8/test.txt", "").write_bytes((XML.encode() * 60_000)[-5_000_000:])
    write(folder / "text8/test.txt", whole(LETTERS, 5_000_000))
    write(folder / "hellaswag_val.jsonl", json_lines([hellaswag_row(n) for n in range(12)]))
    write(folder / "hellaswag_train.jsonl", json_lines([hellaswag_row(n) for n in (2, 3, 0)]))
    return folder


def make_folder(folder: Path) -> Path:
    """data: tokens of bytes; files: the tasks'."""
    dataset.write_dataset(TEXTS * 40, folder / "data", tokenizer="byte", val_fraction=0.1)
    make_files(folder / "files")
    return folder


def make_tokenizer() -> Tokenizer:
    """Byte pairs learnt from the files' own words, and GPT-2's way to cut words."""
    return train("bpe", ["\n".join([*PASSAGES, *TEXTS, *ARTICLES, *SENTENCES, XML])] * 3, max_vocab=420)


def make_scorer(T: int = 64, folder: Path | None = None, steps: int = 60) -> Scorer:
    """A small model that has half learnt the files' texts; in a Hugging Face folder, too, if one is named."""
    tokenizer = make_tokenizer()
    model = pyllmc.Model(pyllmc.GPTConfig(tokenizer.vocab_size, T, 2, 2, 32), B=4, seed=1, threads=1)
    text = "\n".join([*TEXTS, *PASSAGES, *(f"{a} {b} {e}" for _, a, b, e, _ in ACTIVITIES)])
    ids = np.array(tokenizer.encode(text), np.int32)
    rng, n = np.random.default_rng(1), min(T, 96)
    for _ in range(steps):
        x = np.stack([ids[at : at + n + 1] for at in rng.integers(0, len(ids) - n, 4)])
        model.micro_step(x[:, :-1], x[:, 1:], accumulate=False)
        model.update(lr=1e-2)
    if folder is not None:
        params = {name: model.params[name] for name in model.params}
        save(str(folder), model.config, params, to="hf", tokenizer=tokenizer)
    return Scorer(model, tokenizer)


def asked(scorer: Scorer, items: list[Any]) -> list[Any]:
    """The scorer's answers."""
    if isinstance(items[0], Rolling):
        return [scorer.rolling(item) for item in items]
    return list(scorer.choices(items) if isinstance(items[0], Choice) else scorer.words(items))
