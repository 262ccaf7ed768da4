"""The segmenter: golden cuts, and the device against the text reference on real solutions and hostile strings."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sspo_jax.data.tokenizer import load_tokenizer
from sspo_jax.subsentences import Segmenter, parse_rule, table
from sspo_jax.subsentences.rules import is_boundary, merge, segment_tokens

TIME = 96
MERGES = [
    ".\n",
    ".\n\n",
    "},",
    ").",
    "...",
    ". ",
    ", ",
    "\\,",
    "\\;",
    "$,",
    "\\(",
    "\\)",
    "\\[",
    ")$",
    "$.",
    "((",
    ")),",
]
MERGES += ["he", " th", "}.", ":\n", '."', ".)", "$$", "\\$", "),", "!!", "?!"]


def spell(text: str) -> str:
    return "".join(
        s for s, _ in pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    )


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """All bytes, and tokens that straddle boundaries: no merges needed, they are added words of the model."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for word in MERGES:
        pieces = list(spell(word))
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            vocabulary.setdefault(pieces[0], len(vocabulary))
    result = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken("<|end|>", special=True)])
    return result


@pytest.fixture(scope="session")
def segmenters(tokenizer, tmp_path_factory):
    directory, made = tmp_path_factory.mktemp("tables"), {}

    def get(**options):
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = Segmenter.from_tokenizer(tokenizer, cache_dir=directory, **options)
        return made[key]

    return get


apply = jax.jit(lambda segmenter, tokens, mask, segment_ids: segmenter(tokens, mask, segment_ids))


def on_device(segmenter, token_lists, time=TIME):
    tokens, mask = np.zeros((len(token_lists), time), np.int32), np.zeros((len(token_lists), time), bool)
    for row, some in enumerate(token_lists):
        tokens[row, : len(some)] = some
        mask[row, : len(some)] = True
    ids = np.asarray(apply(segmenter, tokens, mask, np.ones_like(tokens)))
    return [list(ids[row, : len(some)]) for row, some in enumerate(token_lists)]


GOLDEN = [
    ("a is 3.14 and 1,000 at 12:30 now", ["a is 3.14 and 1,000 at 12:30 now"]),
    ("e.g. this", ["e.g. ", "this"]),
    ("so f(x,y) and f(x, y), ok", ["so f(x,y) and f(x, y), ", "ok"]),
    ("a\\, b\\; c, d", ["a\\, b\\; c, ", "d"]),
    ("$a, b$, c", ["$a, b$, ", "c"]),
    ("$$a, b$$. c", ["$$a, b$$. ", "c"]),
    ("\\(a, b\\) and \\[c; d\\]. e", ["\\(a, b\\) and \\[c; d\\]. ", "e"]),
    ("costs \\$5, or $6, no", ["costs \\$5, ", "or $6, no"]),
    ("\\boxed{(1,2)}. x", ["\\boxed{(1,2)}. ", "x"]),
    ("x.\n\ny", ["x.\n\n", "y"]),
    ("{a}, b", ["{a}, ", "b"]),
    ('he said "no." Then', ['he said "no." ', "Then"]),
    ("（甲），乙。丙、丁！", ["（甲），", "乙。", "丙、", "丁！"]),
    ("wait... what", ["wait... ", "what"]),
    ("(open, never closed\nnew, line", ["(open, never closed\n", "new, ", "line"]),
    ("ends with a mark.", ["ends with a mark."]),
    ("cut in the mid, and", ["cut in the mid, ", "and"]),
    ("...", ["..."]),
    ("", []),
    ("x", ["x"]),
    ("done.<|end|>", ["done.<|end|>"]),
    ("done. ok<|end|>", ["done. ", "ok<|end|>"]),
    ("wait,<|end|>", ["wait,<|end|>"]),
    ("\n", ["\n"]),
    ("one.\r\ntwo", ["one.\r\n", "two"]),
]


@pytest.mark.parametrize(("text", "pieces"), GOLDEN)
def test_golden(tokenizer, segmenters, text, pieces):
    segmenter = segmenters(min_tokens=1)
    assert segmenter.split(text) == pieces
    tokens = tokenizer.encode(text).ids
    ids = on_device(segmenter, [tokens])[0]
    assert len(set(ids)) == len(pieces)
    assert ids == segment_tokens([segmenter.host.pieces[t] for t in tokens], parse_rule("punctuation"), min_tokens=1)


def test_rules_and_options(segmenters):
    text = "a, b. c\nd"
    assert segmenters(rule="sentence", min_tokens=1).split(text) == ["a, b. ", "c\n", "d"]
    assert segmenters(rule="newline", min_tokens=1).split(text) == ["a, b. c\n", "d"]
    assert segmenters(rule="fixed(3)").split("abcdefgh") == ["abc", "defgh"]
    assert segmenters(rule="fixed(3)").split("abcdef") == ["abc", "def"]
    assert segmenters(rule="token").split("abc") == ["a", "b", "c"]
    assert segmenters(rule="response").split(text) == [text]
    assert segmenters(math_aware=False, min_tokens=1).split("$a, b$") == ["$a, ", "b$"]
    assert segmenters(min_tokens=5).split("a, b, c, d, e, f") == ["a, b, c, ", "d, e, f"]
    with pytest.raises(ValueError, match="rule is 'clause', want punctuation, sentence"):
        parse_rule("clause")


