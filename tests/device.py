"""The kernels of a build for GPUs, on numpy arrays: arguments are copied to the device, results back."""

from __future__ import annotations

import numpy as np
from conftest import Unchanged, ffi, stored_by
from narrow import base_of, from_bf16, to_bf16

PAST = 256  # bytes behind the workspace that no kernel may touch


class Copy:
    """A numpy array on the device; `narrow`: stored there as bfloat16."""

    def __init__(self, kernel: DeviceKernel, base: np.ndarray, narrow: bool) -> None:
        self.kernel, self.base, self.narrow = kernel, base, narrow
        data = to_bf16(base) if narrow else base
        self.width, self.nbytes = data.itemsize, data.nbytes
        self.at = kernel.table.alloc(max(self.nbytes, 1))
        kernel.put(self.at, np.ascontiguousarray(data))

    def pointer_to(self, part: np.ndarray) -> int:
        skip = (part.ctypes.data - self.base.ctypes.data) // self.base.itemsize
        return int(ffi.cast("uintptr_t", self.at)) + skip * self.width

    def fetch(self) -> None:
        """Copies back into the numpy array; one that the kernel may only read, too, which Unchanged then looks at."""
        got = np.empty(self.base.shape, np.uint16 if self.narrow else self.base.dtype)
        self.kernel.get(got, self.at)
        self.base[...] = from_bf16(got) if self.narrow else got
        self.kernel.table.free(self.at, self.nbytes)


class DeviceKernel:
    """The same as conftest.Kernel, on a device."""

    def __init__(self, name: str, library) -> None:
        self.isa, self.lib = name, library
        self.table = library.llmc_kernels(ffi.NULL, library.LLMC_AUTO)
        self.stored = stored_by(self.table)
        self.context = ffi.new("Context *", {"threads": 1, "weight_format": self.table.element})
        self.opened = self.check(self.table.open(self.context))
        self.scratch = ffi.NULL

    def __del__(self) -> None:
        if hasattr(self, "opened"):
            self.table.free(self.scratch, 0)
            self.table.close(self.context)

    def check(self, status: int) -> int:
        assert status >= 0, ffi.string(self.lib.llmc_last_error()).decode()
        return status

    def put(self, at, data: np.ndarray) -> None:
        self.table.copy_in(self.context, at, ffi.cast("void *", data.ctypes.data), data.nbytes)

    def get(self, out: np.ndarray, at) -> None:
        self.table.copy_out(self.context, ffi.cast("void *", out.ctypes.data), at, out.nbytes)
        self.check(self.table.sync(self.context))

    def workspace(self, B: int, T: int, C: int, NH: int = 1, Vp: int = 128) -> None:
        size = self.table.workspace_bytes(B, T, C, NH, Vp, 1)
        self.table.free(self.scratch, 0)
        self.scratch = self.context.workspace = self.table.alloc(size + PAST)
        self.table.fill(self.context, self.scratch, 0xFF, size + PAST)
        self.past = ffi.cast("char *", self.scratch) + size

    def __getattr__(self, name: str):
        entry = getattr(self.table, name)
        assert entry != ffi.NULL, f"{name} is missing from {self.isa}"
        types = ffi.typeof(entry).args

        def call(*args):
            copies, unchanged = {}, Unchanged(name, self.stored, args)
            cast = [self.argument(t, a, copies) for a, t in zip(args, types[1:])]
            entry(self.context, *cast)
            self.check(self.table.sync(self.context))
            for copy in copies.values():
                copy.fetch()
            unchanged.check()
            self.check_past()

        return call

    def argument(self, kind, value, copies: dict[tuple[int, bool], Copy]):
        if value is None:
            return ffi.NULL
        if not isinstance(value, np.ndarray):
            return value
        base = base_of(value)
        narrow = "floatX" in kind.cname and self.stored == "bfloat16"
        key = base.ctypes.data, narrow
        if key not in copies:
            copies[key] = Copy(self, base, narrow)
        return ffi.cast(kind, copies[key].pointer_to(value))

    def check_past(self) -> None:
        if self.scratch != ffi.NULL:
            past = np.empty(PAST, np.uint8)
            self.get(past, self.past)
            assert (past == 0xFF).all(), "written past the workspace"
