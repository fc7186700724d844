"""Draws digits: a GPT that writes pixels instead of words.

    pip install scikit-learn matplotlib
    python examples/image.py            # a minute on two cores; then look at image.png

A picture of 8 x 8 pixels, each one of 17 grey levels, is a sentence of 64 words. The word before it says which digit it
shows. The model learns the next pixel, as any GPT learns the next word, and so it can draw. The exam asks somebody who has
never seen the model: a classifier, trained on real pictures only, reads what was drawn.
"""

# %%
import argparse
import signal
import sys
import time

signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # Ctrl-C ends the program without a traceback

import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import pyllmc
from pyllmc.base.errors import end_in_one_line
from pyllmc.draw.picture import checked_path
from pyllmc.tables.options import at_least

end_in_one_line()
parser = argparse.ArgumentParser(description="Train a GPT to draw digits, and let a classifier read them.")
parser.add_argument("--steps", type=at_least(1), default=500, help="optimizer steps [%(default)s]")
parser.add_argument(
    "--each", type=at_least(1), default=20, help="drawings of each digit in the exam [%(default)s]"
)
parser.add_argument("--out", default="image.png", help="the picture to write [%(default)s]")
args = parser.parse_args()
checked_path(args.out)

# %% The data: 1,797 scanned digits that scikit-learn brings along. Every fifth is kept for the exam.
GREYS, DIGITS = 17, 10  # the ids 0..16 are grey levels, 17..26 say which digit follows
scans = load_digits()
pixels, digits = scans.data.astype(np.int32), scans.target.astype(np.int32)
sentences = np.concatenate([GREYS + digits[:, None], pixels], axis=1)  # (N, 65)
held_out = np.arange(len(sentences)) % 5 == 0
train, test = sentences[~held_out], sentences[held_out]
T = sentences.shape[1] - 1

# %% The model, and its training: each word predicts the next.
B = 64
config = pyllmc.GPTConfig(max_seq_len=T, vocab_size=GREYS + DIGITS, n_layer=4, n_head=4, n_embd=128)
model = pyllmc.Model(config, B=B, seed=1)
rng = np.random.default_rng(1)


def bits_per_pixel(rows: np.ndarray) -> float:
    """The mean loss on rows (N, T+1), in bits."""
    batches = [rows[i : i + B] for i in range(0, len(rows), B)]
    losses = [model.forward(batch[:, :-1], batch[:, 1:]) for batch in batches]
    return float(np.average(losses, weights=[len(batch) for batch in batches]) / np.log(2))


start = time.perf_counter()
for step in range(args.steps):
    batch = train[rng.integers(len(train), size=B)]
    loss = model.micro_step(batch[:, :-1], batch[:, 1:], accumulate=False)
    model.clip_grad_norm(1.0)
    model.update(lr=2e-3 * min((step + 1) / 50, 1 - step / (args.steps + 1)))
    if step % 100 == 0 or step == args.steps - 1:
        seconds = time.perf_counter() - start
        print(
            f"step {step:4d}  loss {loss:.3f}  held-out {bits_per_pixel(test):.3f} bits/pixel  {seconds:.0f} s"
        )

# %% It draws: a digit's word is the prompt, 64 pixels are the answer.
asked = np.repeat(np.arange(DIGITS, dtype=np.int32), args.each)
drawn = []
for i in range(0, len(asked), B):
    prompts = GREYS + asked[i : i + B, None]
    drawn += model.generate(prompts, max_new_tokens=T, temperature=0.8, seed=i)
drawings = np.minimum(np.array(drawn), GREYS - 1)  # an untrained model may name a digit amid its pixels

# %% The exam: does a classifier that has only seen real pictures read what was asked for?
reader = SVC(gamma=0.001).fit(train[:, 1:], train[:, 0] - GREYS)
real = reader.score(test[:, 1:], test[:, 0] - GREYS)
ours = reader.score(drawings, asked)
distances = np.sqrt(((drawings[:, None] - train[None, :, 1:]) ** 2).sum(-1)).min(1)
print(
    f"the classifier reads {real:.1%} of the held-out real digits, and {ours:.1%} of {len(asked)} drawn ones"
)
print(f"{np.mean(distances == 0):.1%} of the drawings are copies of a picture in the training data")

# %% The picture: real digits in the upper row, drawn ones below.
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

rows = min(args.each, 5)
figure, axes = plt.subplots(rows + 1, DIGITS, figsize=(DIGITS * 0.7, (rows + 1) * 0.75))
for digit in range(DIGITS):
    shown = [train[train[:, 0] == GREYS + digit][0, 1:], *drawings[asked == digit][:rows]]
    for axis, picture in zip(axes[:, digit], shown):
        axis.imshow(picture.reshape(8, 8), cmap="gray_r", vmin=0, vmax=GREYS - 1)
        axis.set_xticks([]), axis.set_yticks([])
axes[0, 0].set_ylabel("real", fontsize=8)
axes[1, 0].set_ylabel("drawn", fontsize=8)
figure.savefig(args.out, dpi=150, bbox_inches="tight")
print(f"wrote {args.out}")