def test_merge_keeps_every_piece_long_enough():
    random = np.random.default_rng(0)
    for _ in range(200):
        starts = random.random(random.integers(1, 40)) < 0.4
        lengths = np.bincount(merge(starts.tolist(), min_tokens=4, min_tail=4))
        assert lengths.min() >= min(4, len(starts))


FRAGMENTS = [*MERGES, *"abc 01 \n.,;:!?$\\(){}[]\"'", *"。，（）”　é😀あ々\xa0", "<|end|>", "$$"]
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=2)), max_size=30).map("".join)


@pytest.mark.parametrize(
    "options",
    [{"min_tokens": 1}, {}, {"math_aware": False, "min_tokens": 2}, {"rule": "sentence"}, {"rule": "fixed(7)"}],
    ids=str,
)
@settings(deadline=None, max_examples=15, derandomize=True)
@given(batch=st.lists(texts, min_size=8, max_size=8))
def test_device_agrees_with_text(tokenizer, segmenters, options, batch):
    segmenter = segmenters(**options)
    batch = [text for text in batch if len(tokenizer.encode(text).ids) <= TIME]
    token_lists = [tokenizer.encode(text).ids for text in batch] + [[]] * (8 - len(batch))
    for text, ids in zip(batch, on_device(segmenter, token_lists), strict=False):
        pieces = segmenter.split(text)
        assert "".join(pieces) == text
        assert len(pieces) == (ids[-1] + 1 if ids else 0)
        position = 0
        for index, piece in enumerate(pieces):
            width = ids.count(index)
            spelled = b"".join(
                segmenter.host.pieces[t] for t in tokenizer.encode(text).ids[position : position + width]
            )
            position += width
            if "<|end|>" not in text and options.get("rule") != "fixed(7)":
                assert spelled == piece.encode()


@settings(deadline=None, max_examples=25, derandomize=True)
@given(data=st.lists(st.binary(max_size=40), min_size=8, max_size=8), is_marks=st.booleans())
def test_broken_characters(segmenters, data, is_marks):
    """Bytes that are no text at all, among them halves of full-width marks, in any cut into tokens."""
    segmenter = segmenters(min_tokens=1)
    if is_marks:
        data = ["。，” 　a.".encode()[row % 7 : 7 + row] + piece for row, piece in enumerate(data)]
    index = {piece: token for token, piece in enumerate(segmenter.host.pieces) if len(piece) == 1}
    token_lists = [[index[bytes([byte])] for byte in piece] for piece in data]
    for tokens, ids in zip(token_lists, on_device(segmenter, token_lists), strict=True):
        pieces = [segmenter.host.pieces[token] for token in tokens]
        assert ids == segment_tokens(pieces, parse_rule("punctuation"), min_tokens=1)


def test_masks_and_packing(tokenizer, segmenters):
    """A gap ends a subsentence, packed responses do not see each other, and ids rise from 0; -1 elsewhere."""
    segmenter = segmenters(min_tokens=3)
    first, second = (tokenizer.encode(text).ids for text in ("hello, (world", "and, then. more"))
    tokens = np.array([[7, *first, *second, 7, *second]])
    segments = np.array([[0] + [1] * len(first) + [2] * len(second) + [0] + [3] * len(second)])
    mask = segments > 0
    ids = np.asarray(segmenter(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(segments)))[0]
    alone = [on_device(segmenter, [some])[0] for some in (first, second)]
    want = [-1, *alone[0], *(np.array(alone[1]) + max(alone[0]) + 1), -1]
    want += list(np.array(alone[1]) + max(want) + 1)
    assert ids.tolist() == want
    mask[0, 4] = False
    ids = np.asarray(segmenter(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(segments)))[0]
    assert ids[4] == -1
    assert ids[5] == ids[3] + 1
    whole = segmenters(rule="response")
    assert np.unique(np.asarray(whole(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(segments)))).tolist() == [
        -1,
        0,
        1,
        2,
    ]


def test_entropy_rule(segmenters):
    segmenter = segmenters(rule="entropy", min_tokens=2)
    entropies, mask = jnp.array([[0.1, 3.0, 0.2, 4.0, 0.1, 0.1, 9.0]]), jnp.ones((1, 7), bool)
    ids = segmenter(jnp.zeros((1, 7), jnp.int32), mask, entropies=entropies, entropy_threshold=1.0)
    assert ids.tolist() == [[0, 0, 0, 1, 1, 1, 1]]
    with pytest.raises(ValueError, match="needs entropies"):
        segmenter(jnp.zeros((1, 7), jnp.int32), mask)


