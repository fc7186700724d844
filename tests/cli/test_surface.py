"""Calls every public function with every wrong type: it ends with the library's error in one line, or well; never otherwise.

The functions are found by inspect, so a new one is covered without a change here. If it has an argument with a new name, the
test asks for a good value of it (GOOD).
"""

from __future__ import annotations

import dataclasses
import inspect
import signal
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from wrong_values import WRONG

import pyllmc
from pyllmc import adopt, convert, priming, trainer, writer
from pyllmc.convert import hub
from pyllmc.engine import arena
from pyllmc.tables import layout
from pyllmc.text import dataset
from pyllmc.text.tokenizer import Tokenizer

SECONDS = 20  # the most seconds that one call may take
MODULES = (convert, hub, adopt, writer, priming)  # documented beside the names of the package
MORE = (trainer.Options, arena.Views)  # classes whose objects the package returns
FUNCTIONS = (layout.config_of, layout.is_size)
NOT_CALLED = {  # takes no argument from callers, or belongs to the inside of the engine
    "open_tokenizer",
    "write_text",
    "as_texts",
    "adopt_model",
    "Examiner.examine",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run and data, in which every call is made."""
    folder = tmp_path_factory.mktemp("surface")
    dataset.write_dataset(
        ["the cat sat", "a dog ran"] * 20, folder / "data", tokenizer="char", val_fraction=0.2
    )
    for _ in pyllmc.Trainer(data=folder / "data", out=folder / "run", **TINY, max_steps=1):
        pass
    return folder


TINY = {"model": "gpt-nano", "n_layer": 1, "n_head": 1, "n_embd": 8, "max_seq_len": 8, "B": 1, "T": 4}


class Good:
    """Good values by the name of an argument; made again if a call changes them."""

    def __init__(self, place: Path) -> None:
        self.tokenizer = Tokenizer.load(place / "data" / "tokenizer.bin")
        self.model = pyllmc.Model(place / "run", B=1, T=4)
        self.model.forward([[0, 1, 2, 3]], [[1, 2, 3, 4]])
        self.views = self.model.params
        self.examples = place / "examples.jsonl"
        self.examples.write_text('{"query": "a", "answer": "the"}')
        data = place / "data"
        self.more = {
            "Trainer": {"data": data, **TINY, "max_steps": 1}
        }  # otherwise the default data is made, which takes seconds
        ids = [[0, 1, 2, 3]]
        self.values = dict(
            inputs=ids,
            targets=ids,
            weights=None,
            ids=[1, 2],
            token=1,
            max_norm=1.0,
            path=place / "run" / "last.ckpt",
        )
        self.values.update(
            source=str(place / "run"), text="the", data=b"the", name="wte", answer=True, values=1.0, key="wte"
        )
        self.values.update(
            pieces=self.tokenizer.pieces, kind="longest", eot=-1, layer=0, descriptor="d12", lib=None
        )
        self.values.update(
            program="./train_gpt2",
            prog="x",
            before="x",
            python="python",
            vocab_size=8,
            max_seq_len=8,
            n_layer=1,
            n_head=1,
            n_embd=8,
            arguments=[],
            value="1",
        )
        self.values.update(trainer=None)  # an Examiner is made by the trainer itself
        self.values.update(examples=[("a", "the")], query="o", revision="main")
        self.values.update(arena=self.model._arena, default=None, betas=(0.9, 0.95))
        self.values.update({field.name: 0 for field in dataclasses.fields(pyllmc.Event)})

    def of(self, called: str, name: str) -> object:
        own = {
            ("Tokenizer.from_bytes", "data"): self.tokenizer.to_bytes(),
            ("Tokenizer.load", "path"): self.values["path"].parent.parent / "data" / "tokenizer.bin",
            ("Tokenizer.save", "path"): "saved.bin",
            ("Model.save", "path"): "saved.ckpt",
            ("Writer", "model"): self.model,
            ("Primer", "model"): self.model,
            ("read_examples", "path"): self.examples,
            ("Chat", "model"): self.values["source"],
            ("Options.set", "name"): "max_steps",
            ("Options.get", "name"): "max_steps",
            ("Options.is_given", "name"): "max_steps",
            ("repository", "name"): "hub:gpt2",
            ("check_revision", "name"): "hub:gpt2",
        }
        if (called, name) in own:
            return own[called, name]
        assert name in self.values, f"{called} needs {name}: say in Good what a good one is"
        return self.values[name]

    def object_of(self, kind: type) -> object:
        made: dict[type, Callable] = {
            pyllmc.Model: lambda: self.model,
            arena.Views: lambda: self.views,
            Tokenizer: lambda: self.tokenizer,
            pyllmc.GPTConfig: lambda: self.model.config,
            trainer.Options: lambda: trainer.Options(pyllmc.engine._ffi.load()),
            pyllmc.Writer: lambda: pyllmc.Writer(self.model, self.tokenizer),
            pyllmc.Primer: lambda: pyllmc.Primer(self.model, separator="d", end="t"),
            pyllmc.Chat: lambda: pyllmc.Chat(self.values["source"], sample_tokens=1, template="story"),
            pyllmc.Trainer: lambda: pyllmc.Trainer(
                data=self.values["path"].parent.parent / "data", **TINY, max_steps=1
            ),
        }
        return made[kind]()


def is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__getitem__", "__setitem__", "__contains__")


def classes() -> list[type]:
    """Classes of the package that are no exceptions, and classes of the objects that it returns."""
    named = [getattr(pyllmc, name) for name in pyllmc.__all__]
    return [kind for kind in named if isinstance(kind, type) and not issubclass(kind, Exception)] + list(MORE)


def surface() -> Iterator[tuple[str, type | None, str]]:
    """(how it is called, its class, its name; "" for the class itself) of everything public."""
    for kind in classes():
        if kind not in (trainer.Options, arena.Views):
            yield kind.__name__, kind, ""
        for name, member in inspect.getmembers(kind):
            if is_public(name) and (callable(member) or isinstance(member, property)):
                yield f"{kind.__name__}.{name}", kind, name
    for module in MODULES:
        for name, member in vars(module).items():
            if (
                isinstance(member, types.FunctionType)
                and is_public(name)
                and member.__module__ == module.__name__
            ):
                yield name, None, name
    for function in FUNCTIONS:
        yield function.__name__, None, function.__name__


def function_of(name: str) -> Callable:
    homes = [*MODULES, layout]
    return next(
        getattr(home, name) for home in homes if isinstance(getattr(home, name, None), types.FunctionType)
    )


SURFACE = {called: (kind, name) for called, kind, name in surface() if called not in NOT_CALLED}


def callable_of(good: Good, kind: type | None, name: str) -> Callable:
    if kind is None:
        return function_of(name)
    return getattr(good.object_of(kind), name) if name else kind


def calls(
    good: Good, called: str, kind: type | None, name: str
) -> Iterator[tuple[str, Callable[[], object]]]:
    """(the fault, a call) for each argument and each wrong value; all other arguments are good."""
    if kind is not None and isinstance(inspect.getattr_static(kind, name, None), property):
        yield from property_calls(good, kind, name)
        return
    signature = inspect.signature(callable_of(good, kind, name))
    needed = {**good.more.get(called, {})}
    needed |= {
        p.name: good.of(called, p.name)
        for p in signature.parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    for p in signature.parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        for label, value in WRONG.items():

            def call(name: str = p.name, value: object = value) -> object:
                target = callable_of(good, kind, SURFACE[called][1])
                return drained(
                    target(
                        *bound(signature, {**needed, name: value}),
                        **keywords(signature, {**needed, name: value}),
                    )
                )

            yield f"{p.name}={label}", call


def bound(signature: inspect.Signature, given: dict[str, object]) -> list[object]:
    """The arguments that can only be given by position, as those of __getitem__."""
    return [given[name] for name in bound_names(signature) if name in given]


def bound_names(signature: inspect.Signature) -> list[str]:
    return [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_ONLY]


def keywords(signature: inspect.Signature, given: dict[str, object]) -> dict[str, object]:
    places = bound_names(signature)
    return {n: v for n, v in given.items() if n not in places}


def drained(result: object) -> object:
    """A generator computes only when it is read, so this reads it."""
    return list(result) if isinstance(result, types.GeneratorType) else result


def property_calls(good: Good, kind: type, name: str) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "read", lambda: getattr(good.object_of(kind), name)
    if inspect.getattr_static(kind, name).fset is None:
        return
    before = getattr(good.object_of(kind), name)
    for label, value in WRONG.items():

        def assign(value: object = value) -> None:
            thing = good.object_of(kind)
            try:
                setattr(thing, name, value)
            finally:
                setattr(thing, name, before)

        yield f"{name}={label}", assign


def problem_of(call: Callable[[], object]) -> str:
    """The fault in how a call ended; "" for success and for an error of the library."""
    try:
        call()
    except pyllmc.LlmcError as error:
        text = str(error)
        return (
            "" if text and "\n" not in text and len(text) < 2000 else f"its message is no line: {text!r:.200}"
        )
    except Exception as error:
        return f"{type(error).__name__}: {error!s:.150}"
    return ""


@pytest.fixture(scope="module")
def good(place):
    return Good(place)


@pytest.fixture
def in_time():
    """A call that never ends is a failure, too."""

    def ended(number: int, frame: object) -> None:
        raise TimeoutError(f"a call took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ended)
    yield lambda: signal.alarm(SECONDS)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("called", SURFACE)
def test_wrong_types_give_the_librarys_own_error(called, good, in_time, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wrong = []
    for what, call in calls(good, called, *SURFACE[called]):
        in_time()
        if problem := problem_of(call):
            wrong.append(f"{called}({what}): {problem}")
    assert not wrong, "\n".join(wrong)


def test_the_surface_is_what_the_package_names():
    """Makes sure that the search above finds something."""
    assert {
        "Model",
        "Model.update",
        "Model.tokenizer_bytes",
        "Views.__getitem__",
        "Chat.say",
        "Trainer",
        "load",
    } <= set(SURFACE)
    assert len(SURFACE) > 60


@pytest.mark.parametrize(
    "named", [dict(lr="a"), dict(lr=[]), dict(betas=5), dict(betas=(1, 2, 3)), dict(eps=np.zeros(2))]
)
def test_the_message_names_the_argument_and_what_was_given(named, good):
    with pytest.raises(pyllmc.InvalidArgument, match=f"^{next(iter(named))}=.* is not "):
        good.model.update(**named)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("maker", [pyllmc.Trainer, pyllmc.Chat])
def test_named_options_of_wrong_types(maker, good, in_time):
    from pyllmc.tables.options import options

    for name in options("SHARED", "SHARED_CALL"):
        for label, value in WRONG.items():
            in_time()
            named = {"model": good.values["source"], "sample_tokens": 1, name: value}
            if maker is pyllmc.Trainer:
                named = {
                    "data": good.values["path"].parent.parent / "data",
                    **TINY,
                    "out": "",
                    "max_steps": 1,
                    name: value,
                }
            assert problem_of(lambda named=named: maker(**named)) == "", f"{name}={label}"
        assert problem_of(lambda: maker(nonsense=1)) == ""
