"""Per-token data of the updates of a step: the file, and its reader.

RUN/tokens/step_NNNNNN.npz holds a sample of the responses of one step, as the updates saw them (`numpy.load` reads it).
Texts are UTF-8, as bytes. R responses have T tokens together, E is the number of epochs (each response is in one update of every epoch).

| array | shape | what |
|---|---|---|
| `about` | JSON text | `version`, `step`, `objective`, `mean_entropy` (nats), and `responses`: for each `id`, `set`, `sample`, `problem`, `gold`, `status`, `reward`, and `chosen`, why it is in the sample (`spread` or `clipped`) |
| `lengths` | R | tokens of each response; those of the first come first in all arrays of T |
| `advantages` | R | one for each response |
| `updates` | E x R | number of the update in its step, from 1 |
| `tokens` | T | token ids |
| `texts`, `text_lengths` | text, T | the responses, and how many characters of them each token adds |
| `subsentences` | T | number of the subsentence in its response, from 0 |
| `sampler_logprobs`, `old_logprobs`, `entropies` | T | nats, at the start of the step |
| `logprobs` | E x T | nats, under the parameters that the update started from |
| `ratio`, `low`, `high`, `clipped` | E x T | ratio, its bounds and the clip of the run's objective: -1 low, 1 high, 2 dual, 0 not |
| `entropy_scale`, `length_scale` | T | g_k and l_k of SSPO, 1 elsewhere |
| `clipped_grpo`, `clipped_gspo`, `clipped_sspo` | E x T | what the published objectives would have clipped |
"""  # noqa: E501 (a table)

import dataclasses
import io
import json
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sspo_jax.files import to_json

