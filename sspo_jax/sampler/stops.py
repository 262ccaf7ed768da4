"""Stop strings: looked for on the host between blocks of steps, to the token."""

from collections.abc import Callable, Sequence


def first_stop(
    tokens: Sequence[int],
    start: int,
    stop_strings: Sequence[str],
    decode: Callable[[list[int]], str],
    *,
    minimum: int = 0,
) -> int | None:
    """The number of tokens after which the text first contains one of the strings; None where it does not.

    Args:
      tokens: the response so far.
      start: how many of them were searched before; only what could end in a later one is decoded again.
      decode: token ids to text.
      minimum: the response keeps at least this many tokens, whatever its text.

    >>> first_stop([1, 2, 3, 4], 0, ["bc"], lambda ids: "".join("abcd"[i - 1] for i in ids))
    3
    """
    # A character can take four tokens (its bytes), so a string that ends in a new token begins at most this far back.
    back = 4 * max(len(string) for string in stop_strings)
    window = list(tokens[max(0, start - back) :])
    offset = len(tokens) - len(window)
    if not any(string in decode(window) for string in stop_strings):
        return None
    for end in range(max(start, minimum - 1, 0) + 1, len(tokens) + 1):
        text = decode(window[: end - offset])
        if any(string in text for string in stop_strings):
            return end
    return None
