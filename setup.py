"""Builds the C engine with make and puts it into the wheel, which pyproject.toml cannot say.

Environment: CC, CFLAGS, OPT, BLAS, BUILD: make's own. PYLLMC_DEVICES: the engines to build, "cpu" by default; "cpu cuda"
needs nvcc. PYLLMC_DEVICES= builds none, for a checkout in which make itself has built, or will.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.errors import ExecError

HERE = Path(__file__).resolve().parent
DEVICES = re.findall(r"^DEVICE\((\w+)", (HERE / "csrc/devices.def").read_text(encoding="utf-8"), re.M)
# a GPU has a library for each type of stored numbers, because the type is part of its build
LIBRARIES = {name: [f"libpyllmc_{name}.so", f"libpyllmc_{name}_fp32.so"] for name in DEVICES} | {
    "cpu": ["libpyllmc.so"]
}
# read by pyllmc.check, which compares with the first, and by pyllmc.plan
READ = ("train_gpt2.py", "csrc/cpu/isas.def", "bench/results")
MISSING = "pyllmc's engine is compiled here, and there is no {}: apt-get install make gcc, or name a compiler: CC=clang pip install ..."
FAILED = "pyllmc's engine was not built: what make says stands above"


def asked_devices() -> list:
    """The devices in PYLLMC_DEVICES. Raises ExecError for an unknown one."""
    asked = os.environ.get("PYLLMC_DEVICES", "cpu").replace(",", " ").split()
    for device in asked:
        if device not in LIBRARIES:
            raise ExecError(f"PYLLMC_DEVICES={device}: the devices are {', '.join(LIBRARIES)}")
    return asked


def check_tools() -> None:
    """Raises ExecError for a missing tool, before anything else is done or printed."""
    for tool in ("make", os.environ.get("CC", "cc").split()[0]) if asked_devices() else ():
        if not shutil.which(tool):
            raise ExecError(MISSING.format(tool))


def make(folder: Path, devices: list) -> None:
    """Builds the libraries of these devices, and the tables that Python reads with them, into `folder`."""
    folder = Path(
        os.path.relpath(folder, HERE)
    )  # relative, because make takes no blanks, and the path to here may have some
    targets = [str(folder / name) for device in devices for name in LIBRARIES[device]]
    if not targets:
        return
    # make's own variables are left out, because a make that has started pip must not pass on its options and job slots
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    try:
        subprocess.run(
            ["make", f"LIB={folder / 'libpyllmc.so'}", *targets], cwd=HERE, env=environment, check=True
        )
    except subprocess.CalledProcessError:
        raise ExecError(FAILED) from None


class BuildEngine(Command):
    """A step of `build`, as setuptools wants sub-commands. An editable install has its engine in the checkout."""

    description = "build the C engine with make"
    user_options: list = []
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        if self.editable_mode:
            make(HERE / "pyllmc" / "lib", asked_devices())
            return
        folder = Path(self.build_lib).resolve() / "pyllmc" / "lib"
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, asked_devices())
        for place in READ:
            copy = shutil.copytree if (HERE / place).is_dir() else shutil.copy2
            copy(HERE / place, folder / Path(place).name)

    def get_source_files(self) -> list:
        return []  # MANIFEST.in lists them

    def get_outputs(self) -> list:
        return []

    def get_output_mapping(self) -> dict:
        return {}


class Build(build):
    """`build` with the engine. It builds into an empty folder, so that a wheel holds nothing of an earlier version."""

    sub_commands = [*build.sub_commands, ("build_engine", None)]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_base = os.path.join("build", "wheel")

    def run(self) -> None:
        check_tools()
        shutil.rmtree(Path(self.build_base), ignore_errors=True)
        super().run()


class Platform(Distribution):
    """A package of one platform: it holds compiled code."""

    def has_ext_modules(self) -> bool:
        return True


class Wheel(bdist_wheel):
    """One wheel for every Python of a platform, because the library is no extension module and includes no Python.h."""

    def get_tag(self) -> tuple:
        return "py3", "none", super().get_tag()[2]


setup(distclass=Platform, cmdclass={"build": Build, "build_engine": BuildEngine, "bdist_wheel": Wheel})
