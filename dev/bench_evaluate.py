"""python dev/bench_evaluate.py: the likelihoods of choices, ours beside lm-eval's, on the same items and weights.

The model has GPT-2's 124M shape and random weights; the items are random ids with the lengths of HellaSwag's: of ten, seven have a
context of 60 to 110 tokens and four endings of 20 to 45 (WikiHow), three have 20 to 50 and 6 to 20 (ActivityNet). lm-eval's HFLM runs
with each batch size, and its fastest counts. The systems are processes of their own that take turns; each shows how
many threads it was given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import IO, Any

import numpy as np

VOCAB = 50257
LEAST = 3.0  # how many times as fast as lm-eval it shall be
NEAR = 1e-2  # nats, by which two sums over an ending may differ
KINDS = (((60, 110), (20, 45)), ((20, 50), (6, 20)))  # lengths of contexts and endings
OTHERS = 3  # items of ten that are of the second kind


def items_of(n: int) -> list[tuple[list[int], list[list[int]]]]:
    """(context, endings) of n items."""
    rng = np.random.default_rng(0)

    def draw(low: int, high: int) -> list[int]:
        return [int(id) for id in rng.integers(0, VOCAB, rng.integers(low, high + 1))]

    kinds = [KINDS[i % 10 < OTHERS] for i in range(n)]
    return [(draw(*context), [draw(*ending) for _ in range(4)]) for context, ending in kinds]


def serve_ours(folder: str, n: int, _: int) -> Any:
    import pyllmc
    from pyllmc.evaluate.items import Choice
    from pyllmc.evaluate.scorer import B_for, Scorer

    asked = [
        Choice(np.array(c, np.int32), [np.array(e, np.int32) for e in ends], 0, []) for c, ends in items_of(n)
    ]

    T = 1024
    scorer = Scorer(pyllmc.Model(folder, B_for(T), T, training=False, keep_logits=False))
    return lambda: [float(logs.sum()) for choices in scorer.choices(asked) for logs in choices]


def serve_lm_eval(folder: str, n: int, batch: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=batch)
    asked = [(("", ""), c, e) for c, endings in items_of(n) for e in endings]
    return lambda: [log for log, _ in model._loglikelihood_tokens(asked, disable_tqdm=True)]


SYSTEMS = {"pyllmc": serve_ours, "lm-eval": serve_lm_eval}


def serve(system: str, folder: str, n: int, batch: int) -> None:
    """The measured process: scores all items for each line of its input."""
    call = SYSTEMS[system](folder, n, batch)
    for _ in sys.stdin:
        start, work = time.perf_counter(), time.process_time()
        logs = call()
        seconds, work = time.perf_counter() - start, time.process_time() - work
        print(json.dumps({"seconds": seconds, "work": work, "logs": logs}), flush=True)


def make_folder(folder: str) -> None:
    """A Hugging Face folder with random weights of the shape of GPT-2 124M, and GPT-2's tokenizer."""
    import pyllmc
    from pyllmc.convert.export import save
    from pyllmc.text.vocabularies import gpt2

    m = pyllmc.Model("d12", 1, 1, training=False)
    save(folder, m.config, {name: m.params[name] for name in m.params}, to="hf", tokenizer=gpt2())


def ask(process: subprocess.Popen[str]) -> dict[str, Any]:
    given: IO[str] | None = process.stdin
    answers: IO[str] | None = process.stdout
    assert given and answers
    print("go", file=given, flush=True)
    return dict(json.loads(answers.readline()))


def compare(folder: str, n: int, turns: int, batches: list[int]) -> bool:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    names = [("pyllmc", 0), *(("lm-eval", batch) for batch in batches)]
    processes = []
    for system, batch in names:
        words = [sys.executable, __file__, "--serve", system, folder, str(n), str(batch)]
        processes.append(subprocess.Popen(words, env=environment, **pipes))  # type: ignore[call-overload]
    taken = [[ask(process) for process in processes] for _ in range(turns)]
    for process in processes:
        process.stdin.close()
        process.wait()
    best = [min(turn[i]["seconds"] for turn in taken) for i in range(len(names))]
    busy = [min(turn[i]["work"] for turn in taken) for i in range(len(names))]
    apart = max(abs(a - b) for a, b in zip(taken[0][0]["logs"], taken[0][1]["logs"]))
    for (system, batch), seconds, work in zip(names, best, busy):
        size = f" with batches of {batch}" if batch else ""
        print(f"{system}{size}: {seconds:.2f} s for {n} items of four choices, {work:.2f} s of all threads")
    print(
        f"{min(best[1:]) / best[0]:.2f} times as fast as lm-eval at its best ({min(busy[1:]) / busy[0]:.2f} times by the time of all "
        f"threads); the log-probabilities of endings differ by {apart:.1e} at most"
    )
    return min(best[1:]) / best[0] >= LEAST and apart <= NEAR


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=40, help="items in a turn [40]")
    parser.add_argument("--turns", type=int, default=3, help="turns; the fastest of each system counts [3]")
    parser.add_argument("--batches", default="1,4,16,64", help="lm-eval's batch sizes [1,4,16,64]")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.serve:
        serve(o.serve[0], o.serve[1], int(o.serve[2]), int(o.serve[3]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make_folder(os.path.join(folder, "model"))
        batches = [int(batch) for batch in o.batches.split(",")]
        return 0 if compare(os.path.join(folder, "model"), o.items, o.turns, batches) else 1


if __name__ == "__main__":
    sys.exit(main())
