"""Checkpoints when writing fails: a fault at every call, a full disk, a kill at any moment."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT

from pyllmc import GPTConfig, Model

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
/* Counts calls of write, fsync and rename, and of fwrite, fputs, fflush and fclose, once FAIL_AT is set, and makes the one
 * of that number fail; the file FAIL_LOG then says so. FAIL_SHORT makes writes short instead. */
static long calls;
static int fails(void) {
    const char *at = getenv("FAIL_AT");
    if (!at) return calls = 0;
    if (++calls != atol(at)) return 0;
    const char *log = getenv("FAIL_LOG");
    if (log) close(open(log, O_CREAT | O_WRONLY, 0666));
    errno = getenv("FAIL_ERRNO") ? atoi(getenv("FAIL_ERRNO")) : ENOSPC;
    return 1;
}
ssize_t write(int fd, const void *p, size_t n) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (getenv("FAIL_SHORT") && n > 7) n = n / 2;
    return fd > 2 && fails() ? -1 : real(fd, p, n);
}
int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    return fails() ? -1 : real(fd);
}
int rename(const char *a, const char *b) {
    static int (*real)(const char *, const char *);
    if (!real) real = dlsym(RTLD_NEXT, "rename");
    return fails() ? -1 : real(a, b);
}
size_t fwrite(const void *p, size_t size, size_t n, FILE *f) {
    static size_t (*real)(const void *, size_t, size_t, FILE *);
    if (!real) real = dlsym(RTLD_NEXT, "fwrite");
    return fileno(f) > 2 && fails() ? 0 : real(p, size, n, f);
}
int fputs(const char *text, FILE *f) {
    static int (*real)(const char *, FILE *);
    if (!real) real = dlsym(RTLD_NEXT, "fputs");
    return fileno(f) > 2 && fails() ? EOF : real(text, f);
}
int fflush(FILE *f) {
    static int (*real)(FILE *);
    if (!real) real = dlsym(RTLD_NEXT, "fflush");
    return f && fileno(f) > 2 && fails() ? EOF : real(f);
}
int fclose(FILE *f) { /* closed it is in any case */
    static int (*real)(FILE *);
    if (!real) real = dlsym(RTLD_NEXT, "fclose");
    const int failed = fileno(f) > 2 && (fcntl(fileno(f), F_GETFL) & O_ACCMODE) != O_RDONLY && fails(), error = errno;
    const int rc = real(f);
    if (failed) errno = error;
    return failed ? EOF : rc;
}
/* FAIL_MKDIR: a mkdir within that folder fails with FAIL_ERRNO */
int mkdir(const char *path, mode_t mode) {
    static int (*real)(const char *, mode_t);
    if (!real) real = dlsym(RTLD_NEXT, "mkdir");
    const char *under = getenv("FAIL_MKDIR");
    if (!under || strncmp(path, under, strlen(under)) || !path[strlen(under)]) return real(path, mode);
    errno = atoi(getenv("FAIL_ERRNO"));
    return -1;
}
"""

FAULTS = """
import os, sys
from pyllmc import Model, GPTConfig
from pyllmc.engine import _ffi
ffi, lib = _ffi.ffi(), _ffi.load()
libc = type(ffi)()
libc.cdef("int setenv(const char *, const char *, int); int unsetenv(const char *);")
c = libc.dlopen(None)
path = sys.argv[1]
config = GPTConfig(vocab_size=37, max_seq_len=6, n_layer=2, n_head=2, n_embd=8)
old, new = (Model(config, B=1, T=4, seed=s, threads=1) for s in (1, 2))
def save(model):
    return lib.llmc_checkpoint_save(model._handle, path.encode(), b"lr=1", b"step=0", b"tok", 3, 1)
assert save(old) == 0
before = open(path, "rb").read()
assert save(new) == 0
after = open(path, "rb").read()
assert save(old) == 0
for k in range(1, 100):
    c.setenv(b"FAIL_AT", str(k).encode(), 1)
    rc = save(new)
    c.unsetenv(b"FAIL_AT")
    now = open(path, "rb").read()
    assert not os.path.exists(path + ".tmp"), k
    if rc == 0:
        assert now == after
        break
    assert rc == lib.LLMC_EIO and b"No space left" in ffi.string(lib.llmc_last_error()), (k, rc)
    print("failed at", k, "old" if now == before else "new" if now == after else "BROKEN")
    assert save(old) == 0
c.setenv(b"FAIL_SHORT", b"1", 1)
assert save(old) == 0 and open(path, "rb").read() == before
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    command = [
        os.environ.get("CC", "cc"),
        "-shared",
        "-fPIC",
        "-o",
        folder / "shim.so",
        folder / "shim.c",
        "-ldl",
    ]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no compiler here")
    return folder / "shim.so"


def preloading(library: Path) -> dict[str, str]:
    """The environment of a program that is to load it first. By its name: LD_PRELOAD takes no path with a blank in it."""
    folders = [str(library.parent), os.environ.get("LD_LIBRARY_PATH")]
    return {
        "LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')} {library.name}".strip(),
        "LD_LIBRARY_PATH": ":".join(filter(None, folders)),
    }


def python(program: str, *args, **env) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, args)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_fault_at_every_write_flush_and_rename(tmp_path, shim):
    """Until the rename the old file stays, byte for byte; after it the new one is there; a .tmp is never left."""
    done = python(FAULTS, tmp_path / "m.ckpt", **preloading(shim))
    assert done.returncode == 0, done.stderr
    outcomes = [line.split()[-1] for line in done.stdout.splitlines()]
    assert len(outcomes) > 15
    assert set(outcomes[:-1]) == {"old"}, done.stdout
    assert outcomes[-1] == "new", done.stdout


SAVE_ONCE = """
import sys
from pyllmc import GPTConfig, Model, SystemFailure
try:
    Model(GPTConfig(37, 6, 2, 2, 8), B=1, T=4).save(sys.argv[1])
