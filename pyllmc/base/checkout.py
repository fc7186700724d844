"""The place of this package: in a checkout, beside the whole source, or installed alone."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def of_source(path: str) -> Path:
    """Where a file or folder of the source lies: by its path in a checkout, by its name beside an installed library (setup.py)."""
    place = PACKAGE.parent / path
    return place if is_checkout() else PACKAGE / "lib" / place.name


def is_checkout() -> bool:
    return (PACKAGE.parent / "Makefile").exists()
