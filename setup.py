"""What pyproject.toml cannot say: a wheel holds the C engine, which make builds.

Environment: CC, CFLAGS, OPT, BLAS, BUILD: as of make. PYLLMC_DEVICES: the engines to build, "cpu" by default; "cpu cuda"
needs nvcc. PYLLMC_DEVICES= builds none: a checkout in which make itself has built, or will.
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
# a GPU's stored element is part of its build
LIBRARIES = {name: [f"libpyllmc_{name}.so", f"libpyllmc_{name}_fp32.so"] for name in DEVICES} | {
    "cpu": ["libpyllmc.so"]
}
MISSING = "pyllmc's engine is compiled here, and there is no {}: apt-get install make gcc, or name a compiler: CC=clang pip install ..."
FAILED = "pyllmc's engine was not built: what make says stands above"


def asked_devices() -> list:
    """PYLLMC_DEVICES, checked."""
    asked = os.environ.get("PYLLMC_DEVICES", "cpu").replace(",", " ").split()
    for device in asked:
        if device not in LIBRARIES:
            raise ExecError(f"PYLLMC_DEVICES={device}: the devices are {', '.join(LIBRARIES)}")
    return asked


def check_tools() -> None:
    """Says what is missing before anything else is done or printed."""
    for tool in ("make", os.environ.get("CC", "cc").split()[0]) if asked_devices() else ():
        if not shutil.which(tool):
            raise ExecError(MISSING.format(tool))


def make(folder: Path, devices: list) -> None:
    """The libraries of these devices, and the tables that Python reads with them, in `folder`."""
    folder = Path(
        os.path.relpath(folder, HERE)
    )  # make takes no names with blanks, which the path to here may have
    targets = [str(folder / name) for device in devices for name in LIBRARIES[device]]
    if not targets:
        return
    # a make that has started pip must not pass its options and job slots on
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    try:
        subprocess.run(
            ["make", f"LIB={folder / 'libpyllmc.so'}", *targets], cwd=HERE, env=environment, check=True
        )
    except subprocess.CalledProcessError:
        raise ExecError(FAILED) from None


class BuildEngine(Command):
    """A step of `build`, by setuptools' protocol of sub-commands: an editable install has its engine in the checkout."""

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
        shutil.copy2(HERE / "train_gpt2.py", folder)  # what pyllmc.check compares with

    def get_source_files(self) -> list:
        return []  # MANIFEST.in lists them

    def get_outputs(self) -> list:
        return []

    def get_output_mapping(self) -> dict:
        return {}


class Build(build):
    """`build` with the engine; into an empty folder, so that a wheel holds nothing of an earlier version."""

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
    """One wheel for every Python of a platform: the library is no extension module and includes no Python.h."""

    def get_tag(self) -> tuple:
        return "py3", "none", super().get_tag()[2]


setup(distclass=Platform, cmdclass={"build": Build, "build_engine": BuildEngine, "bdist_wheel": Wheel})
