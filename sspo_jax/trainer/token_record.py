"""What the updates of a step did to each token of a sample of its responses, for `runs.token_log`."""

import codecs
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from sspo_jax.runs.token_log import LoggedResponse, TokenLog
from sspo_jax.sharding import fetch
from sspo_jax.trainer.batch import assign_rows
from sspo_jax.trainer.grading import GradedRollout
from sspo_jax.types import Rollout, TrainBatch


class TokenRecord:
    """Keeps the log-probs of the updates of one step, on the devices, until `log` makes them a file.

    Args:
      count: responses of the sample. Half of them are spread over the step evenly, the others are those of which most
        was clipped.
    """

    def __init__(self, count: int):
        self._count = count
        self._logprobs: list[list[jax.Array]] = []

    def add(self, update: int, logprobs: jax.Array) -> None:
        """Of the next micro-batch of an update, numbered from 0."""
        while len(self._logprobs) <= update:
            self._logprobs.append([])
        self._logprobs[update].append(logprobs)

    def log(
        self,
        *,
        step: int,
        objective: str,
        per_token: Callable[[jax.Array, TrainBatch], dict[str, jax.Array]],
        minibatches: Sequence[Sequence[TrainBatch]],
        parts: Sequence[np.ndarray],
        share_prompts: bool,
        groups: GradedRollout,
        advantages: Float[np.ndarray, " batch"],
        pieces: Callable[[np.ndarray], tuple[str, ...]],
    ) -> TokenLog:
        """The sample; all processes call it together.

        Args:
          step, objective: for the reader.
          per_token: the compiled `losses.per_token` of the run's objective.
          minibatches: of the step, as the updates had them.
          parts: the responses of each.
          share_prompts: as they were packed.
          groups, advantages: of all responses.
          pieces: token ids to their texts.
        """
        count = len(minibatches)
        shared = [fetch([_shared(batch) for batch in batches]) for batches in minibatches]
        # [epoch][minibatch][micro-batch] -> arrays by name
        updates = [
            fetch(
                [
                    {**per_token(logprobs, batch), "logprobs": logprobs}
                    for logprobs, batch in zip(own, minibatches[number % count], strict=True)
                ]
            )
            for number, own in enumerate(self._logprobs)
        ]
        places = {}
        for minibatch, part in enumerate(parts):
            how = {"share_prompts": share_prompts, "advantages": advantages}
            for response, cell in _places(groups.rollout, part, shared[minibatch], **how).items():
                places[response] = (minibatch, cell)

        def read(response: int) -> dict[str, np.ndarray]:
            minibatch, (micro, row, tokens) = places[response]
            epochs = [each[micro] for each in updates[minibatch::count]]
            stacked = {name: np.stack([each[name][row, tokens] for each in epochs]) for name in epochs[0]}
            scales = {name: stacked.pop(name)[0] for name in ("entropy_scale", "length_scale")}
            return {name: values[row, tokens] for name, values in shared[minibatch][micro].items()} | stacked | scales

        chosen = self._choose(sorted(places), lambda response: _excess(read(response)))
        first = minibatches[0][0].mean_entropy if count else None
        return TokenLog(
            step=step,
            objective=objective,
            mean_entropy=float(np.asarray(fetch(first))) if first is not None else 0.0,
            responses=tuple(
                _response(
                    groups,
                    response,
                    why,
                    float(advantages[response]),
                    np.arange(places[response][0], len(updates), count) + 1,
                    pieces(groups.rollout.responses[response]),
                    read(response),
                )
                for response, why in chosen.items()
            ),
        )

    def _choose(self, responses: list[int], excess: Callable[[int], tuple[float, float]]) -> dict[int, str]:
        """Responses of the sample in the order of the rollout, and why each is in it."""
        spread = responses
        if len(responses) > self._count:
            spread = [
                responses[place] for place in np.linspace(0, len(responses) - 1, -(-self._count // 2)).astype(int)
            ]
        left = [response for response in responses if response not in set(spread)]
        clipped = sorted(left, key=excess, reverse=True)[: self._count - len(spread)]
        return dict(sorted([*((one, "spread") for one in spread), *((one, "clipped") for one in clipped)]))


def piece_texts(vocabulary: Sequence[bytes], tokenizer: Any) -> Callable[[np.ndarray], tuple[str, ...]]:
    """Token ids of a response to the text each adds; a character of several tokens is that of its last.

    Args:
      vocabulary: bytes of every token.
      tokenizer: names its control tokens.
    """
    names = {int(token): str(tokenizer.convert_ids_to_tokens(int(token))) for token in tokenizer.all_special_ids}

    def pieces(tokens: np.ndarray) -> tuple[str, ...]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        texts = []
        for token in tokens.tolist():
            raw = names[token].encode() if token in names else vocabulary[token] if token < len(vocabulary) else b""
            texts.append(decoder.decode(raw))
        return (*texts[:-1], texts[-1] + decoder.decode(b"", final=True)) if texts else ()

    return pieces


def _shared(batch: TrainBatch) -> dict[str, Any]:
    """What is the same in every epoch."""
    return {
        "tokens": batch.tokens,
        "segment_ids": batch.segment_ids,
        "mask": batch.mask,
        "subsentences": batch.subsentence_ids,
        "sampler_logprobs": batch.sampler_logprobs,
        "old_logprobs": batch.old_logprobs,
        "entropies": batch.entropies,
    }


def _places(
    rollout: Rollout, part: np.ndarray, batches: Sequence[dict[str, np.ndarray]], **how: Any
) -> dict[int, tuple[int, int, np.ndarray]]:
    """Response to (micro-batch, row, positions of its tokens)."""
    if not batches:
        return {}
    micro_rows, row_tokens = batches[0]["tokens"].shape
    found = {}
    assigned = assign_rows(rollout, part, row_tokens=row_tokens, **how)
    for row, members in enumerate(assigned):
        micro, own = divmod(row, micro_rows)
        batch = batches[micro]
        for segment, response in enumerate(members, 1):
            tokens = np.flatnonzero(batch["segment_ids"][own] == segment)
            tokens = tokens[len(tokens) - len(rollout.responses[response]) :]  # behind what it has of the prompt
            if batch["mask"][own, tokens].any():
                found[response] = micro, own, tokens
    return found


def _excess(arrays: dict[str, np.ndarray]) -> tuple[float, float]:
    """By what responses are ranked: the share of clipped tokens, then the largest ratio or its inverse, as a log."""
    logs = np.abs(np.log(np.maximum(arrays["ratio"], 1e-30)))
    return float((arrays["clipped"] != 0).mean()), float(logs.max(initial=0.0))


def _response(
    groups: GradedRollout,
    response: int,
    why: str,
    advantage: float,
    updates: np.ndarray,
    pieces: tuple[str, ...],
    arrays: dict[str, np.ndarray],
) -> LoggedResponse:
    row = groups.row(response)
    ids = arrays.pop("subsentences")
    del arrays["mask"], arrays["segment_ids"]
    arrays["subsentences"] = (np.cumsum(np.diff(ids, prepend=ids[:1]) != 0)).astype(np.int32)  # from 0, row-wide or not
    arrays["text_lengths"] = np.array([len(piece) for piece in pieces], np.int32)
    names = ("id", "set", "sample", "problem", "gold", "status", "extracted", "reward", "finish")
    return LoggedResponse(
        about={name: row[name] for name in names if name in row} | {"chosen": why},
        advantage=advantage,
        updates=updates,
        pieces=pieces,
        arrays=arrays,
    )