def test_entropy_threshold_of_a_rollout(segmenters):
    """With the rollout's threshold its parts are cut as the whole is; with their own they are not."""
    segmenter = segmenters(rule="entropy", min_tokens=1, entropy_quantile=0.5)
    random = np.random.default_rng(0)
    entropies = random.exponential(size=(4, 30)).astype(np.float32) * np.array([[0.1], [0.1], [3], [3]], np.float32)
    mask, tokens = random.random((4, 30)) < 0.9, jnp.zeros((4, 30), jnp.int32)
    halves = (slice(0, 2), slice(2, 4))
    threshold = segmenter.threshold([entropies[part] for part in halves], [mask[part] for part in halves])
    np.testing.assert_allclose(threshold, np.quantile(entropies[mask], 0.5), rtol=1e-6)

    def cut(part, threshold):
        rows = (jnp.asarray(mask[part]), None)
        return segmenter(tokens[part], *rows, entropies=jnp.asarray(entropies[part]), entropy_threshold=threshold)

    whole = cut(slice(0, 4), threshold)
    np.testing.assert_array_equal(jnp.concatenate([cut(part, threshold) for part in halves]), whole)
    assert not np.array_equal(jnp.concatenate([cut(part, None) for part in halves]), whole)
    assert segmenters().threshold([entropies], [mask]) is None
    assert segmenter.threshold([], []) == 0


TINY_TEXTS = [
    "First add: 12 + 7 = 19, then subtract 4. So we get \\boxed{15}.\n\nThe answer, then, is 15.",
    "x = 1,000; y = 3.14, and f(a, b) = $a, b$. 你好，世界。 😀!",
    "",
]


@pytest.fixture(scope="session")
def tiny_segmenter(tmp_path_factory):
    return Segmenter.from_tokenizer(load_tokenizer("tiny"), cache_dir=tmp_path_factory.mktemp("tiny"))


@settings(deadline=None, max_examples=15, derandomize=True)
@given(random_texts=st.lists(texts, min_size=6, max_size=6))
def test_shipped_tokenizer(tiny_segmenter, random_texts):
    """The tokenizer of the default experiment: the device, the reference and the text agree."""
    batch = [*TINY_TEXTS, *random_texts][:8]
    encoded = [tiny_segmenter.host.tokenizer.encode(text, add_special_tokens=False).ids[:200] for text in batch]
    encoded += [[]] * (8 - len(batch))
    rule = parse_rule("punctuation")
    for tokens, ids in zip(encoded, on_device(tiny_segmenter, encoded, 200), strict=True):
        assert ids == segment_tokens([tiny_segmenter.host.pieces[token] for token in tokens], rule, min_tokens=5)
    for text in batch:
        assert "".join(tiny_segmenter.split(text)) == text
    assert tiny_segmenter.split(TINY_TEXTS[0]) == [
        "First add:",
        " 12 + 7 = 19,",
        " then subtract 4. ",
        "So we get \\boxed{15}.\n\n",
        "The answer, then, is 15.",
    ]


def test_table_is_cached_and_survives_damage(tokenizer, tmp_path):
    made = Segmenter.from_tokenizer(tokenizer, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    again = Segmenter.from_tokenizer(tokenizer, cache_dir=tmp_path)
    assert path.stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(made.words, again.words)
    path.write_bytes(b"not a table")
    repaired = Segmenter.from_tokenizer(tokenizer, cache_dir=tmp_path)
    np.testing.assert_array_equal(made.class_of, repaired.class_of)
    assert len(list(tmp_path.iterdir())) == 1


def test_table_rows_round_trip():
    row = [3, 2, 4, 1, 1, 0, 1, -7, 9, 255, 0, 254, 255]
    assert [table.field(table.pack(row), column) for column in range(13)] == row
    with pytest.raises(ValueError, match="want 0 to 255"):
        table.pack([0] * 9 + [256, 0, 0, 0])


def test_boundaries_need_no_tokens():
    rule = parse_rule("punctuation")
    assert [c for c, ends in zip("a, b.c", is_boundary("a, b.c", rule), strict=True) if ends] == [","]


@pytest.mark.slow
def test_real_vocabulary_and_solutions(real_data):
    """Every MATH and GSM8K solution with the Qwen2.5 vocabulary: the device and the reference, token by token."""
    tokenizer = Tokenizer.from_file(str(real_data / "qwen2.5-tokenizer" / "tokenizer.json"))
    solutions = [
        json.loads(line)["solution"]
        for name in ("math", "gsm8k")
        for line in (real_data / "train" / f"{name}.jsonl").read_text(encoding="utf-8").strip().split("\n")
    ]
    token_lists = [encoding.ids for encoding in tokenizer.encode_batch(solutions, add_special_tokens=False)]
    longest = max(map(len, token_lists))
    for options in ({}, {"math_aware": False, "min_tokens": 1}, {"rule": "sentence"}):
        segmenter = Segmenter.from_tokenizer(tokenizer, **options)
        rule = parse_rule(segmenter.rule, math_aware=segmenter.math_aware)
        padded = [*token_lists, *[[]] * (-len(token_lists) % 512)]
        found = [ids for i in range(0, len(padded), 512) for ids in on_device(segmenter, padded[i : i + 512], longest)]
        for tokens, ids in zip(token_lists, found, strict=False):
            pieces = [segmenter.host.pieces[token] for token in tokens]
            assert ids == segment_tokens(pieces, rule, min_tokens=segmenter.min_tokens)
