"""Fine-tuning on questions and answers, from the data to the chat.

    python examples/finetune_chat.py                          # from fresh weights of the demo's size
    python examples/finetune_chat.py --model runs/demo        # from the demo, which ./train_gpt2 --out=runs/demo trains
    python examples/finetune_chat.py --pairs my_pairs.jsonl   # your own: docs/finetune.md shows the forms

The questions are about the figures of the stories: what Mia is, where Leo lives. The exam asks them in words that the
training has not seen.
"""

# %%
import argparse
import json
import random
import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # Ctrl-C ends the program without a traceback

import pyllmc
from pyllmc import plot, prepro
from pyllmc.base.errors import DataError, end_in_one_line
from pyllmc.draw.picture import checked_path
from pyllmc.stories import questions
from pyllmc.tables.options import at_least
from pyllmc.text.pairs import talk_of

end_in_one_line()
parser = argparse.ArgumentParser(description="Fine-tune a model on prompts and answers, and talk with it.")
parser.add_argument("--model", default="demo", help="a size, a run folder or a weight file [%(default)s]")
parser.add_argument("--pairs", help="a .jsonl of prompts and answers [questions about the stories' figures]")
parser.add_argument("--steps", type=at_least(1), default=800, help="optimizer steps [%(default)s]")
parser.add_argument("--lr", type=float, default=1e-3, help="learning rate [%(default)s]")
parser.add_argument("--run", default="runs/finetune_chat", help="folder for data and model [%(default)s]")
parser.add_argument("--out", default="finetune_chat.png", help="the picture to write [%(default)s]")
args = parser.parse_args()
checked_path(args.out)

# %% The pairs: one JSON object a line, with a prompt and its completion; or with the messages of a talk of several turns.
run = Path(args.run)
run.mkdir(parents=True, exist_ok=True)
if args.pairs is None:
    train, held_out = questions.pairs()
    lines = [json.dumps({"prompt": question, "completion": answer}) for question, answer in train]
    dice = random.Random(1)
    for _ in range(len(train) // 2):
        turns = [(("user", question), ("assistant", answer)) for question, answer in dice.sample(train, 3)]
        messages = [{"role": role, "content": text} for turn in turns for role, text in turn]
        lines.append(json.dumps({"messages": messages}))
else:  # every tenth record is kept for the exam, which asks its first question
    try:
        lines = [line for line in Path(args.pairs).read_text(encoding="utf-8").splitlines() if line.strip()]
        asked = [questions.Pair(*talk_of(json.loads(line)).turns[0][:2]) for line in lines]
    except (OSError, ValueError, DataError) as error:
        parser.error(f"--pairs={args.pairs}: {error}")
    held_out = asked[9::10]
    train, lines = ([x for i, x in enumerate(both) if i % 10 != 9] for both in (asked, lines))
records = run / "train.jsonl"
records.write_text("\n".join(lines), encoding="utf-8")
print(f"{len(lines)} records, such as", lines[0], "and", lines[-1], sep="\n")

# %% The data set: tokens, and beside them which of them are learnt (the answers). A model that exists has its tokenizer.
data, tuned = run / "data", run / "model"
tokenizer = args.model if Path(args.model).exists() else "word"
command = [str(records), "--tokenizer", tokenizer, "--val_fraction", "0.1", "--workers", "1"]
if prepro.main([*command, "--out", str(data), "--overwrite"]):
    raise SystemExit("the data could not be made: see above")

# %% The fine-tuning
trainer = pyllmc.Trainer(
    data=data, model=args.model, B=8, max_steps=args.steps, lr=args.lr, weight_decay=0.01, val_every=max(1, args.steps // 4),
    val_batches=0, sample_every=0, log_every=max(1, args.steps // 10), out=tuned, overwrite=True,
)  # fmt: skip
for event in trainer:
    if event.text:
        print(event.text, end="" if event.text.endswith("\n") else "\n")

# %% A talk: the chat knows from the checkpoint how turns are written. `python -m pyllmc.chat runs/finetune_chat/model`.
chat = pyllmc.Chat(tuned / "last.ckpt", temperature=0, sample_tokens=30)
for question, _ in held_out[:3]:
    print(">", question, "\n ", "".join(chat.say(question)))


# %% The exam: questions alone, and in talks of three turns
def right_of(asked: list[questions.Pair], turns: int) -> int:
    """How many questions are answered right, each talk a new chat."""
    right = 0
    for i in range(0, len(asked), turns):
        talk = pyllmc.Chat(tuned / "last.ckpt", temperature=0, sample_tokens=30)
        right += questions.count_right(
            lambda question, talk=talk: "".join(talk.say(question)), asked[i : i + turns]
        )
    return right


for name, asked, turns in (
    ("seen in training", train[: len(held_out)], 1),
    ("in words not seen", held_out, 1),
    ("in words not seen, in talks of three turns", held_out, 3),
):
    print(f"{right_of(asked, turns)} right of {len(asked)} questions {name}")

# %% The picture: both losses against the steps
if plot.main([str(tuned), "--out", args.out]):
    raise SystemExit("the picture could not be drawn: see above")
