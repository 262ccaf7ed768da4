"""The TPU VM scripts against a gcloud that records its calls: quoting, waiting, retries, a host that fails."""

import contextlib
import json
import os
import pathlib
import pty
import shutil
import signal
import subprocess
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "tpu"
COMMANDS = ("create", "setup", "launch", "logs", "stop", "delete")

FAKE = """#!/usr/bin/env python3
import json, os, pathlib, shutil, subprocess, sys
here = pathlib.Path(os.environ["FAKE_DIR"])
with open(here / "calls.jsonl", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
arguments = sys.argv[1:]
if "describe" in arguments:
    if any("networkEndpoints" in argument for argument in arguments):
        print(os.environ.get("FAKE_HOSTS", "10.0.0.1"))
        sys.exit()
    states = here / ("queue-states" if "queued-resources" in arguments else "states")
    names = states.read_text().split()
    if len(names) > 1:
        states.write_text(" ".join(names[1:]))
    if names[0] in ("ABSENT", "OFFLINE"):
        print("NOT_FOUND: no such node" if names[0] == "ABSENT" else "connection timed out", file=sys.stderr)
        sys.exit(1)
    print(names[0])
if "scp" in arguments and os.environ.get("FAKE_RUN"):
    source, target = [a for a in arguments[arguments.index("scp") + 1 :] if a != "--recurse"][:2]
    for worker in range(len(os.environ.get("FAKE_HOSTS", "10.0.0.1").split(";"))):
        place = here / f"host-{worker}" / target.partition(":")[2]
        place.parent.mkdir(parents=True, exist_ok=True)
        if os.path.isdir(source):
            shutil.copytree(source, place / os.path.basename(source))
        else:
            shutil.copy(source, place)
if "ssh" in arguments:
    worker = arguments[arguments.index("--worker") + 1]
    failures = here / f"fail-{worker}"
    left = int(failures.read_text()) if failures.exists() else 0
    if left:
        failures.write_text(str(left - 1))
        print("ssh: connection reset", file=sys.stderr)
        sys.exit(255)
    if os.environ.get("FAKE_RUN"):
        home = here / f"host-{worker}"
        home.mkdir(exist_ok=True)
        done = subprocess.run(["bash", "-c", arguments[arguments.index("--command") + 1]], cwd=home).returncode
        if (here / f"break-{worker}").exists():  # it ran, but the connection broke before it could say so
            (here / f"break-{worker}").unlink()
            sys.exit(255)
        sys.exit(done)
"""


class Gcloud:
    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        (folder / "bin").mkdir()
        program = folder / "bin" / "gcloud"
        program.write_text(FAKE)
        program.chmod(0o755)
        (folder / "states").write_text("READY")
        (folder / "queue-states").write_text("ABSENT")
        (folder / "tpu.env").write_text(
            "TPU_NAME='my tpu'\nTPU_ZONE=us-west4-a\nTPU_TYPE=v5litepod-8\nTPU_RUNTIME=v2-alpha-tpuv5-lite\n"
            "TPU_RETRY_SECONDS=0\nTPU_POLL_SECONDS=0\nTPU_RETRIES=3\nTPU_CHECK_SECONDS=1\n"
        )

    def __call__(
        self, script: str, *arguments: str, settings: str = "", stdin: int = subprocess.DEVNULL, **environment: str
    ):
        file = self.folder / "tpu.env"
        if settings:
            file.write_text(file.read_text() + settings)
        return subprocess.run(
            [str(SCRIPTS / f"{script}.sh"), "--env", str(file), *arguments],
            env={
                **os.environ,
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "FAKE_DIR": str(self.folder),
                **environment,
            },
            stdin=stdin,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )

    @property
    def calls(self) -> list[list[str]]:
        file = self.folder / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def gcloud(tmp_path):
    return Gcloud(tmp_path)


