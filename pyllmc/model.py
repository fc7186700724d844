"""A GPT-2 in the C engine, seen from Python."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pyllmc.base.checks import NotCopied, as_bytes, as_count, as_flag, as_float, as_int, as_path, as_word
from pyllmc.base.errors import InvalidArgument
from pyllmc.convert.source import Origin, Source, make_config
from pyllmc.engine import _ffi
from pyllmc.engine.arena import Arena, Views, make_handle
from pyllmc.engine.arguments import (
    as_batch,
    as_betas,
    as_dlogits,
    as_prompts,
    choose_trained,
    make_room,
    make_sampling,
)
from pyllmc.engine.checkpoint import TOKENIZER
from pyllmc.engine.steps import Step, steps_of, texts_of


class Model(NotCopied):
    """GPT-2 in the C engine.

    source: a size ("d12", "gpt2", "gpt2:d48", "gpt3:c768", "gpt-nano", ...) or a GPTConfig, whose weights are fresh; or the
        path of a weight file, or of a run folder, whose best checkpoint is loaded (the last if nothing was validated);
        or the path of anything else that pyllmc.convert reads: a folder of Hugging Face's, OpenAI's TensorFlow checkpoint,
        nanoGPT's ckpt.pt, ...; or a model of the hub: "owner/name", or "hub:gpt2" for OpenAI's own weights.
    B, T: the largest batch and sequence the arena has room for; T=None takes the model's context.
    seed, init_std: fresh weights are drawn with these and equal the PyTorch reference's; init_std 0 is
        0.02 sqrt(max(1, 768/C)). A file does not use them.
    vocab_size: replaces the descriptor's own; sizes such as gpt-nano have none.
    device: "cpu"; "cuda"; or "emu", which runs the CUDA kernels on the CPU, to test them.
    precision: how weights and activations are stored: "fp32", or "bf16", which halves the memory of activations and is
        faster on AMD's CPUs with AVX512_BF16, several times with AMX. Sums are float in both, and so are the masters of
        the weights, which are what params shows and files hold. In bf16 and on a GPU params and activations are copies
        that cannot be changed in place: write m.params[name] = array. "auto": fp32 on a CPU, bf16 on a GPU.
    threads: 0 takes every core that the process and its container may use; results do not depend on it.
    training=False leaves out gradients and moments.
    weights: how generation (training=False) keeps the matrices: "fp32" (as precision stores them), "bf16" or "int8" with a
        scale per row. Fewer bytes to read make more tokens a second; the parameters of a model that compresses them can then be
        neither read nor saved.
    recompute: activations that the backward pass computes again, to the same bits, instead of keeping them: 1 GELU, 2 the norms,
        too, 3 qkv and what attention adds to, too (generation then takes one sequence at a time), 4 all but the input of each
        layer.
    keep_logits=False: logits exist for a few tokens at a time only; then train with micro_step.
    train_only: patterns of the names of tensors, separated by commas, such as "h.11.*,lnf*" (our names, or PyTorch's with or
        without "transformer."). All others are frozen: they have no gradient and no moments.
    lora_rank, lora_alpha, lora_on: LoRA (Hu et al. 2021). Each matrix W of a layer that lora_on names gets adapters A (rank, C)
        and B (OC, rank), params["qkvA"], params["qkvB"], ..., drawn as PEFT draws them with `seed`:
        y = x W^T + b + lora_alpha / lora_rank (x A^T) B^T. They alone are trained, and what train_only names.

    Calls from several threads wait for each other. A forward pass and what reads it (logits, backward) are several calls, so give
    each thread that trains a model of its own.
    Raises InvalidArgument, OutOfMemory (with the B and T that would fit), BadFile, NoDevice.
    """

    params: Views
    _WHOLE = False  # True: in bf16 on a CPU the masters of the weights are floats in memory
    _INSTEAD = "save it with model.save(path), and open pyllmc.Model(path) where it is needed"

    def __init__(
        self,
        source: Source,
        B: int = 4,
        T: int | None = None,
        *,
        seed: int = 42,
        device: str = "cpu",
        precision: str = "auto",
        threads: int = 0,
        training: bool = True,
        recompute: int = 0,
        keep_logits: bool = True,
        vocab_size: int = 0,
        init_std: float = 0.0,
        weights: str = "fp32",
        train_only: str = "",
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        lora_on: str = "qkv,attproj,fc,fcproj",
    ) -> None:
        how, kept = as_word("precision", precision), as_word("weights", weights)
        init_std = as_float("init_std", init_std)
        lib = _ffi.load(as_word("device", device).decode(), precision)
        origin = make_config(source, lib)
        config = origin.with_vocabulary(as_int("vocab_size", vocab_size), source)
        element = _ffi.check(lib, lib.llmc_precision(how))
        room = make_room(B, config.maxT if T is None else T, training, recompute, keep_logits, element)
        room.whole = self._WHOLE
        held = choose_trained(lib, room, train_only, lora_rank, lora_alpha, lora_on)  # noqa: F841, room points there
        seed = as_int("seed", seed, 64)
        self._adopt(lib, make_handle(lib, config, room, as_int("threads", threads)))
        self._warn_of_few_threads(threads or lib.llmc_default_threads())
        self._take_weights(origin, seed, init_std)
        self._source = origin.where
        self._origin = f"from {origin.where}" if origin.where else "fresh weights"
        self._check(lib.llmc_model_compress(self._handle, kept))

    def _take_weights(self, origin: Origin, seed: int, init_std: float) -> None:
        """Loads a file that the engine reads, takes the weights that Python has read, or draws fresh ones."""
        if origin.file:
            origin.file.load_into(self._handle)
            self._tokenizer = origin.file.section(TOKENIZER)
        elif origin.weights:
            for name, x in origin.weights.tensors:  # one at a time, so that none is held twice
                self.params[name] = x
        else:
            self._check(self._lib.llmc_model_init(self._handle, seed, init_std))
            return
        if self._arena.room.lora_rank and not (origin.file and origin.file.adapters):
            self._check(self._lib.llmc_model_name_base(self._handle, _ffi.encoded(origin.where)))
            self._check(self._lib.llmc_model_init_adapters(self._handle, seed))

    @classmethod
    def _borrow(cls, lib: Any, pointer: Any, owner: Any) -> Model:
        """Wraps a trainer's model; `owner` keeps it alive."""
        model = cls.__new__(cls)
        model._adopt(lib, pointer, owner)
        return model

    def _adopt(self, lib: Any, handle: Any, owner: Any = None) -> None:
        self._lib = lib = _ffi.taking_turns(lib)  # a trainer's model has its turns
        self._handle = handle
        self._loss = _ffi.ffi().new("float *")  # a device may write it after Ctrl-C has ended a micro_step
        self._untargeted = False  # True if the last forward pass had no targets
        self._separator: int | None = None  # the token that separate_documents was given
        self._origin = "in training"
        self._tokenizer, self._source = b"", ""  # the tokenizer's bytes; a path beside which it may lie
        self._arena = arena = Arena(lib, handle, owner or handle)
        self.config = arena.config
        self.params, self.grads = Views(arena, "params"), Views(arena, "grads")
        self.moments, self.acts = Views(arena, "m", "v"), Views(arena, "acts")

    @property
    def threads(self) -> int:
        """The number of CPU threads that compute."""
        return int(self._lib.llmc_model_threads(self._handle))

    def _warn_of_few_threads(self, wanted: int) -> None:
        if self.threads < wanted:
            limit = "the system starts no more (ulimit -u, or its container's limit)"
            warnings.warn(f"{self.threads} threads of {wanted}: {limit}", RuntimeWarning, stacklevel=3)

    def __repr__(self) -> str:
        c = self.config
        sizes = f"L={c.n_layer} NH={c.n_head} C={c.n_embd} T={c.max_seq_len} V={c.vocab_size}"
        return f"<Model {sizes}, {self.num_params * 1e-6:.2f}M parameters, {self._origin}>"

    def _check(self, status: int) -> int:
        return _ffi.check(self._lib, status)

    @property
    def tokenizer_bytes(self) -> bytes:
        """The tokenizer.bin that came with the weights, else the one in their folder, sought at first use; or b""."""
        if self._source and not self._tokenizer:
            from pyllmc.convert.companions import tokenizer_beside

            self._tokenizer = tokenizer_beside(self._source, self.config.vocab_size)
        self._source = ""
        return self._tokenizer

    @tokenizer_bytes.setter
    def tokenizer_bytes(self, data: bytes) -> None:
        self._tokenizer, self._source = as_bytes("tokenizer_bytes", data), ""

    @property
    def training(self) -> bool:
        return self._arena.training

    @property
    def shape(self) -> tuple[int, int]:
        """(b, t) of the last forward pass, (0, 0) before the first, and after a text was written or scored in its memory."""
        return self._arena.shape

    @property
    def isa(self) -> str:
        """The instruction set in use; $PYLLMC_ISA forces one."""
        return _ffi.text(self._lib.llmc_model_isa(self._handle))

    @property
    def step(self) -> int:
        """AdamW steps taken."""
        return self._lib.llmc_model_step(self._handle)

    @property
    def num_params(self) -> int:
        """Parameters, with LoRA's adapters and without the padding of the vocabulary."""
        rows = self._arena.rows
        params = [row for row in rows.values() if self._arena.is_weight(row)]
        padding = (self.config.padded_vocab_size - self.config.vocab_size) * len(self._arena.padded)
        return sum(row.size * max(row.layers, 1) for row in params) - padding * self.config.n_embd

    @property
    def logits(self) -> np.ndarray:
        """(b, t, V) of the last forward pass. The backward pass turns them into their gradient, in place.

        Raises InvalidArgument before the first forward pass, or if they are not kept (keep_logits=False, a trainer's model).
        """
        self._need_forward("logits")
        return self.acts["logits"][:, :, : self.config.vocab_size]

    @property
    def losses(self) -> np.ndarray:
        """(b, t): each token's own loss, 0 where the target is -1; not weighted."""
        self._need_forward("losses")
        if self._untargeted:
            raise InvalidArgument(
                "losses: the last forward pass had no targets; call forward(inputs, targets)"
            )
        return self.acts["losses"]

    def _need_forward(self, what: str) -> None:
        if self.shape == (0, 0):
            raise InvalidArgument(
                f"{what}: there was no forward pass yet, or a text was written since, in its memory; call forward() first"
            )

    # ---- training ----

    def forward(self, inputs: Any, targets: Any = None, weights: Any = None) -> float | None:
        """Mean loss over the targets that are not -1, sum(w l) / sum(w) with weights; None without targets.

        inputs, targets: integers (b, t) with b <= B and t <= T; weights: floats (b, t), >= 0.
        """
        arrays, pointers = as_batch(inputs, targets, weights)
        loss = _ffi.ffi().new("float *")
        self._check(self._lib.llmc_model_forward(self._handle, *pointers, *arrays[0].shape, loss))
        self._untargeted = targets is None
        return None if targets is None else loss[0]

    def micro_step(
        self, inputs: Any, targets: Any, weights: Any = None, scale: float = 1.0, accumulate: bool = True
    ) -> float:
        """Runs forward, then backward(scale); returns the loss. Faster than two calls, above all if logits are not kept.

        accumulate=False: gradients are replaced, not added to. That is zero_grad at no cost.
        """
        if targets is None:
            raise InvalidArgument("micro_step needs targets; forward(inputs) goes without")
        scale, accumulate = as_float("scale", scale), as_flag("accumulate", accumulate)
        arrays, pointers = as_batch(inputs, targets, weights)
        shape, loss = arrays[0].shape, self._loss
        self._check(
            self._lib.llmc_model_micro_step(self._handle, *pointers, *shape, scale, int(accumulate), loss)
        )
        self._check(self._lib.llmc_model_sync(self._handle))
        self._untargeted = False
        return float(loss[0])

    def backward(self, scale: float = 1.0, dlogits: Any = None, accumulate: bool = True) -> None:
        """Adds scale * d loss to the gradients; needs a forward pass with targets just before it.

        dlogits: floats (b, t, V), the gradient of any other loss by the logits, takes the place of scale * d loss; targets are
        then not needed. accumulate=False: gradients are replaced, not added to.
        """
        array, start = as_dlogits(dlogits, (*self.shape, self.config.vocab_size))
        scale, accumulate = as_float("scale", scale), as_flag("accumulate", accumulate)
        self._check(self._lib.llmc_model_backward_from(self._handle, start, scale, int(accumulate)))

    # ---- dropout ----

    def set_dropout(
        self, embd: float = 0.0, attn: float = 0.0, resid: float = 0.0, seed: int = 0, lora: float = 0.0
    ) -> None:
        """Sets GPT-2's dropout: probabilities in [0, 1) for the sum of the embeddings, for attention's weights, and for what
        attention and MLP add to the residual stream; lora: for what the adapters' A reads (PEFT's lora_dropout). What is kept is multiplied by 1 / (1 - p). p counts as the nearest
        multiple of 1/65536.

        micro_step drops; forward only after train(); generation never. Which elements drop follows from the seed, step,
        micro_steps and the place, by the rule in csrc/kernels.h: they are the same on every device and for any number of threads.
        Raises InvalidArgument.
        """
        names = {"embd": embd, "attn": attn, "resid": resid, "lora": lora}
        p = [as_float(name, value) for name, value in names.items()]
        self._check(self._lib.llmc_model_set_dropout(self._handle, *p, as_int("seed", seed, 64)))

    def train(self, mode: bool = True) -> Model:
        """Lets forward() drop, as it does in nn.Module.train(); train(False) and eval() end that. A model begins without."""
        self._check(self._lib.llmc_model_drop_in_forward(self._handle, int(as_flag("mode", mode))))
        return self

    def eval(self) -> Model:
        """Computes forward() without dropout: train(False)."""
        return self.train(False)

    @property
    def micro_steps(self) -> int:
        """The number of the next pass that drops, counted from 0 since the last update(), or since a micro_step that did not
        accumulate. Whoever updates the weights without update() may set it, to go on with the same masks after a restart."""
        return int(self._lib.llmc_model_micro_steps(self._handle))

    @micro_steps.setter
    def micro_steps(self, n: int) -> None:
        self._check(self._lib.llmc_model_set_micro_steps(self._handle, as_int("micro_steps", n, 64)))

    def separate_documents(self, token: int | None) -> None:
        """Lets documents that share a window not see each other, from the next batch on: `token`, such as tokenizer.eot, begins
        one. Its attention and its positions begin with it, so that logits, losses and gradients are those of each document
        alone. None, as at first: a window is one document. Generation is not concerned. Raises InvalidArgument."""
        id = None if token is None else as_count("token", token)
        self._check(self._lib.llmc_model_separate(self._handle, -1 if id is None else id))
        self._separator = id

    def zero_grad(self) -> None:
        self._check(self._lib.llmc_model_zero_grad(self._handle))

    def clip_grad_norm(self, max_norm: float) -> float:
        """Scales the gradients so that their global norm is at most max_norm; returns the norm before."""
        norm, max_norm = _ffi.ffi().new("float *"), as_float("max_norm", max_norm, finite=False)
        self._check(self._lib.llmc_model_clip_grad_norm(self._handle, max_norm, norm))
        return norm[0]

    def update(
        self,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        still_embeddings: bool = False,
    ) -> None:
        """Takes one AdamW step; only 2-D tensors decay, and with still_embeddings, as in minGPT, wte and wpe do not, either."""
        numbers = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        fields = {name: as_float(name, value) for name, value in numbers.items()}
        fields["beta1"], fields["beta2"] = as_betas(betas)
        fields["still_embeddings"] = as_flag("still_embeddings", still_embeddings)
        hyper = _ffi.ffi().new("llmc_adamw *", fields)
        self._check(self._lib.llmc_model_update(self._handle, hyper, 0))

    # ---- generation ----

    def generate(
        self,
        ids: Any,
        max_new_tokens: int = 64,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        eot: int = -1,
        repetition_penalty: float = 1.0,
    ) -> Any:
        """Writes token ids that follow `ids`: at most max_new_tokens, up to and with the first `eot`.

        ids: integers (n), n >= 1 -> a list of ids; or prompts of one length, (b, n) with b <= B -> a list of b lists,
        prompt i drawn with seed + i, read together (each weight once). temperature 0 takes the likeliest. A
        repetition_penalty above 1 (CTRL's, applied first) makes ids in the context less likely. A text longer than T is
        seen in part: whenever the context holds T tokens, its last T/2 become a new context.
        """
        prompts, alone = as_prompts(ids)
        most, eot = as_int("max_new_tokens", max_new_tokens), as_int("eot", eot)
        how = make_sampling(temperature, top_k, top_p, seed, repetition_penalty)
        texts = texts_of(self._lib, self._handle, prompts, most, how, eot)
        return texts[0] if alone else texts

    def steps(
        self,
        ids: Any,
        max_new_tokens: int = 64,
        alternatives: int = 5,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        eot: int = -1,
        repetition_penalty: float = 1.0,
    ) -> Iterator[Step]:
        """Yields each id that generate would write after `ids` (n), with its probability and the likeliest `alternatives`.

        A Step's text is "": Writer.steps tells texts, too. Raises InvalidArgument.
        """
        prompts, alone = as_prompts(ids)
        if not alone:
            raise InvalidArgument(f"ids {prompts.shape}: steps are those of one text: give ids (n)")
        most, eot = as_count("max_new_tokens", max_new_tokens), as_int("eot", eot)
        how = make_sampling(temperature, top_k, top_p, seed, repetition_penalty)
        count = as_count("alternatives", alternatives)
        return steps_of(self._lib, self._handle, self._arena.owner, prompts, most, how, eot, count)

    # ---- files ----

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights, moments, step and tokenizer into one file, atomically; it begins as llm.c's .bin version 3."""
        name = _ffi.encoded(Path(as_path("path", path)))
        tokenizer = self.tokenizer_bytes
        state = f"step={self.step}\n".encode()
        moments = int(self.training)
        self._check(
            self._lib.llmc_checkpoint_save(self._handle, name, b"", state, tokenizer, len(tokenizer), moments)
        )
