"""python -m pyllmc.grade RUN: let a model trained on the stories write some, and grade them by the grammar."""

from __future__ import annotations

import argparse
import sys

from pyllmc import _ffi, exam, sample, stories
from pyllmc.files import DataError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pyllmc.grade", description=__doc__)
    parser.add_argument("run", help="a run folder or a checkpoint")
    parser.add_argument("--count", type=int, default=50, help="stories to grade [50]")
    parser.add_argument("--show", type=int, default=2, help="stories to print [2]")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the sampling [0.8]")
    parser.add_argument("--seed", type=int, default=1, help="of the first story [1]")
    o = parser.parse_args()
    try:
        writer = sample.open_writer(o.run)
        texts = [
            writer.write(max_new_tokens=240, temperature=o.temperature, seed=o.seed + i).strip()
            for i in range(o.count)
        ]
    except (_ffi.LlmcError, DataError) as error:
        print(f"pyllmc.grade: {error}", file=sys.stderr)
        return _ffi.exit_code(error)
    except KeyboardInterrupt:
        return 130
    for text in texts[: o.show]:
        print(f"\n{text}")
    print(f"\n{exam.exam(texts, stories.generate(stories.DEFAULT)).report()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
