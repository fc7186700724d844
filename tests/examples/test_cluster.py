"""The files of examples/cluster: they are well formed, their commands are understood, and these run on loopback."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from pyllmc.engine import _ffi
from pyllmc.trainer import Options

yaml = pytest.importorskip("yaml")
run = pytest.importorskip("torch.distributed.run")

FOLDER = ROOT / "examples/cluster"
SMALL = (
    "--n_layer=1 --n_head=2 --n_embd=16 --max_seq_len=16 --vocab_size=64 --B=2 --T=16 --threads=1 "
    "--val_every=0 --sample_every=0 --log_every=1 --max_steps="
).split()  # fmt: skip


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def of_kind(kind: str) -> dict:
    return next(document for document in documents("kubernetes.yaml") if document["kind"] == kind)


def pod() -> dict:
    return of_kind("Job")["spec"]["template"]["spec"]


def services() -> dict[str, dict]:
    return documents("compose.yaml")[0]["services"]


def slurm_machine(folder: Path, nodes: int) -> dict[str, str]:
    """An environment as Slurm gives it to a job, and programs that stand for its own: srun starts a task for each machine, and
    scontrol names so many that it is still writing when the first has been read."""
    for name, text in (
        ("scontrol", '[ "$*" = "show hostnames a[0-1]" ] && echo localhost && seq -f "machine-%g" 20000'),
        ("srun", 'for i in $(seq "$SLURM_NNODES"); do SLURM_PROCID=$((i - 1)) "$@" & done; status=0\n'
                 'for job in $(jobs -p); do wait "$job" || status=$?; done; exit $status'),
    ):  # fmt: skip
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    job = {
        "SLURM_NNODES": str(nodes),
        "SLURM_JOB_NODELIST": "a[0-1]",
        "SLURM_JOB_ID": str(free_job()),
    }
    return {**os.environ, **job, "PATH": path, "PYTHONPATH": str(ROOT)}


def slurm_command(folder: Path, *words: str, **variables: str) -> list[str]:
    """The command that the script starts on each machine."""
    (folder / "torchrun").write_text('#!/bin/bash\nprintf "%s\\n" torchrun "$@"\n')
    (folder / "torchrun").chmod(0o755)
    environment = {**slurm_machine(folder, 1), **variables}
    return subprocess.run(
        ["bash", str(FOLDER / "slurm.sh"), *words], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()  # fmt: skip


def commands(folder: Path) -> Iterator[tuple[str, list[str]]]:
    yield "slurm", slurm_command(folder)
    yield "kubernetes", pod()["containers"][0]["command"]
    yield "compose", services()["node-0"]["command"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def free_job() -> int:
    """A number of a job whose port, by the script's rule, nobody has."""
    for job in range(os.getpid() % 10_000, 20_000):
        with socket.socket() as tried:
            if tried.connect_ex(("localhost", 20_000 + job)):
                return job
    raise AssertionError("every port is taken")


# ---- form ----


def test_the_script_is_one_that_bash_takes():
    path = FOLDER / "slurm.sh"
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert os.access(path, os.X_OK)
    lines = path.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    slurms = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert slurms and max(slurms) < first_command, "Slurm reads its options up to the first command only"
    assert all(
        line.startswith("#SBATCH --") and " " not in line[8:].strip() for line in (lines[i] for i in slurms)
    )


def test_every_variable_of_the_script_is_quoted():
    """An unquoted variable breaks with a path that holds a blank."""
    code = [line for line in (FOLDER / "slurm.sh").read_text().splitlines() if not line.startswith("#")]
    for line in code:
        bare = re.sub(r'"[^"]*"', "", line.split(" # ")[0])
        assert not re.search(r"\$(?!\()", re.sub(r"^\w+=\S+|\$\(\(.*?\)\)", "", bare)), line


def test_a_path_with_a_blank_reaches_the_training(tmp_path):
    told = slurm_command(tmp_path, "--lr=1e-3", DATA="my data", OUT="my runs/a")
    assert told[-5:] == ["--data=my data", "--model=d12", "--out=my runs/a", "--resume=auto", "--lr=1e-3"]


