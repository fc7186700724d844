"""The pictures of runs: curves that neither lag nor mislead; ticks, labels, marks and colours that can be read."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from pyllmc.draw import curves, losses
from pyllmc.draw.curves import Curve, read_run
from pyllmc.draw.picture import DARK, LIGHT, spread

STEP = {"step": 1, "loss": 3.5, "lr": 1e-3, "norm": 1.0}
EVAL = {"step": 1, "val_loss": 3.4}
STYLES = pytest.mark.parametrize("style", [LIGHT, DARK], ids=["light", "dark"])


def make_run(folder: Path, *lines: object) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.jsonl").write_text("".join(f"{text}\n" for text in texts))
    return folder


def falling(step: float) -> float:
    return 0.5 + 2 / (1 + step / 60) + 4.5 * math.exp(-step / 40)


def train(folder: Path, n=200, start=0, every=20, loss=falling, val=falling, noise=0.05) -> Path:
    """A run as the trainer writes it: n steps after `start`, validated every so many steps, or never."""
    draw = random.Random(1)
    lines = [{"step": start, "val_loss": val(start)}] if every else []
    for step in range(start + 1, start + n + 1):
        value = loss(step) * math.exp(draw.gauss(0, noise))
        lines.append({"step": step, "loss": value, "lr": 1e-3, "norm": 1.0, "ms": 50.0, "tok_s": 25600.0})
        lines += [{"step": step, "val_loss": val(step)}] if every and step % every == 0 else []
    return make_run(folder, *lines)


RUNS = {
    "one step": dict(n=1, every=0),
    "one step, validated": dict(n=1, every=1),
    "two steps": dict(n=2, every=2),
    "fifty": dict(n=50, every=10),
    "long": dict(n=9000, every=200),
    "never validated": dict(every=0),
    "worse from the start": dict(loss=lambda s: 3.3 - s / 300, val=lambda s: 3.1 + s / 900),
    "best in the middle": dict(n=600, val=lambda s: 2 + (s / 300 - 1) ** 2),
    "validated at the end": dict(n=300, every=300),
    "resumed": dict(n=400, start=1600),
    "not finite": dict(loss=lambda s: falling(s) if s < 150 else math.nan),
    "never moves": dict(loss=lambda s: 2.0, val=lambda s: 2.0, noise=0),
    "huge": dict(loss=lambda s: 1e9 * math.exp(-s / 9) + 5, val=lambda s: 1e9 * math.exp(-s / 9) + 5),
    "tiny": dict(loss=lambda s: 1e-9 * math.exp(-s / 9), val=lambda s: 1e-9),
    "zero": dict(loss=lambda s: max(0.0, 1 - s / 50), val=lambda s: max(0.0, 1 - s / 50)),
}


@pytest.fixture
def picture_of(tmp_path):
    pytest.importorskip("matplotlib")

    def draw(name="long", style=LIGHT, panels=(), x="step", **how):
        made = losses.picture_of(read_run(train(tmp_path / "run", **(how or RUNS[name]))), style, panels, x)
        made.figure.draw_without_rendering()
        return made

    return draw


def box_of(picture, artist):
    return artist.get_window_extent(picture.renderer())


def texts_of(picture):
    return [
        *picture.labels,
        picture.title,
        picture.subtitle,
        *([picture.note] if hasattr(picture, "note") else []),
    ]


def pixels_of(picture, line):
    """The pixels of a line, about one by one."""
    xy = picture.axis.transData.transform(np.column_stack((line.curve.x, line.curve.y)))
    xs = np.arange(xy[0, 0], xy[-1, 0] + 1)
    return np.column_stack((xs, np.interp(xs, xy[:, 0], xy[:, 1])))


# ---- smoothing


def test_a_smoothed_loss_does_not_lag():
    """Without noise the smoothed loss is the loss itself, even where it falls most steeply; a moving mean of the past
    lies far above."""
    x = np.arange(1.0, 4001)
    y = np.array([falling(step) for step in x])
    smooth = curves.smooth(Curve(x, y)).y
    assert np.abs(smooth / y - 1).max() < 0.02
    straight = curves.smooth(Curve(x, 9 - x / 1000)).y
    np.testing.assert_allclose(straight, 9 - x / 1000, atol=1e-9)


@pytest.mark.parametrize("n", [50, 400, 4000])
def test_a_smoothed_loss_has_the_mean_of_the_raw_one(n):
    x = np.arange(1.0, n + 1)
    noise = np.random.default_rng(1).normal(0, 0.1, n)
    y = 3 - x / n + noise
    smooth = curves.smooth(Curve(x, y)).y
    middle = slice(n // 4, -n // 4)
    assert abs(smooth[middle].mean() - y[middle].mean()) < 0.1 * 3 / math.sqrt(n) / 2
    rough = np.abs(np.diff(smooth)[middle]).mean() / np.abs(np.diff(y)[middle]).mean()
    assert rough < (0.1 if n > 50 else 0.25)  # and it is a great deal smoother
    assert abs(smooth[-1] - 2) < 0.1  # at the end, too


def test_long_runs_are_thinned_without_losing_their_extremes():
    x = np.arange(1.0, 100_001)
    y = np.sin(x / 1e4) + np.random.default_rng(1).normal(0, 0.1, len(x))
    y[70_000] = 9
    thin, drawn = curves.thinned(Curve(x, y)), curves.envelope(Curve(x, y))
    assert len(thin.x) <= 4000 and len(drawn.x) <= 8000
    assert (drawn.y.max(), drawn.y.min()) == (9, y.min())
    assert abs(thin.y.mean() - y.mean()) < 1e-3


# ---- a run


@pytest.mark.parametrize("name", RUNS)
def test_what_every_picture_has(picture_of, name):
    """Three round ticks on each axis, labels apart from each other, a note that covers no curve, all of it on the
    paper."""
    made = picture_of(name, [LIGHT, DARK][len(name) % 2])
    for axis, (low, high) in (
        (made.axis.xaxis, made.axis.get_xlim()),
        (made.axis.yaxis, made.axis.get_ylim()),
    ):
        shown = [t for t in axis.get_major_ticks() if t.label1.get_text() and low <= t.get_loc() <= high]
        assert len({t.label1.get_text() for t in shown}) == len(shown) >= 3
    paper = made.figure.bbox
    for text in texts_of(made):
        box = box_of(made, text)
        assert paper.x0 <= box.x0 and box.x1 <= paper.x1 and paper.y0 <= box.y0 and box.y1 <= paper.y1
    for a, b in itertools.combinations(texts_of(made), 2):
        assert not box_of(made, a).overlaps(box_of(made, b)), (a, b)
    for text, line in itertools.product(texts_of(made), made.lines):
        box = box_of(made, text)
        assert not any(box.contains(x, y) for x, y in pixels_of(made, line)), (text, line.label)


@pytest.mark.parametrize(
    "name", ["one step, validated", "worse from the start", "best in the middle", "long"]
)
def test_the_best_validation_is_marked(picture_of, name):
    made = picture_of(name)
    val = made.lines[1].curve
    at = int(np.argmin(val.y))
    assert (made.best.get_xdata()[0], made.best.get_ydata()[0]) == (val.x[at], val.y[at])
    assert made.note.get_text() == f"best {losses.value(val.y[at])} at step {val.x[at]:,.0f}"


def test_a_title_says_which_run_how_large_and_how_far(tmp_path):
    pytest.importorskip("matplotlib")
    import pyllmc

    folder = train(tmp_path / "cost $5 and $6", n=150)
    config = pyllmc.GPTConfig(vocab_size=300, max_seq_len=16, n_layer=2, n_head=2, n_embd=16)
    pyllmc.Model(config, B=1).save(folder / "best.ckpt")
    (folder / "config.txt").write_text("max_steps=4000\n")
    made = losses.picture_of(read_run(folder), LIGHT, (), "step")
    count = sum(x.size for x in pyllmc.Model(config, B=1).params.values())
    assert made.title.get_text() == "cost $5 and $6"
    assert made.subtitle.get_text() == f"{count:,} parameters  ·  150 of 4,000 steps  ·  0.19M tokens"
    assert made.title.get_parse_math() is False  # else it would not be drawn, or as a formula


def test_a_loss_that_is_not_finite_is_marked(picture_of):
    made = picture_of("not finite")
    assert " not finite at step 150 " in [text.get_text() for text in made.axis.texts]
    assert made.lines[0].curve.x[-1] == 149


def test_a_step_that_was_done_again_counts_once(tmp_path):
    run = read_run(make_run(tmp_path / "run", STEP, {**STEP, "step": 2}, {**STEP, "loss": 2.5}))
    assert run.curves["loss"].x.tolist() == [1, 2] and run.curves["loss"].y.tolist() == [2.5, 3.5]


def test_tokens_and_panels(picture_of):
    made = picture_of(n=200, every=20, x="tokens", panels=("lr", "norm", "tok_s"))
    assert made.lines[0].curve.x[-1] == made.lines[1].curve.x[-1] == 200 * 1280
    assert len(made.panels) == 3 and made.panels[-1].get_xlabel() == "tokens seen"
    assert "0.26M tokens" in made.note.get_text()


# ---- several runs


def compared(folders, style=LIGHT, x="step"):
    pytest.importorskip("matplotlib")
    made = losses.comparison_of([read_run(folder) for folder in folders], style, x)
    made.figure.draw_without_rendering()
    return made


@pytest.mark.parametrize("count", [2, 10, 30])
def test_each_of_many_runs_has_its_own_look_and_label(tmp_path, count):
    folders = [train(tmp_path / f"lr{i}/demo", n=60 + 20 * (i % 3)) for i in range(min(count, 21))]
    folders += [train(tmp_path / f"lr{i}/demo", n=60) for i in range(21, count)]
    made = compared(folders)
    labels = [line.label for line in made.lines]
    assert len(set(labels)) == count and labels[0].startswith("lr0/demo ")
    looks = {(line.colour, str(line.style)) for line in made.lines}
    assert len(looks) == min(count, 21)
    boxes = [box_of(made, text) for text in made.labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert min(box.y0 for box in boxes) >= 0 and max(box.y1 for box in boxes) <= made.figure.bbox.y1


def test_the_best_is_told_where_it_is_marked(tmp_path):
    """A run that ends at its best has no ring."""
    falls = [train(tmp_path / name, val=falling) for name in "ab"]
    made = compared(falls)
    assert not hasattr(made, "best") and made.subtitle.get_text() == "2 runs"
    made = compared([*falls, train(tmp_path / "c", val=lambda step: abs(step - 100) + 1)])
    assert made.best.get_xdata()[0] == 100 and made.subtitle.get_text() == "3 runs  ·  with the best of each"


def test_names_are_the_shortest_that_tell_runs_apart(tmp_path):
    folders = [tmp_path / name for name in ("a/demo", "b/demo", "other", "a/x/demo", "b/x/demo")]
    assert curves.names_of(folders) == ["a/demo", "b/demo", "other", "a/x/demo", "b/x/demo"]
    long = [tmp_path / f"{letter * 300}/demo" for letter in "ab"]
    assert all(len(curves.shortened(name, 36)) <= 36 for name in curves.names_of(long))


def test_runs_without_validations_are_compared_by_their_training_loss(tmp_path):
    folders = [train(tmp_path / "a"), train(tmp_path / "b", every=0)]
    made = compared(folders, x="tokens")
    assert made.title.get_text() == "Training loss, smoothed"
    assert [line.curve.x[-1] for line in made.lines] == [200 * 1280] * 2
    assert compared(folders[:1] * 2).title.get_text() == "Validation loss"


# ---- places and colours


def test_labels_are_spread_apart_and_stay_in_order():
    for wanted in ([5, 5, 5], [0, 100, 1, 99], [50.0], [3, 2, 1], [90, 95, 99, 100], list(range(20))):
        places = spread(wanted, 10, 0, 250)
        assert all(b - a > 9.99 for a, b in itertools.pairwise(sorted(places)))
        assert [places.index(p) for p in sorted(places)] == sorted(
            range(len(wanted)), key=lambda i: wanted[i]
        )
    assert spread([20, 80], 10, 0, 100) == [20, 80]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@STYLES
def test_colours_stand_out_from_the_paper(style):
    """WCAG: 3 for lines, 4.5 for text."""
    assert all(contrast(colour, style.paper) > 3 for colour in style.curves)
    assert all(contrast(colour, style.paper) > 4.5 for colour in (style.ink, style.muted))
    assert contrast(style.grid, style.paper) < 1.5


@STYLES
@pytest.mark.parametrize(
    "kind",  # the rest of red, green and blue, linear (Viénot, Brettel and Mollon 1999)
    [((0.112, 0.888, 0), (0.112, 0.888, 0)), ((0.292, 0.708, 0), (0.292, 0.708, 0))],
    ids=["protanopia", "deuteranopia"],
)
def test_the_two_curves_of_a_run_differ_for_the_colour_blind(style, kind):
    def seen(colour):
        linear = [luminance_of(int(colour[i : i + 2], 16) / 255) for i in (1, 3, 5)]
        yellow = sum(w * c for w, c in zip(kind[0], linear))
        return np.array([yellow, linear[2]]) ** (1 / 2.2)

    def luminance_of(c):
        return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4

    assert np.abs(seen(style.train) - seen(style.val)).max() > 0.25


@pytest.mark.parametrize(
    "low, high", [(0.45, 8), (2.9, 11), (1e-9, 1e20), (0.1, 1), (5, 13), (3, 8), (1e-3, 1e6)]
)
def test_ticks_of_a_logarithmic_axis(low, high):
    ticks = curves.log_ticks(low, high)
    assert 3 <= len(ticks) <= 8 and all(low <= t <= high for t in ticks)
    assert all(len(f"{t:e}".split("e")[0].rstrip("0")) <= 3 for t in ticks)  # round
    assert len(set(curves.told(ticks))) == len(ticks)


def test_ticks_of_any_linear_axis():
    draw = random.Random(1)
    for _ in range(300):
        low = draw.uniform(-9, 9) * 10 ** draw.randint(-3, 6)
        high = low + 10 ** draw.uniform(-3, 6)
        ticks = curves.linear_ticks(low, high)
        assert 3 <= len(ticks) <= 8, (low, high)
        assert len(set(curves.told(ticks))) == len(ticks)
