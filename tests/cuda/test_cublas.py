"""cuBLASLt is found where pip puts it, before the CUDA library is loaded; a user's own setting stays."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from pyllmc.base.errors import NoDevice
from pyllmc.engine import _ffi, cublas


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch):
    monkeypatch.setenv(cublas.VARIABLE, "")  # monkeypatch then takes back what a test sets
    monkeypatch.delenv(cublas.VARIABLE)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(cublas, "in_system", lambda: False)


def install(folder: Path, where: str, name: str) -> Path:
    path = folder / where / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    sys.path.append(str(folder))
    return path.resolve()


@pytest.mark.parametrize("name", cublas.NAMES)
@pytest.mark.parametrize("where", cublas.FOLDERS)
def test_it_is_found_in_packages(tmp_path, where, name):
    path = install(tmp_path, where, name)
    assert cublas.settle() == os.environ[cublas.VARIABLE] == str(path)


def test_the_first_place_and_the_newest_version_count(tmp_path):
    install(tmp_path / "a", "nvidia/cublas/lib", "libcublasLt.so.12")
    newest = install(tmp_path / "a", "nvidia/cu13/lib", "libcublasLt.so.13")
    install(tmp_path / "b", "nvidia/cu13/lib", "libcublasLt.so.13")
    assert cublas.settle() == str(newest)


def test_where_there_is_none_nothing_is_set():
    assert cublas.settle() == "" and cublas.VARIABLE not in os.environ


@pytest.mark.parametrize("setting", ["", "/some/where.so"])
def test_a_user_s_setting_stays(tmp_path, monkeypatch, setting):
    install(tmp_path, cublas.FOLDERS[0], cublas.NAMES[0])
    monkeypatch.setenv(cublas.VARIABLE, setting)
    assert cublas.settle() == os.environ[cublas.VARIABLE] == setting


def test_the_system_s_comes_first(tmp_path, monkeypatch):
    install(tmp_path, cublas.FOLDERS[0], cublas.NAMES[0])
    monkeypatch.setattr(cublas, "in_system", lambda: True)
    assert cublas.settle() == "" and cublas.VARIABLE not in os.environ


def test_it_is_settled_before_the_library_is_loaded(tmp_path, monkeypatch):
    path = install(tmp_path, cublas.FOLDERS[0], cublas.NAMES[0])
    (tmp_path / "none.so").touch()  # cannot be loaded
    monkeypatch.setenv("PYLLMC_LIB", str(tmp_path / "none.so"))
    with pytest.raises(NoDevice):
        _ffi._load.__wrapped__("cpu", "none.so")
    assert cublas.VARIABLE not in os.environ
    with pytest.raises(NoDevice):
        _ffi._load.__wrapped__("cuda", "none.so")
    assert os.environ[cublas.VARIABLE] == str(path)


def test_names_and_variable_are_the_library_s():
    source = (ROOT / "cuda/cublaslt.cu").read_text()
    assert f'getenv("{cublas.VARIABLE}")' in source
    listed = re.findall(r'"(libcublasLt\.so\.\d+)"', source)
    assert tuple(listed) == cublas.NAMES
