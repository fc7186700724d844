"""A character model of any text: it learns to spell, then to write.

    python examples/chargpt.py                      # three minutes on two cores; then look at chargpt.png
    python examples/chargpt.py --text my_book.txt

The text is cut into single characters, of which each is predicted from the 128 before. Without --text the model reads
the manual of Python, which every Python brings along. The exam asks two questions. How many bits does the model need
for a character that it has never seen? And how many of the words that it writes does the text have?
"""

# %%
import argparse
import re
import signal
import sys
from pathlib import Path
from pydoc_data.topics import topics

signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # Ctrl-C ends the program without a traceback

import pyllmc
from pyllmc import plot, prepro
from pyllmc.base.errors import end_in_one_line
from pyllmc.draw.picture import checked_path
from pyllmc.tables.options import at_least

end_in_one_line()
parser = argparse.ArgumentParser(description="Train a character model on any text, and let it write.")
parser.add_argument("--text", help="a text file of 100 kB or more [the manual of Python]")
parser.add_argument("--steps", type=at_least(1), default=600, help="optimizer steps [%(default)s]")
parser.add_argument(
    "--tokens", type=at_least(1), default=1000, help="characters to write in the end [%(default)s]"
)
parser.add_argument("--run", default="runs/chargpt", help="the folder for data and model [%(default)s]")
parser.add_argument("--out", default="chargpt.png", help="the picture to write [%(default)s]")
args = parser.parse_args()
checked_path(args.out)

# %% The data: characters become ids. The last tenth of the text validates, as in nanoGPT.
run = Path(args.run)
if args.text is None:
    run.mkdir(parents=True, exist_ok=True)
    args.text = run / "python.txt"
    args.text.write_text("\n\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
data, model_folder = run / "data", run / "model"
command = ["--input", str(args.text), "--tokenizer", "char", "--split", "nanogpt", "--workers", "1"]
if prepro.main([*command, "--out", str(data), "--overwrite"]):
    raise SystemExit("the data could not be made: see above")

# %% The training: minGPT's gpt-mini, with a context of 128 characters.
trainer = pyllmc.Trainer(
    data=data, model="gpt-mini", max_seq_len=128, B=32, max_steps=args.steps, lr=3e-3,
    val_every=max(1, args.steps // 6), val_batches=20, sample_every=0, log_every=max(1, args.steps // 12),
    out=model_folder, overwrite=True,
)  # fmt: skip
val_loss = float("nan")
for event in trainer:
    val_loss = event.val_loss
    if event.text:
        print(event.text, end="" if event.text.endswith("\n") else "\n")

# %% The exam
text = Path(args.text).read_text(encoding="utf-8")
writer = pyllmc.Writer(pyllmc.Model(model_folder, B=1, training=False))
written = "".join(writer.stream("The ", max_new_tokens=args.tokens, temperature=0.7, seed=1))
known = set(re.findall(r"[a-z]+", text.lower()))
words = re.findall(r"[a-z]+", written.lower())[:-1]  # the last word may be cut off
spelt = sum(word in known for word in words) / max(1, len(words))
print(written)
print(
    f"---\n{val_loss / 0.6931:.2f} bits for an unseen character; {spelt:.0%} of {len(words)} words are words of the text"
)

# %% The picture: both losses against the steps
if plot.main([str(model_folder), "--out", args.out]):
    raise SystemExit("the picture could not be drawn: see above")