@pytest.mark.parametrize("script", COMMANDS)
def test_help_and_dry_run_call_nothing(gcloud, script):
    shown = subprocess.run([str(SCRIPTS / f"{script}.sh"), "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert shown.stdout.startswith(f"{script}.sh [--dry-run]")
    result = gcloud(script, "--dry-run", "arithmetic_tiny") if script == "launch" else gcloud(script, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert r"gcloud compute tpus" in result.stdout
    assert r"my\ tpu" in result.stdout
    assert "on all hosts" not in result.stdout
    assert gcloud.calls == []


def test_shellcheck():
    beside_python = os.path.dirname(sys.executable)
    result = subprocess.run(
        [
            shutil.which("shellcheck", path=f"{beside_python}:{os.environ['PATH']}") or "shellcheck",
            "-x",
            *map(str, SCRIPTS.glob("*.sh")),
        ],
        capture_output=True,
        text=True,
        cwd=SCRIPTS,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", COMMANDS)
def test_missing_settings_are_named(tmp_path, script):
    def run(file: pathlib.Path) -> str:
        result = subprocess.run(
            [str(SCRIPTS / f"{script}.sh"), "--dry-run", "--env", str(file)], capture_output=True, text=True
        )
        assert result.returncode == 1
        return result.stderr

    assert "tpu.env.example" in run(tmp_path / "absent.env")
    (tmp_path / "half.env").write_text("TPU_NAME=a\nTPU_ZONE=b\nTPU_RUNTIME=c\n")
    assert "does not set TPU_TYPE" in run(tmp_path / "half.env")


@pytest.mark.parametrize("script", COMMANDS)
def test_unknown_options_are_errors(gcloud, script):
    for unknown, *before in (("--dryrun",), ("--dry_run", "--dry-run")):
        result = gcloud(script, *before, unknown)
        assert result.returncode == 1
        assert f"unknown option {unknown}, expected {script}.sh [--dry-run]" in result.stderr
    assert gcloud.calls == []


def test_words_too_many_are_errors(gcloud):
    assert "what is 'now'?" in gcloud("create", "now").stderr
    assert "what is '1'?" in gcloud("logs", "0", "1").stderr
    assert "unknown option --yes: this script asks nothing" in gcloud("stop", "--yes").stderr
    assert "--dry-run comes after the experiment" in gcloud("launch", "hello", "--dry-run").stderr
    assert gcloud.calls == []


def test_create_says_what_costs_and_asks(gcloud):
    (gcloud.folder / "states").write_text("ABSENT READY")
    refused = gcloud("create")
    assert refused.returncode == 1
    assert "This will cost money: TPU VM my tpu in us-west4-a" in refused.stdout
    assert "v5litepod-8, 8 chips, on demand" in refused.stdout
    assert "nobody is at a terminal to be asked: with --yes" in refused.stderr
    for answer, created in (("no", False), ("yes", True)):
        ours, theirs = pty.openpty()
        os.write(ours, answer.encode() + b"\n")
        (gcloud.folder / "states").write_text("ABSENT READY")
        result = gcloud("create", stdin=theirs, settings="TPU_TYPE=v5p-32\nTPU_SPOT=1\n")
        os.close(ours)
        os.close(theirs)
        assert "v5p-32, 16 chips, spot" in result.stdout
        assert bool([call for call in gcloud.calls if "create" in call]) == created
        assert result.returncode == (0 if created else 1), result.stderr


def test_create_waits_in_the_queue(gcloud):
    (gcloud.folder / "states").write_text("ABSENT CREATING READY")
    result = gcloud("create", "--yes", settings="TPU_QUEUED=1\nTPU_SPOT=1\nTPU_PROJECT=p\n")
    assert result.returncode == 0, result.stderr
    asked, first, *described = gcloud.calls
    assert asked[:4] == ["compute", "tpus", "queued-resources", "describe"]
    place = ["--zone", "us-west4-a", "--project", "p"]
    shape = ["--accelerator-type", "v5litepod-8", "--runtime-version", "v2-alpha-tpuv5-lite"]
    queued = ["compute", "tpus", "queued-resources", "create", "my tpu", "--node-id", "my tpu"]
    assert first == [*queued, *place, *shape, "--spot"]
    assert len([call for call in described if "--format=value(state)" in call]) == 3
    assert "costs until delete.sh" in result.stdout


def test_create_at_once_and_gives_up_in_time(gcloud):
    (gcloud.folder / "states").write_text("ABSENT CREATING")
    result = gcloud("create", "--yes", settings="TPU_QUEUED=0\nTPU_WAIT_SECONDS=1\nTPU_POLL_SECONDS=1\n")
    created = next(call for call in gcloud.calls if "create" in call)
    assert created[:4] == ["compute", "tpus", "tpu-vm", "create"]
    assert "--spot" not in created
    assert result.returncode == 1
    assert "is CREATING after 1 s" in result.stderr


def test_create_again_goes_on_waiting_and_asks_for_nothing(gcloud):
    (gcloud.folder / "states").write_text("ABSENT READY")
    (gcloud.folder / "queue-states").write_text("WAITING_FOR_RESOURCES")
    result = gcloud("create")
    assert result.returncode == 0, result.stderr
    assert "asked for already and is WAITING_FOR_RESOURCES" in result.stdout
    assert not [call for call in gcloud.calls if "create" in call]


@pytest.mark.parametrize(
    ("node", "queue"), [("ABSENT", "WAITING FAILED"), ("PREEMPTED", "ACTIVE"), ("ABSENT", "SUSPENDED")]
)
def test_create_does_not_wait_for_what_will_not_come(gcloud, node, queue):
    (gcloud.folder / "states").write_text(node)
    (gcloud.folder / "queue-states").write_text(queue)
    result = gcloud("create")
    assert result.returncode == 1
    assert "will not become ready: delete.sh, then create.sh again" in result.stderr


def test_setup_copies_the_checkout_and_installs_everywhere(gcloud):
    result = gcloud("setup", FAKE_HOSTS="10.0.0.1;10.0.0.2")
    assert result.returncode == 0, result.stderr
    copied = next(call for call in gcloud.calls if "scp" in call)
    assert copied[copied.index("scp") + 2] == "my tpu:sspo_jax.tar.gz"
    installed = [call for call in gcloud.calls if "ssh" in call]
    assert sorted(call[call.index("--worker") + 1] for call in installed) == ["0", "1"]
    assert "pip install -q -r requirements.txt -e '.[all,tpu]'" in installed[0][-1]


LIVING = "#!/bin/bash\ntrap 'echo x >> signals; sleep 1; echo saved > saved; exit' TERM\necho x >> starts\n"
FOREVER = "while true; do sleep 0.05; done\n"


def install(gcloud: Gcloud, program: str, hosts: int = 1) -> list[pathlib.Path]:
    """What setup.sh leaves on the hosts, with a program in the place of Python; returns their ~/sspo_jax."""
    folders = [gcloud.folder / f"host-{host}" / "sspo_jax" for host in range(hosts)]
    for folder in folders:
        python = folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(program)
        python.chmod(0o755)
    return folders


def end_runs(gcloud: Gcloud) -> None:
    for file in gcloud.folder.glob("host-*/sspo.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(file.read_text()), signal.SIGKILL)


def test_launch_keeps_the_words_of_the_command_line(gcloud):
    """Through this shell, gcloud and the host's shell; the fake runs the command for real, in two homes."""
    folders = install(gcloud, '#!/bin/bash\nprintf "<%s>" "$@" > words\n' + FOREVER, hosts=2)
    words = ["hello", "--data.path", "a b;$HOME'x'.jsonl", "--run-dir", "/mnt/*"]
    for folder in folders:
        (folder / words[2]).touch()
    added = ["--supervise=20", "--distributed.launcher", "auto"]
    result = gcloud("launch", *words, FAKE_HOSTS="10.0.0.1;10.0.0.2", FAKE_RUN="1")
    assert result.returncode == 0, result.stderr
    assert "started, and running on all hosts" in result.stdout
    for folder in folders:
        expected = "".join(f"<{word}>" for word in ["-m", "sspo_jax", "train", *words, *added])
        assert (folder / "words").read_text() == expected
    end_runs(gcloud)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("echo 'sspo: --steps is x, expected a number'; exit 2\n", "--steps is x, expected a number"),
        ("sleep 0.2; echo 'sspo: the run ended with code 1; restart 1 of 20 in 5 s'\n" + FOREVER, "restart 1 of 20"),
    ],
)
def test_a_run_that_dies_at_once_is_not_called_started(gcloud, program, said):
    install(gcloud, "#!/bin/bash\n" + program)
    result = gcloud("launch", "hello", FAKE_RUN="1", settings="TPU_CHECK_SECONDS=20\n")  # or until it has ended
    assert result.returncode == 1
    assert "the run has ended already" in result.stderr
    assert said in result.stderr
    assert "started, and running" not in result.stdout
    end_runs(gcloud)


@pytest.mark.slow
def test_data_and_model_are_carried_to_all_hosts_once(gcloud, tmp_path):
    folders = install(gcloud, '#!/bin/bash\nprintf "%s\\n" "$@" > words\n' + FOREVER, hosts=2)
    (tmp_path / "my model").mkdir()
    (tmp_path / "my model" / "config.json").write_text("{}")
    (tmp_path / "data.jsonl").write_text("a\n")
    words = ["hello", "--model.path", "my model", "--data.path=data.jsonl"]  # from where launch.sh is called
    for _ in range(2):
        result = gcloud("launch", *words, FAKE_HOSTS="10.0.0.1;10.0.0.2", FAKE_RUN="1")
        assert result.returncode == 0, result.stderr
        for folder in folders:
            given = (folder / "words").read_text().splitlines()
            model = given[given.index("--model.path") + 1]
            data = next(word for word in given if word.startswith("--data.path=")).partition("=")[2]
            assert (folder / model / "config.json").read_text() == "{}"
            assert (folder / data).read_text() == "a\n"
        assert gcloud("stop", FAKE_HOSTS="10.0.0.1;10.0.0.2", FAKE_RUN="1").returncode == 0
    assert len([call for call in gcloud.calls if "scp" in call]) == 2


def test_what_is_nowhere_is_named_before_anything_starts(gcloud):
    (folder,) = install(gcloud, LIVING + FOREVER)
    result = gcloud("launch", "hello", "--data.path", "/absent/file.jsonl", FAKE_RUN="1")
    assert result.returncode == 1
    assert "--data.path /absent/file.jsonl is neither here nor on all hosts: put it here, to be copied" in result.stderr
    assert not (folder / "starts").exists()
    hub = gcloud("launch", "hello", "--model.path", "Owner/a-model", FAKE_RUN="1")
    assert hub.returncode == 0, hub.stderr
    assert "taken for a name on the Hugging Face Hub" in hub.stderr
    end_runs(gcloud)


def test_secrets_reach_the_run_and_nothing_else(gcloud):
    program = '#!/bin/bash\necho "$HF_TOKEN,$HF_HOME,$WANDB_API_KEY" > got\n' + FOREVER
    folders = install(gcloud, program, hosts=2)
    secrets = {"HF_TOKEN": "hf_s3cret 'x'", "WANDB_API_KEY": "k3y", "HF_HOME": "/mnt/hf"}
    result = gcloud("launch", "hello", FAKE_HOSTS="10.0.0.1;10.0.0.2", FAKE_RUN="1", **secrets)
    assert result.returncode == 0, result.stderr
    assert "passing on HF_TOKEN HF_HOME WANDB_API_KEY" in result.stdout
    for folder in folders:
        assert (folder / "got").read_text() == "hf_s3cret 'x',/mnt/hf,k3y\n"
        assert not list(folder.parent.glob("sspo.environment*"))
    seen = json.dumps(gcloud.calls) + result.stdout + result.stderr
    assert "s3cret" not in seen
    assert "k3y" not in seen
    dry = gcloud("launch", "--dry-run", "hello", **secrets)
    assert "s3cret" not in dry.stdout + dry.stderr
    end_runs(gcloud)
    (folders[0].parent / "sspo.pid").unlink()
    shutil.rmtree(folders[0])  # not installed: the secrets do not stay there either
    assert gcloud("launch", "hello", FAKE_RUN="1", **secrets).returncode == 1
    assert not list(folders[0].parent.glob("sspo.environment*"))


@pytest.fixture
def running(gcloud):
    """A host on which a run is going on that takes a second to save, and counts the signals."""
    (folder,) = install(gcloud, LIVING + FOREVER)
    (gcloud.folder / "break-0").touch()
    result = gcloud("launch", "hello", FAKE_RUN="1")
    assert result.returncode == 0, result.stderr
    return folder


def test_a_connection_that_breaks_after_the_start_starts_no_second_run(gcloud, running):
    again = gcloud("launch", "hello", FAKE_RUN="1")
    assert again.returncode == 1
    assert "a run is going on: stop.sh first" in again.stderr
    assert "again in" not in again.stderr  # it will not get better by trying
    assert gcloud("stop", FAKE_RUN="1").returncode == 0
    assert (running / "starts").read_text() == "x\n"


def test_stop_waits_until_the_run_has_saved_and_sends_one_signal(gcloud, running):
    (gcloud.folder / "break-0").touch()
    result = gcloud("stop", FAKE_RUN="1")
    assert result.returncode == 0, result.stderr
    assert (running / "saved").exists()
    assert (running / "signals").read_text() == "x\n"
    assert gcloud("launch", "hello", FAKE_RUN="1").returncode == 0
    late = gcloud("stop", FAKE_RUN="1", settings="TPU_STOP_SECONDS=0\n")
    assert late.returncode == 1
    assert "the run has not ended yet" in late.stderr
    assert gcloud("stop", FAKE_RUN="1", settings="TPU_STOP_SECONDS=20\n").returncode == 0
    assert (running / "signals").read_text() == "x\nx\n"


def test_launch_before_setup_says_so(gcloud):
    result = gcloud("launch", "hello", FAKE_RUN="1")
    assert result.returncode == 1
    assert "setup.sh first" in result.stderr
    assert "attempt 1" not in result.stderr


def test_launch_knows_a_mistyped_experiment_before_a_host_is_asked(gcloud):
    result = gcloud("launch", "helo", FAKE_RUN="1")
    assert result.returncode == 1
    assert "no experiment helo: expected the path of a file, or one of arithmetic_tiny " in result.stderr
    assert " hello " in result.stderr
    assert "__init__" not in result.stderr


def test_launch_wants_an_experiment(gcloud):
    result = gcloud("launch")
    assert (result.returncode, gcloud.calls) == (1, [])
    assert "no experiment" in result.stderr


def test_a_connection_that_fails_is_tried_again(gcloud):
    (gcloud.folder / "fail-1").write_text("2")
    result = gcloud("stop", FAKE_HOSTS="10.0.0.1;10.0.0.2;10.0.0.3")
    assert result.returncode == 0, result.stderr
    tries = [call[call.index("--worker") + 1] for call in gcloud.calls if "ssh" in call]
    assert sorted(tries) == ["0", "1", "1", "1", "2"]


def test_a_host_that_stays_away_is_named(gcloud):
    (gcloud.folder / "fail-1").write_text("99")
    result = gcloud("stop", FAKE_HOSTS="10.0.0.1;10.0.0.2;10.0.0.3")
    assert result.returncode == 1
    assert "failed on host 1 of 3; the others are done" in result.stderr
    assert len([call for call in gcloud.calls if "ssh" in call]) == 2 + 3


def test_logs_of_a_host(gcloud):
    assert gcloud("logs", "2").returncode == 0
    assert gcloud.calls[-1][-4:] == ["--worker", "2", "--command", "tail -n 100 -F sspo.log"]
    assert "expected a number" in gcloud("logs", "two").stderr


def test_delete_asks_and_checks_that_it_is_gone(gcloud):
    refused = subprocess.run(
        [str(SCRIPTS / "delete.sh"), "--env", str(gcloud.folder / "tpu.env")],
        input="another\n", capture_output=True, text=True,
        env={**os.environ, "PATH": f"{gcloud.folder / 'bin'}:{os.environ['PATH']}", "FAKE_DIR": str(gcloud.folder)},
    )  # fmt: skip
    assert (refused.returncode, gcloud.calls) == (1, [])
    still = gcloud("delete", "--yes")
    assert still.returncode == 1
    assert "not known to be gone (READY): it costs" in still.stderr
    (gcloud.folder / "states").write_text("OFFLINE")  # gcloud cannot say: that is no sign that nothing costs
    assert "not known to be gone (UNKNOWN)" in gcloud("delete", "--yes").stderr
    (gcloud.folder / "states").write_text("ABSENT")
    (gcloud.folder / "queue-states").write_text("WAITING_FOR_RESOURCES")  # its turn would come
    assert "not known to be gone (WAITING_FOR_RESOURCES)" in gcloud("delete", "--yes").stderr
    assert gcloud("delete", "--yes", settings="TPU_QUEUED=0\n").returncode == 0
    assert gcloud.calls[-2][:5] == ["compute", "tpus", "tpu-vm", "delete", "my tpu"]
