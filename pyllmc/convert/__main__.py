"""python -m pyllmc.convert SRC DST: turn weights of any known kind into a Hugging Face folder, a GGUF or llm.c's file."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyllmc.base.errors import InvalidArgument, begin_command, run_command, typed

if __name__ == "__main__":
    begin_command("numpy", "cffi")

from pyllmc.convert.companions import find_tokenizer
from pyllmc.convert.destination import FORMATS, check_dtype, check_place, check_untied, format_of
from pyllmc.convert.export import save
from pyllmc.convert.kinds import ADAPTER, Found, find
from pyllmc.convert.native import open_native
from pyllmc.convert.peft_adapter import place_of_base, save_adapter
from pyllmc.convert.recipes import Weights
from pyllmc.engine.checkpoint import adapters_of, training
from pyllmc.tables.options import Parser, at_least
from pyllmc.text import template

PROG = "pyllmc.convert"
PEFT = "peft"  # the word of --to for adapters
SOURCES = """a run or checkpoint, llm.c's model.bin, OpenAI's model.ckpt, a folder or safetensors of Hugging Face's (GPT-2,
GPT-Neo), a nanoGPT or minGPT .pt, or hub:gpt2, owner/name of the hub"""


EXAMPLES = (
    "python -m pyllmc.convert runs/demo my-model   a folder for transformers",
    "python -m pyllmc.convert runs/demo demo.gguf  for llama.cpp",
    "python -m pyllmc.convert ckpt.pt model.bin    nanoGPT's weights for llm.c",
    "python -m pyllmc.convert hub:gpt2 gpt2.bin --dtype=bf16",
    "python -m pyllmc.convert runs/lora adapter    LoRA adapters for PEFT",
    "python -m pyllmc.convert runs/lora whole --merge",
)


def make_parser() -> Parser:
    parser = Parser(prog=PROG, description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    parser.add_argument("source", metavar="SRC", help=SOURCES)
    parser.add_argument(
        "destination", metavar="DST", help="a folder (Hugging Face), NAME.gguf or NAME.bin (llm.c)"
    )
    parser.add_argument(
        "--to",
        default="",
        help=f"{', '.join(FORMATS)}, or {PEFT} (LoRA adapters); default: by the name of DST",
    )
    parser.add_argument(
        "--dtype", default="fp32", help="number format: fp32, bf16, or fp16 (not in bin) [fp32]"
    )
    parser.add_argument("--name", type=typed, default="", help="the model's name; default: the name of DST")
    parser.add_argument(
        "--tokenizer",
        default="",
        help="a tokenizer.bin, vocab.bpe, run or export, gpt2, or none; default: the one that belongs to SRC",
    )
    parser.add_argument(
        "--untied",
        action="store_true",
        help="write the embedding again as output.weight into a GGUF, because llama.cpp before March 2025 wants it",
    )
    parser.add_argument(
        "--merge", action="store_true", help="write LoRA adapters as a whole model; default: for PEFT"
    )
    parser.add_argument(
        "--base", default="", help="name of the base model in a PEFT adapter; default: its path"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--revision", default=None, help="branch, tag or commit of a name of the hub")
    parser.add_argument(
        "--n_head", type=at_least(1), default=0, help="heads of a minGPT state dict, which does not tell them"
    )
    return parser


def read(o: Any, found: Found) -> tuple[Weights, dict[str, Any]]:
    """Reads SRC; warnings, such as about a pickle, become one line each."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        weights = found.open(o.n_head)
        tensors = dict(weights.tensors)
    for message in {str(warning.message): 0 for warning in warned}:
        if not any(note in message for note in weights.notes):
            print(f"{PROG}: warning: {message}", file=sys.stderr)
    return weights, tensors


def stay_adapters(o: Any, found: Found, adapters: Path | None) -> bool:
    """True if SRC holds LoRA adapters, in that file, that are to stay such. Raises InvalidArgument if DST cannot hold them. Those of
    PEFT become a whole model always."""
    if o.merge and not adapters and found.kind != ADAPTER:
        raise InvalidArgument(f"{o.source} holds no adapters to merge: leave --merge out")
    if not adapters and (o.base or o.to == PEFT):
        raise InvalidArgument(
            f"{o.source} holds no adapters: --to={PEFT} and --base are for those of a LoRA run"
        )
    if (
        adapters
        and not o.merge
        and (format_of(o.destination, "" if o.to == PEFT else o.to) != "hf" or o.to == "hf")
    ):
        raise InvalidArgument(
            f"{o.source} holds adapters, {o.destination} would hold a whole model: add --merge"
        )
    return bool(adapters) and not o.merge


def read_from(found: Found, adapters: Path | None) -> list[str]:
    """The places that an export may not replace: that of the weights and, if these are adapters, that of their base."""
    if found.kind == ADAPTER:
        return [str(found.path), str(place_of_base(found.where))]
    return [str(found.path), *([open_native(adapters).adapters["base"]] if adapters else [])]


def convert(o: Any) -> None:
    """Converts SRC into DST; refuses what can be refused before it reads anything large."""
    found = find(o.source, o.revision)
    adapters = adapters_of(found.where)
    if stay_adapters(o, found, adapters):
        print(f"wrote {o.destination}: {save_adapter(o.destination, Path(o.source), o.overwrite, o.base)}")
        return
    to = format_of(o.destination, o.to)
    check_dtype(to, o.dtype)
    check_untied(to, o.untied)
    for place in read_from(found, adapters):
        check_place(o.destination, to, o.overwrite, place)
    weights, tensors = read(o, found)
    tokenizer, where = find_tokenizer(o.source, weights.config.vocab_size, o.tokenizer)
    what = f"{tokenizer.name}, {where}" if tokenizer else f"none, {where}"
    print(f"read {o.source}: {weights.told()}; tokenizer: {what}", flush=True)
    made = save(
        o.destination,
        weights.config,
        tensors,
        to=to,
        dtype=o.dtype,
        tokenizer=tokenizer,
        name=o.name,
        run=training(o.source),
        read=weights.what,
        overwrite=o.overwrite,
        untied=o.untied,
        form=template.meant(template.beside(found.path) or "auto"),
    )
    print(f"wrote {made.path}: {made.what}")
    for note in made.notes:
        print(f"note: {note}")


def main(arguments: Sequence[str] | None = None) -> int:
    o = make_parser().parse_args(arguments)
    return run_command(PROG, lambda: convert(o))


if __name__ == "__main__":
    sys.exit(main())
