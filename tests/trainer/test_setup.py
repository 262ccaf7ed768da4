"""What a start settles and says before its first step."""

import dataclasses
import http.server
import json
import pathlib
import threading

import jax
import pytest

from sspo_jax.config import EvaluationConfig, RolloutConfig, ServerConfig, UpdateConfig
from sspo_jax.data.sources import JsonlData, MixtureData
from sspo_jax.data.tokenizer import load_tokenizer
from sspo_jax.losses import Grpo
from sspo_jax.models.hf.hub import model_digest
from sspo_jax.models.hf.save import save_qwen
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.qwen import init_qwen
from sspo_jax.runs.display import Display
from sspo_jax.sampler import SamplingParams
from sspo_jax.serving import ServerError
from sspo_jax.sharding import MeshConfig, RolloutMeshConfig, axes_of
from sspo_jax.trainer import train
from sspo_jax.trainer.overview import show_plan
from sspo_jax.trainer.rollout_engine import check_server, open_engine
from sspo_jax.trainer.setup import RunInputs, check
from tests.trainer.conftest import one_device, small

PLAIN = small(warm_start=None)


@pytest.fixture(scope="module")
def inputs(cache: pathlib.Path) -> RunInputs:
    with one_device():
        return check(PLAIN)


def test_a_file_of_problems_that_is_not_there_is_noticed_before_the_model_is_looked_for(tmp_path: pathlib.Path):
    model = dataclasses.replace(PLAIN.model, path="Owner/is-not-fetched", shape=None)
    absent = JsonlData(path=str(tmp_path / "absent.jsonl"))
    mixture = MixtureData(parts=(PLAIN.data, absent))  # type: ignore[arg-type]
    for changes in ({"data": absent}, {"data": mixture}, {"evaluation": EvaluationConfig(data=(absent,))}):
        with pytest.raises(FileNotFoundError, match=r"absent\.jsonl: no such file"):
            check(dataclasses.replace(PLAIN, model=model, **changes))


def test_a_run_from_a_checkpoint_has_the_digest_of_its_weights(tmp_path: pathlib.Path):
    """With all weights trained as with adapters; random weights have none."""
    shape = PLAIN.model.shape
    assert shape is not None
    path = tmp_path / "model"
    digests: set[str] = set()
    for key in (0, 1):
        params = init_qwen(shape, jax.random.key(key))
        save_qwen(path, params, shape, dtype="float32", tokenizer=load_tokenizer("tiny"), overwrite=True)
        model = dataclasses.replace(PLAIN.model, path=str(path), shape=None, tokenizer=None)
        with one_device():
            found = check(dataclasses.replace(PLAIN, model=model)).provenance
        assert found["model"] == {str(path): model_digest(path)}
        digests |= set(found["model"].values())
    assert len(digests) == 2


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> pathlib.Path:
    """A checkpoint of the shape of the small experiment."""
    shape = PLAIN.model.shape
    assert shape is not None
    path = tmp_path_factory.mktemp("reference") / "model"
    save_qwen(path, init_qwen(shape, jax.random.key(7)), shape, dtype="float32", tokenizer=load_tokenizer("tiny"))
    return path


KL = dataclasses.replace(PLAIN.loss, kl_coefficient=0.1)


def test_the_reference_policy_is_a_checkpoint_of_the_same_shape_that_is_read(reference: pathlib.Path):
    with one_device():
        found = check(small(warm_start=None, loss=KL, model__reference=str(reference)))
        assert found.reference_path == reference
        assert found.provenance["reference"] == {str(reference): model_digest(reference)}
        with pytest.raises(ValueError, match=r"kl-coefficient is 0, so nothing reads it"):
            check(small(warm_start=None, model__reference=str(reference)))
        with pytest.raises(ValueError, match=r"with adapters the reference policy is the weights without them"):
            check(small(warm_start=None, loss=KL, model__reference=str(reference), model__lora=LoraConfig(rank=2)))
        wider = dataclasses.replace(PLAIN.model.shape, rope_theta=5e5)
        with pytest.raises(ValueError, match=r"rope_theta = 1000000.0, the policy 500000.0; expected a model of the s"):
            check(small(warm_start=None, loss=KL, model__reference=str(reference), model__shape=wider))