VERSION = 1
_OF_TOKENS = ("tokens", "text_lengths", "subsentences", "sampler_logprobs", "old_logprobs", "entropies")
_OF_EPOCHS = ("logprobs", "ratio", "low", "high", "clipped", "clipped_grpo", "clipped_gspo", "clipped_sspo")
_SCALES = ("entropy_scale", "length_scale")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggedResponse:
    """One response of a step, token by token; E epochs, T tokens."""

    about: Mapping[str, Any]  # id, set, sample, problem, gold, status, reward, chosen
    advantage: float
    updates: Int[np.ndarray, " epochs"]  # from 1
    pieces: tuple[str, ...]  # the text, cut into tokens
    arrays: Mapping[str, np.ndarray]  # of tokens and of epochs, by the names above

    @property
    def text(self) -> str:
        """The response, control tokens included."""
        return "".join(self.pieces)

    def subsentences(self, epoch: int = 0) -> list["Subsentence"]:
        """The clauses in order, with what the update of this epoch did to each."""
        ids = self.arrays["subsentences"]
        starts = np.flatnonzero(np.diff(ids, prepend=ids[:1] - 1))
        return [
            self._subsentence(int(start), int(end), epoch)
            for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)
        ]

    def log_ratios(self, epoch: int = 0) -> Float[np.ndarray, " tokens"]:
        """Of each token, nats."""
        return self.arrays["logprobs"][epoch].astype(np.float64) - self.arrays["old_logprobs"]

    def _subsentence(self, start: int, end: int, epoch: int) -> "Subsentence":
        here, tokens = self.arrays, slice(start, end)
        codes = {name: here[f"clipped_{name}"][epoch, tokens] for name in ("grpo", "gspo", "sspo")}
        return Subsentence(
            start=start,
            end=end,
            text="".join(self.pieces[tokens]),
            log_ratio=float(self.log_ratios(epoch)[tokens].mean()),
            entropy=float(here["entropies"][tokens].mean(dtype=np.float64)),
            entropy_scale=float(here["entropy_scale"][start]),
            length_scale=float(here["length_scale"][start]),
            low=float(here["low"][epoch, start]),
            high=float(here["high"][epoch, start]),
            clipped=_side(here["clipped"][epoch, tokens]),
            clipped_tokens=int(np.count_nonzero(here["clipped"][epoch, tokens])),
            others={name: int(np.count_nonzero(values)) for name, values in codes.items()},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subsentence:
    """A clause of a response in one update."""

    start: int
    end: int
    text: str
    log_ratio: float
    """log s_k, nats: the mean of its tokens' log-ratios."""
    entropy: float
    """H_k, nats."""
    entropy_scale: float
    """g_k."""
    length_scale: float
    """l_k."""
    low: float
    """Lower bound of the ratio at its first token, for the run's own objective."""
    high: float
    """Upper bound."""
    clipped: str
    """low, high or dual; empty where the run's objective kept all of it."""
    clipped_tokens: int
    """How many of its tokens that objective clipped."""
    others: Mapping[str, int]
    """How many the published grpo, gspo and sspo would have clipped."""

    @property
    def tokens(self) -> int:
        """Length."""
        return self.end - self.start


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLog:
    """What a file holds."""

    step: int
    objective: str
    mean_entropy: float
    responses: tuple[LoggedResponse, ...]

    def to_bytes(self) -> bytes:
        """The file."""
        responses = self.responses
        about = {
            "version": VERSION,
            "step": self.step,
            "objective": self.objective,
            "mean_entropy": self.mean_entropy,
            "responses": [dict(response.about) for response in responses],
        }
        arrays = {
            name: np.concatenate([response.arrays[name] for response in responses], axis=-1)
            for name in (*_OF_TOKENS, *_OF_EPOCHS, *_SCALES)
        }
        arrays |= {
            "about": _encoded(to_json(about)),
            "lengths": np.array([len(response.pieces) for response in responses], np.int32),
            "advantages": np.array([response.advantage for response in responses], np.float32),
            "updates": np.stack([response.updates for response in responses], axis=1).astype(np.int32),
            "texts": _encoded("".join(response.text for response in responses)),
        }
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        return content.getvalue()


def read_token_log(file: pathlib.Path) -> TokenLog:
    """A file of RUN/tokens.

    Raises:
      ValueError: it is damaged, or of another version; names the file.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        about = json.loads(arrays.pop("about").tobytes())
        version = about["version"]
        if version == VERSION:
            return TokenLog(
                step=about["step"],
                objective=about["objective"],
                mean_entropy=float(about["mean_entropy"]),  # "NaN" is a number again
                responses=tuple(_responses(about["responses"], arrays)),
            )
    except (KeyError, TypeError, ValueError, EOFError, IndexError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file}: not a file of per-token data ({error}). Remove it: nothing else needs it") from None
    raise ValueError(
        f"{file}: per-token data of version {version}, expected {VERSION}: read it with the code that wrote it"
    )


def _responses(abouts: Sequence[Mapping[str, Any]], arrays: Mapping[str, np.ndarray]) -> list[LoggedResponse]:
    text, ends = arrays["texts"].tobytes().decode("utf-8"), np.cumsum(arrays["text_lengths"])
    starts = ends - arrays["text_lengths"]
    pieces = [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    found, begin = [], 0
    for row, (about, length) in enumerate(zip(abouts, arrays["lengths"].tolist(), strict=True)):
        end = begin + length
        found.append(
            LoggedResponse(
                about=about,
                advantage=float(arrays["advantages"][row]),
                updates=arrays["updates"][:, row],
                pieces=tuple(pieces[begin:end]),
                arrays={name: arrays[name][..., begin:end] for name in (*_OF_TOKENS, *_OF_EPOCHS, *_SCALES)},
            )
        )
        begin = end
    return found


def _encoded(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8"), np.uint8)


def _side(codes: Int[np.ndarray, " tokens"]) -> str:
    """Of most of the clipped tokens of a unit; all of them, where the unit is that of the objective."""
    names = {-1: "low", 1: "high", 2: "dual"}
    counts = {name: int((codes == code).sum()) for code, name in names.items()}
    most = max(counts, key=lambda name: counts[name])
    return most if counts[most] else ""
