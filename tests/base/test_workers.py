"""Work spread over processes (pyllmc/base/workers.py): Ctrl-C, which a terminal sends to all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from conftest import ROOT

SLOW = "import time\ntime.sleep(1)\ndef double(x):\n    time.sleep(0.1)\n    return 2 * x\n"
COMMAND = """
import sys
from pyllmc.base.errors import begin_command, run_command
from pyllmc.base.workers import in_order

if __name__ == "__main__":
    begin_command()

from slow import double

def work():
    print("begins", flush=True)
    print(list(in_order(double, range(40), 3)))

if __name__ == "__main__":
    sys.exit(run_command("command", work))
"""


def start(folder) -> subprocess.Popen[str]:
    (folder / "slow.py").write_text(SLOW)
    (folder / "command.py").write_text(COMMAND)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    command = [sys.executable, str(folder / "command.py")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=env, text=True, start_new_session=True, **pipes)


def test_ctrl_c_while_workers_import_is_the_parents_alone(tmp_path):
    """Each worker imports for a second what its function needs; only then could it ignore the signal itself."""
    process = start(tmp_path)
    assert process.stdout.readline() == "begins\n"
    time.sleep(0.7)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in told, told


def test_workers_that_hear_no_ctrl_c_give_their_results(tmp_path):
    printed, told = start(tmp_path).communicate(timeout=60)
    assert printed == f"begins\n{[2 * i for i in range(40)]}\n" and not told
