"""The Slurm script and the SkyPilot file, against programs that record how they are called."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
SECRETS = {"HF_TOKEN": "hf_s3cret", "WANDB_API_KEY": "k3y-s3cret", "HF_HOME": "/mnt/hf"}
SRUN = '#!/bin/bash\necho "srun $*" >> "$CALLS"\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
SCONTROL = '#!/bin/bash\necho "scontrol $*" >> "$CALLS"\n'
PYTHON = (
    '#!/bin/bash\necho "python $* HF_TOKEN=${HF_TOKEN-none} WANDB_API_KEY=${WANDB_API_KEY-none}" >> "$CALLS"\n'
    'if [[ ${COMPLETE:-} ]]; then mkdir -p run && echo "{}" > run/summary.json; fi\nexit "${CODE:-0}"\n'
)


class Cluster:
    """A checkout with fake programs; `calls` are what they were called with."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        for path in ("slurm/train.sh", "handed_on.sh", "sky/train.yaml"):
            (folder / "scripts" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(SCRIPTS / path, folder / "scripts" / path)
        for name, text in {
            "bin/srun": SRUN,
            "bin/scontrol": SCONTROL,
            ".venv/bin/python": PYTHON,
            ".venv/bin/sspo": PYTHON.replace("python $*", "sspo $*"),
        }.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "HF_", "WANDB"))}
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**own, "PATH": path, "CALLS": str(self.folder / "calls"), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def sbatch(self, *words: str, **environment: str) -> subprocess.CompletedProcess:
        job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(self.folder), "SLURM_GPUS_ON_NODE": "8"}
        return self.run("scripts/slurm/train.sh", *words, **job, **environment)

    @property
    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize("script", ["slurm/train.sh", "handed_on.sh"])
def test_shellcheck(script: str):
    program = pathlib.Path(sys.executable).parent / "shellcheck"
    result = subprocess.run([program, "-x", SCRIPTS / script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout


def test_slurm_trains_on_one_node_with_one_process_and_says_what_comes_next(cluster: Cluster):
    result = cluster.sbatch("exp", "--run-dir", "run", COMPLETE="1", **SECRETS)
    assert result.returncode == 0, result.stderr
    assert cluster.calls == [
        "srun --ntasks=1 --kill-on-bad-exit=1 .venv/bin/python -m sspo_jax train exp --run-dir run",
        "python -m sspo_jax train exp --run-dir run HF_TOKEN=hf_s3cret WANDB_API_KEY=k3y-s3cret",
    ]
    assert "handed on: HF_TOKEN HF_HOME WANDB_API_KEY" in result.stdout
    assert "s3cret" not in result.stdout + result.stderr
    assert "complete. Next: .venv/bin/sspo evaluate --model run" in result.stdout


def test_slurm_starts_a_process_for_each_gpu_of_several_nodes(cluster: Cluster):
    cluster.sbatch("exp", "--run-dir=run", COMPLETE="1", SLURM_JOB_NUM_NODES="2")
    assert cluster.calls[0].startswith("srun --ntasks=16 ")


@pytest.mark.parametrize("code", ["0", "75", "143"])
def test_a_run_that_was_stopped_goes_back_into_the_queue(cluster: Cluster, code: str):
    assert cluster.sbatch("exp", "--run-dir", "run", CODE=code).returncode == 0
    assert cluster.calls[-1] == "scontrol requeue 7"


def test_a_run_that_failed_does_not(cluster: Cluster):
    result = cluster.sbatch("exp", "--run-dir", "run", CODE="1")
    assert result.returncode == 1
    assert "the run ended with code 1" in result.stderr
    often = cluster.sbatch("exp", "--run-dir", "run", SLURM_RESTART_COUNT="20")
    assert "back in the queue 20 times already" in often.stderr
    assert not any(call.startswith("scontrol") for call in cluster.calls)


def test_slurm_says_what_is_missing(cluster: Cluster):
    assert "no --run-dir: the job must find its run again" in cluster.sbatch("exp").stderr
    assert "no experiment, expected sbatch [" in cluster.sbatch().stderr
    assert "this is no Slurm job: sbatch" in cluster.run("scripts/slurm/train.sh", "exp").stderr
    assert cluster.sbatch("--help").stdout.startswith("sbatch [--nodes N")
    shutil.rmtree(cluster.folder / ".venv")
    assert "nothing is installed: make install" in cluster.sbatch("exp", "--run-dir", "run").stderr
    assert cluster.calls == []


def sky() -> dict:
    return yaml.safe_load((SCRIPTS / "sky" / "train.yaml").read_text(encoding="utf-8"))


def test_the_sky_file_has_no_other_fields_than_skypilot_knows():
    known = {"name", "resources", "num_nodes", "workdir", "envs", "secrets", "file_mounts", "setup", "run"}
    assert set(sky()) == known
    assert {"HF_TOKEN", "WANDB_API_KEY"} <= set(sky()["secrets"])
    assert not set(sky()["secrets"]) & set(sky()["envs"])


def test_sky_fetches_the_data_and_trains(cluster: Cluster):
    given = {**{name: str(value or "") for name, value in sky()["envs"].items()}, "ARGS": "--steps 5"}
    given |= dict.fromkeys(sky()["secrets"], "") | {"HF_TOKEN": "hf_s3cret"}
    result = cluster.run("bash", "-c", sky()["run"], **given)
    assert result.returncode == 0, result.stderr
    told = "HF_TOKEN=hf_s3cret WANDB_API_KEY=none"  # an empty key would make the tracker ask for one
    assert cluster.calls == [
        f"sspo data get eval math-lvl3to5 --out data {told}",
        "sspo train qwen25_math_1p5b_sspo --run-dir /runs/first --supervise "
        f"--data.path data/train/math_lvl3to5_8k.jsonl --steps 5 {told}",
    ]
    assert "s3cret" not in result.stdout + result.stderr
    (cluster.folder / "calls").unlink()
    cluster.run("bash", "-c", sky()["run"], **{**given, "DATA": "", "EVALUATION": "", "EXPERIMENT": "hello"})
    assert [call.split(" HF_")[0] for call in cluster.calls] == [
        "sspo train hello --run-dir /runs/first --supervise --steps 5"
    ]


@pytest.mark.parametrize("part", ["setup", "run"])
def test_the_commands_of_the_sky_file_are_sound(part: str):
    program = pathlib.Path(sys.executable).parent / "shellcheck"
    # Words are split on purpose: ARGS and EVALUATION are lists.
    result = subprocess.run(
        [program, "-s", "bash", "-e", "SC2086,SC2154", "-"],
        input=sky()[part],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout
