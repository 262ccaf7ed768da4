"""`sspo serve`: an OpenAI-compatible server for a checkpoint."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from sspo_jax.models.hf.load import load_qwen


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serves a checkpoint over HTTP, OpenAI-compatible."""

    model: str
    """Directory of a Hugging Face checkpoint."""
    tokenizer: str | None = None
    """Directory of a tokenizer, or `tiny`; none: that of the checkpoint, if it has one (else token ids only)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation and of the weights in memory."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all. There is no authentication."""
    port: int = 8000
    """Port to listen on; 0 takes a free one and prints it."""
    slots: int | None = None
    """Responses decoded at once; none: 64 on a CPU, 256 elsewhere."""
    max_tokens: int = 4096
    """Most tokens of a response, where the model's positions allow them."""
    gather_seconds: float = 0.005
    """How long the first request of a batch waits for others."""


def main(arguments: Sequence[str]) -> int:
    """`sspo serve`."""
    import pathlib

    from sspo_jax.commands.options import parse
    from sspo_jax.data.tokenizer import load_tokenizer
    from sspo_jax.serving.http import make_server
    from sspo_jax.serving.service import CompletionService

    config: ServeConfig = parse(ServeConfig, arguments, prog="sspo serve")
    directory = pathlib.Path(config.model)
    tokenizer = None
    if config.tokenizer or (directory / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(config.tokenizer or config.model)
    params, model = load_qwen(directory, dtype=config.dtype, param_dtype=config.dtype)
    service = CompletionService(
        params,
        model,
        tokenizer=tokenizer,
        name=directory.name,
        path=str(directory.resolve()),
        slots=config.slots,
        max_tokens=config.max_tokens,
        gather_seconds=config.gather_seconds,
    )
    del params  # the service lets go of what it has converted
    server = make_server(service, config.host, config.port)
    print(f"serving {config.model} at http://{config.host}:{server.server_address[1]}/v1", flush=True)
    try:
        server.serve_forever()
    finally:
        server.server_close()
    return 0