@pytest.mark.slow
def test_the_kl_is_to_the_checkpoint(reference: pathlib.Path, tmp_path: pathlib.Path):
    """At the first update the policy is where it started: its KL to itself is 0, to other weights it is not."""
    found = {}
    for name, path in {"own": None, "other": str(reference)}.items():
        config = small(warm_start=None, loss=KL, model__reference=path, steps=1, run_dir=str(tmp_path / name))
        with one_device():
            train(dataclasses.replace(config, evaluation=EvaluationConfig(), update=UpdateConfig(per_rollout=1)))
        found[name] = json.loads((tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8"))["loss/kl"]
    assert found["own"] == 0
    assert found["other"] > 1e-3


def test_the_norm_of_an_objective_is_the_budget_of_its_run():
    config = dataclasses.replace(PLAIN, loss=Grpo.dr_grpo())
    objective = config.objective(512)
    assert isinstance(objective, Grpo)
    assert objective.norm_length == config.rollout.max_new_tokens == 16


class Said(Display):
    """Keeps the lines."""

    def __init__(self) -> None:
        super().__init__(quiet=True, silent=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize(("changes", "warnings"), [({}, 0), ({"top_p": 0.9}, 1), ({"top_k": 5}, 1)])
def test_truncated_sampling_is_warned_of_at_the_start(inputs: RunInputs, changes: dict, warnings: int):
    display = Said()
    show_plan(
        display,
        inputs,
        title="small",
        rollout=dataclasses.replace(PLAIN.rollout, **changes),
        update=PLAIN.update,
        row_tokens=PLAIN.row_tokens,
        lora=None,
        has_warm_start=False,
        path=pathlib.Path("run"),
    )
    assert sum("sampled from another policy" in line for line in display.lines) == warnings


def test_the_server_of_a_run_is_shown_the_key_of_the_environment(
    inputs: RunInputs, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    shown: list[str | None] = []

    class Closed(http.server.BaseHTTPRequestHandler):
        """Lets nobody in, and keeps the keys that were shown."""

        def do_GET(self) -> None:
            shown.append(self.headers["Authorization"])
            self.send_error(401)

        def log_message(self, format: str, *args: object) -> None:
            pass

    door = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Closed)
    threading.Thread(target=door.serve_forever, daemon=True).start()
    server = ServerConfig(url=f"http://127.0.0.1:{door.server_address[1]}", patience_seconds=1.0)
    other = dataclasses.replace(server, api_key_variable="ANOTHER_KEY")
    monkeypatch.setenv("SSPO_API_KEY", "k3y")
    monkeypatch.setenv("ANOTHER_KEY", "0ther")

    def with_server(server: ServerConfig) -> RolloutConfig:
        return dataclasses.replace(PLAIN.rollout, server=server)

    def ask(server: ServerConfig) -> None:
        rollout = with_server(server)
        with pytest.raises(ServerError, match="401"):
            check_server(rollout, inputs.model, (), longest_response=16)
        with pytest.raises(ServerError, match="401"):
            open_engine(rollout, inputs.model, inputs.mesh, tmp_path).generate(
                [[5]], SamplingParams(max_new_tokens=4), seed=0
            )

    try:
        ask(server)
        ask(other)
        monkeypatch.delenv("SSPO_API_KEY")
        ask(server)
        monkeypatch.delenv("ANOTHER_KEY")
        with pytest.raises(ServerError, match="ANOTHER_KEY, which is not set"):
            open_engine(with_server(other), inputs.model, inputs.mesh, tmp_path)
    finally:
        door.shutdown()
        door.server_close()
    assert shown == ["Bearer k3y"] * 2 + ["Bearer 0ther"] * 2 + [None] * 2


def test_the_table_states_the_layout_for_decoding(tmp_path, capsys):
    """Eight devices whose memory is not known hold the weights whole; one has nothing to choose."""
    config = small(warm_start=None, mesh=MeshConfig(), update__micro_rows=8)
    chosen = check(config)
    assert axes_of(chosen.mesh) == {"fsdp": 8}
    assert axes_of(chosen.decoding.mesh) == {"data": 8}
    show_plan(
        Display(quiet=True), chosen, title="t", rollout=config.rollout, update=config.update, row_tokens=64, lora=None,
        has_warm_start=False, path=tmp_path,
    )  # fmt: skip
    shown = " ".join(capsys.readouterr().out.split())
    assert "weights whole on every device; 16 slots over 8" in shown
    assert "counting 4 GiB a device" in shown
    with one_device():
        alone = check(small(warm_start=None, mesh__fsdp=1))
    assert alone.decoding.mesh is alone.mesh


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        ({"mesh": RolloutMeshConfig(data=3)}, "needs 3 devices, there are 8: change --rollout.mesh.data"),
        ({"mesh": RolloutMeshConfig(tensor=8)}, "--rollout.mesh.tensor"),
        ({"mesh": RolloutMeshConfig(), "server": ServerConfig()}, "samples elsewhere; expected one of them"),
    ],
    ids=["product", "heads", "server"],
)
def test_a_layout_for_decoding_that_cannot_be_is_refused_at_the_start(rollout, message):
    config = small(warm_start=None, mesh=MeshConfig(), update__micro_rows=8)
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, **rollout)))
