"""What make cannot do is one clear line."""

from __future__ import annotations

import subprocess

from conftest import ROOT


def test_no_compiler_is_one_clear_line():
    make = subprocess.run(
        ["make", "-C", str(ROOT), "BUILD=build/none", "CC=no-such-compiler"], capture_output=True, text=True
    )
    assert make.returncode == 2
    assert "no-such-compiler" in make.stderr
    assert "install" in make.stderr
    for target in ("help", "clean"):
        make = subprocess.run(
            [
                "make",
                "-C",
                str(ROOT),
                target,
                "BUILD=build/none",
                "CC=no-such-compiler",
                *["-n"] * (target == "clean"),
            ],
            capture_output=True,
            text=True,
        )
        assert (make.returncode, make.stderr) == (0, "")


def test_no_blas_is_one_clear_line():
    command = ["make", "-C", str(ROOT), "BUILD=build/none", "BLAS=nosuchblas", "Q="]
    make = subprocess.run(command, capture_output=True, text=True)
    assert make.returncode == 2
    (line,) = (line for line in make.stderr.splitlines() if "***" not in line)
    assert "no library nosuchblas" in line and "apt-get install libnosuchblas-dev" in line


def test_an_old_python_is_one_clear_line(tmp_path):
    old = tmp_path / "python"
    old.write_text(
        "#!/bin/sh\nexit 1\n"
    )  # ends as `python -c 'sys.exit(sys.version_info < (3, 9))'` does on an old Python
    old.chmod(0o755)
    make = subprocess.run(
        ["make", "-C", str(ROOT), "-n", "-B", ".venv/bin/python", f"PYTHON={old}"],
        capture_output=True,
        text=True,
    )
    assert "pyllmc needs Python >= 3.9" in make.stdout + make.stderr
