"""The place of this package: in a checkout, beside the whole source, or installed alone."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def is_checkout() -> bool:
    return (PACKAGE.parent / "Makefile").exists()
