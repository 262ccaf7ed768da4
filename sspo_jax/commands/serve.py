"""`sspo serve`: an OpenAI-compatible server for a checkpoint."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, Literal

from sspo_jax.models.hf.load import load_qwen
from sspo_jax.ranges import Count, Range
from sspo_jax.serving.limits import Limits


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serves a checkpoint over HTTP, OpenAI-compatible."""

    model: str
    """Directory of a Hugging Face checkpoint."""
    tokenizer: str | None = None
    """Directory of a tokenizer, or `tiny`; None: that of the checkpoint, if it has one (else token ids only)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation and of the weights in memory."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all. One that other machines reach needs a key."""
    port: Annotated[int, Range(0, 65535)] = 8000
    """Port to listen on; 0 takes a free one and prints it."""
    api_key: str | None = None
    """Key that clients must send (Authorization: Bearer KEY). Other users of the machine can read a command line:
    prefer the environment variable SSPO_API_KEY."""
    allow_anonymous: bool = False
    """Listen without a key where other machines can reach the server."""
    reload_directory: str | None = None
    """Clients may have the server load weights from below this directory; None: not at all. A run that samples here
    needs it: its run directory, or its --rollout.server.export-directory."""
    slots: Count | None = None
    """Responses decoded at once; None: 64 on a CPU, 256 elsewhere."""
    max_tokens: Count = 4096
    """Most tokens of a response, where the model's positions allow them."""
    gather_seconds: Annotated[float, Range(0, 60)] = 0.005
    """How long the first request waits for others to be decoded with it."""
    limits: Limits = Limits()
    """Bounds of one request, of one client, and of all clients together."""

    def __post_init__(self) -> None:
        if self.reload_directory is not None and not pathlib.Path(self.reload_directory).is_dir():
            raise ValueError(f"--reload-directory is {self.reload_directory!r}, which is not a directory")


def main(arguments: Sequence[str]) -> int:
    """`sspo serve`."""
    from sspo_jax.commands.options import parse
    from sspo_jax.data.tokenizer import load_tokenizer
    from sspo_jax.serving.access import Gate, check_reachable, listen, server_key
    from sspo_jax.serving.http import Application, serve
    from sspo_jax.serving.service import CompletionService

    config: ServeConfig = parse(ServeConfig, arguments, prog="sspo serve")
    key = server_key(config.api_key)
    check_reachable(config.host, has_key=key is not None, allow_anonymous=config.allow_anonymous)
    with listen(config.host, config.port) as listener:  # before the weights are read: what connects waits
        directory = pathlib.Path(config.model)
        tokenizer = None
        if config.tokenizer or (directory / "tokenizer.json").is_file():
            tokenizer = load_tokenizer(config.tokenizer or config.model)
        params, model = load_qwen(directory, dtype=config.dtype, param_dtype=config.dtype)
        service = CompletionService(
            params,
            model,
            tokenizer=tokenizer,
            name=directory.name or directory.resolve().name,
            path=str(directory.resolve()),
            slots=config.slots,
            max_tokens=config.max_tokens,
            gather_seconds=config.gather_seconds,
            limits=config.limits,
            reload_directory=config.reload_directory,
        )
        del params  # the service lets go of what it has converted
        _allow_files(config.limits.connections)
        host = f"[{config.host}]" if ":" in config.host else config.host
        print(f"serving {config.model} at http://{host}:{listener.getsockname()[1]}/v1", flush=True)
        try:
            serve(Application(service, Gate(key)), listener, config.limits)
        finally:
            service.close()
    return 0


def _allow_files(connections: int) -> None:
    """Lets the process have that many connections open, as far as the system allows it."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = connections + 256
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard) if hard >= 0 else wanted, hard))