def test_the_commands_are_the_same_but_for_the_place(tmp_path):
    """Each is the one that the docs give: torchrun's own options, then training's."""
    for name, words in commands(tmp_path):
        parsed = run.get_args_parser().parse_args(words[1:])
        assert (words[0], parsed.module, parsed.training_script) == ("torchrun", True, "pyllmc.train"), name
        assert (parsed.nproc_per_node, parsed.rdzv_backend) == ("1", "c10d") and ":" in parsed.rdzv_endpoint
        options = parsed.training_script_args
        assert [option.partition("=")[0] for option in options] == [
            "--data",
            "--model",
            "--out",
            "--resume",
        ], name
        checked = Options(_ffi.load())
        assert (
            checked.parse(options) == "" and checked.get("model") == "d12" and checked.get("resume") == "auto"
        )


def test_pods_find_each_other():
    job, service = of_kind("Job"), of_kind("Service")
    assert job["spec"]["completionMode"] == "Indexed", "else pods have no stable names"
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod()["subdomain"] == service["metadata"]["name"]
    parsed = run.get_args_parser().parse_args(pod()["containers"][0]["command"][1:])
    host = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert parsed.rdzv_endpoint.split(":")[0] == host
    assert int(parsed.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]


def test_pods_share_one_disk():
    claim = of_kind("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert pod()["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (container,) = pod()["containers"]
    assert [m["name"] for m in container["volumeMounts"]] == [v["name"] for v in pod()["volumes"]]
    assert container["workingDir"] == container["volumeMounts"][0]["mountPath"]


def test_containers_differ_by_their_names_only():
    parsed = run.get_args_parser().parse_args(services()["node-0"]["command"][1:])
    assert int(parsed.nnodes) == len(services())
    assert parsed.rdzv_endpoint.split(":")[0] in services()
    for name, service in services().items():
        assert service["hostname"] == name
        assert {**service, "hostname": ""} == {**services()["node-0"], "hostname": ""}
        built = (FOLDER / service["build"]["context"]).resolve()
        assert built == ROOT and (built / service["build"]["dockerfile"]).exists()


def test_the_image_has_what_the_build_needs():
    """The file is in the form that docker reads, and names only folders that a build does not need."""
    lines = [line for line in (FOLDER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    assert [line.split()[0] for line in whole] == ["FROM", "RUN", "COPY", "RUN", "WORKDIR"]
    left_out = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()[1:]
    assert {"data", "runs"} <= set(left_out) and not {"csrc", "cuda", "pyllmc", "Makefile", "setup.py"} & set(
        left_out
    )


# ---- on loopback ----

PATIENCE = 600  # seconds; on a busy machine torch alone takes a minute to begin


def here(words: list[str], nodes: int, endpoint: str) -> list[str]:
    """The command for so many processes that meet on this machine."""
    changed = {"--nnodes": str(nodes), "--rdzv_endpoint": endpoint}
    return [
        f"{w.partition('=')[0]}={changed.get(w.partition('=')[0], w.partition('=')[2])}" if "=" in w else w
        for w in words
    ]


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def together(command: list[str], n: int) -> tuple[list[int], list[str]]:
    """Runs n copies of a command at once; returns their exit codes and what they print. None outlives the test."""
    how = {"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(command, **how) for _ in range(n)]
    try:
        said = [process.communicate(timeout=PATIENCE)[0] for process in processes]
        return [process.returncode for process in processes], said
    finally:
        for process in processes:
            process.terminate()  # torchrun ends what it has started


def check_run(out: Path, steps: int) -> None:
    assert (out / "last.ckpt").exists()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == steps


def test_the_command_runs_on_loopback(data, tmp_path):
    """Twice: the second time it goes on with the run. On this machine the commands of pods and containers are one."""
    words, other = pod()["containers"][0]["command"], services()["node-0"]["command"]
    assert here(words, 2, "localhost:1") == here(other, 2, "localhost:1")
    own = [f"--data={data}", f"--out={tmp_path / 'run'}"]
    for steps in (2, 4):
        command = [*here(words, 2, f"localhost:{free_port()}"), *own, *SMALL[:-1], f"{SMALL[-1]}{steps}"]
        codes, said = together(command, 2)
        assert codes == [0, 0], said
        check_run(tmp_path / "run", steps)


def test_the_script_runs_on_loopback(data, tmp_path):
    variables = {"DATA": str(data), "OUT": str(tmp_path / "run")}
    command = ["bash", str(FOLDER / "slurm.sh"), *SMALL[:-1], f"{SMALL[-1]}2"]
    machine = {**slurm_machine(tmp_path, 2), **variables}
    done = subprocess.run(command, env=machine, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    check_run(tmp_path / "run", 2)
