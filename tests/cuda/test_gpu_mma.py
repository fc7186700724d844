"""The tensor core's bits are judged by the exact sums, and compared one by one."""

from __future__ import annotations

import gpu_mma
import numpy as np
import pytest


@pytest.mark.parametrize("kind", range(len(gpu_mma.KINDS)))
def test_mma_s_judge_sees_a_wrong_product(kind):
    """One product is left out; or a NaN or infinity stands where none belongs."""
    given = gpu_mma.cases(4)
    sums, sizes = gpu_mma.exact(given)
    with np.errstate(all="ignore"):
        d = sums.astype(np.float32).view(np.uint32)
    assert all(row["ok"] for row in gpu_mma.judge(given, d).values())
    held = (
        (given["kind"] == kind)[:, None, None] & (sizes < 2.0**127) & (sizes > 2.0**-130) & np.isfinite(sums)
    )
    at = tuple(np.argwhere(held)[0])
    for value in (sums[at] + sizes[at] * 2.0**-10, np.nan, np.inf):
        broken = d.copy()
        broken[at] = np.float32(value).view(np.uint32)
        assert [name for name, row in gpu_mma.judge(given, broken).items() if not row["ok"]] == [
            gpu_mma.KINDS[kind]
        ]


def test_comparing_bits_counts_each_difference():
    given = {**gpu_mma.cases(1)}
    with np.errstate(all="ignore"):
        d = gpu_mma.exact(given)[0].astype(np.float32).view(np.uint32)
    other = d.copy()
    other[0, 0, 0] ^= np.uint32(1)
    other[1, 0, 0] = np.float32(np.nan).view(np.uint32)
    found = gpu_mma.compare(given, d, other)
    assert found["normal"]["same_bits"] == 127 / 128 and 0 < found["normal"]["apart"] < 1e-6
    assert found["wide"]["specials"] == 1 and found["cancelling"]["same_bits"] == 1


@pytest.mark.parametrize("content", [None, b"no archive", b"PK\x03\x04", "an array", "another archive"])
def test_a_file_without_cases_is_one_line(tmp_path, content):
    path = tmp_path / "kept.npz"
    if content == "an array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    elif content == "another archive":
        np.savez(path, a=np.zeros(3))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit, match="kept.npz is no file of mma's cases") as end:
        gpu_mma.main([str(path)])
    assert str(end.value).count("\n") == 0


@pytest.mark.parametrize("words, code", [(["--help"], 0), ([], 2), (["a.npz", "b.npz"], 2)])
def test_the_command_tells_its_use(capsys, words, code):
    with pytest.raises(SystemExit) as end:
        gpu_mma.main(words)
    assert end.value.code == code and "FILE.npz" in "".join(capsys.readouterr())