except SystemFailure as error:
    print(error)
"""
REMEDIES = {
    errno.ENOSPC: "; free some space",
    errno.EDQUOT: "; free some space",
    errno.EFBIG: "; free some space",
    errno.EROFS: "; name a folder that may be written",
    errno.EACCES: "; name a folder that may be written",
    errno.EIO: "Input/output error. No half-written file",
}


@pytest.mark.parametrize("code", REMEDIES, ids=errno.errorcode.get)
def test_the_remedy_fits_the_error(code, tmp_path, shim):
    done = python(SAVE_ONCE, tmp_path / "m.ckpt", **preloading(shim), FAIL_AT="3", FAIL_ERRNO=str(code))
    assert "m.ckpt cannot be" in done.stdout, done.stderr
    assert REMEDIES[code] in done.stdout
    assert ("free some space" in done.stdout) == ("free some space" in REMEDIES[code])


TRAIN = """
import sys
import pyllmc
from pyllmc.text import bins
folder = sys.argv[1]
bins.write_shard(f"{folder}/train.bin", list(range(50)), vocab_size=50)
trainer = pyllmc.Trainer(data=folder, vocab_size=50, model="gpt-nano", T=4, B=1, out=f"{folder}/made/a/b")
try:
    for event in trainer: pass
except pyllmc.SystemFailure as error:
    print(error)
"""


@pytest.mark.parametrize("code, reason", [(errno.EROFS, "Read-only file system"), (errno.EACCES, "denied")])
def test_a_folder_that_cannot_be_made_says_why(code, reason, tmp_path, shim):
    """The error gives the reason for the parent folder, not the ENOENT of its child."""
    done = python(TRAIN, tmp_path, **preloading(shim), FAIL_MKDIR=str(tmp_path), FAIL_ERRNO=str(code))
    assert f"{tmp_path}/made cannot be made" in done.stdout, done.stderr
    assert reason in done.stdout
    assert "name a folder that may be written" in done.stdout


def test_full_disk(tmp_path):
    """RLIMIT_FSIZE imitates a full disk: a write is cut short, later ones are refused."""
    program = textwrap.dedent("""
        import resource, signal, sys
        from pyllmc import Model
        from pyllmc.engine import _ffi
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        model = Model("gpt-nano", B=1, T=4, vocab_size=99, threads=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            model.save(sys.argv[1])
        except _ffi.SystemFailure as error:
            print(error)
    """)
    done = python(program, tmp_path / "m.ckpt")
    assert "m.ckpt cannot be written: File too large; free some space" in done.stdout, done.stderr
    assert os.listdir(tmp_path) == []


KILLS = """
import os, random, signal, sys, time
import numpy as np
from pyllmc import Model, GPTConfig
path, rng, seen = sys.argv[1], random.Random(0), set()
model = Model(GPTConfig(vocab_size=37, max_seq_len=64, n_layer=2, n_head=2, n_embd=64), B=1, T=4, threads=1)
for kill in range(40):
    ready, go = os.pipe()
    child = os.fork()  # nothing has run in parallel yet, so this is safe
    if not child:
        for i in range(1, 10**6):
            for name in model.params:
                model.params[name][...] = i
            model.save(path)
            if i == 1: os.write(go, b"1")
    os.read(ready, 1)
    time.sleep(rng.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready), os.close(go)
    there = Model(path, B=1, T=4, threads=1)
    values = {float(x) for name in there.params for x in np.unique(there.params[name])}
    assert len(values) == 1, values
    seen |= values
print(len(seen), "different checkpoints")
assert len(seen) > 1
"""


def test_kill_at_any_moment(tmp_path):
    """At any moment one whole checkpoint is there: all its weights have the same number."""
    path = tmp_path / "m.ckpt"
    done = python(KILLS, path)
    assert done.returncode == 0, done.stderr
    assert set(os.listdir(tmp_path)) <= {"m.ckpt", "m.ckpt.tmp"}
    Model(GPTConfig(37, 6, 2, 2, 8), B=1, T=4).save(path)  # a .tmp that was left over disturbs nobody
    assert os.listdir(tmp_path) == ["m.ckpt"]


ORDER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
/* Notes each call: write, fsync of a file, fsync of a folder, rename. */
static char calls[1 << 20];
static int n;
static void note(char c) { if (n < (int)sizeof calls - 1) calls[n++] = c; }
const char *order(void) { return calls; }
ssize_t write(int fd, const void *p, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    return note('w'), real(fd, p, size);
}
int fsync(int fd) {
    static int (*real)(int);
    struct stat s;
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    return note(fstat(fd, &s) == 0 && S_ISDIR(s.st_mode) ? 'd' : 'f'), real(fd);
}
int rename(const char *a, const char *b) {
    static int (*real)(const char *, const char *);
    if (!real) real = dlsym(RTLD_NEXT, "rename");
    return note('r'), real(a, b);
}
"""


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path):
    """A crash of the machine would else leave a name of an empty file; and the name itself is flushed with its folder."""
    source, library = tmp_path / "order.c", tmp_path / "order.so"
    source.write_text(ORDER)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    code = """if True:
        import ctypes, sys, pyllmc
        pyllmc.Model(pyllmc.GPTConfig(37, 6, 2, 2, 8), B=1, T=4).save(sys.argv[1])
        order = ctypes.CDLL(sys.argv[2]).order
        order.restype = ctypes.c_char_p
        print(order().decode())"""
    command = [sys.executable, "-c", code, tmp_path / "m.ckpt", library]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, **preloading(library)},
    )
    assert done.stdout.strip().endswith("wfrd")
