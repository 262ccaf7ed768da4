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
from sspo_jax.subsentences import Segmenter, parse_rule
from sspo_jax.subsentences.rules import cut_long, is_boundary, merge, segment_tokens

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
    ("costs \\$5, or $6, no", ["costs \\$5, ", "or $6, ", "no"]),
    ("\\boxed{(1,2)}. x", ["\\boxed{(1,2)}. ", "x"]),
    ("x.\n\ny", ["x.\n\n", "y"]),
    ("{a}, b", ["{a}, ", "b"]),
    ('he said "no." Then', ['he said "no." ', "Then"]),
    ("（甲），乙。丙、丁！", ["（甲），", "乙。", "丙、", "丁！"]),
    ("wait... what", ["wait... ", "what"]),
    ("(open, never closed\nnew, line", ["(open, ", "never closed\n", "new, ", "line"]),
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


# Where `|` stands a subsentence ends, and nowhere else.
KINDS = {
    "money": [
        "Tom has $5 and buys 3 apples, |then he gets $2 back, |ok",
        "from $5 to $10, |a US$20,000 gain; |$.50 too, |and $3/$4, |so",
        "it costs 5$ and then 3$, |so 8$. |Good",
        "she earned $<<5*4=20>>20, |then $<<2*3=6>>6, |so 26",
        "pays $5 and $x, y$ more, |so $3x + 2, 5$, |yes",
        "$5$ and $6, 7$, |$2 \\times 3, 4$ or $ a, b $, |so",
        "is \\$5, |or \\$6, |not $a, |b",
    ],
    "formulas side by side": [
        "$a, b$$c, d$, |so",
        "$$a, b$$$$c, d$$, |so",
        "$$a, b$$ and, |then $$c, d$$. |So",
        "$$$$ a, |b",
        "$$\n|x = 1\n|$$ where x, |y and $z, w$, |so",
        "$$a, $b, c$ d$$, |e",
        "$$ never closed, |but $a, b$, |c",
    ],
    "brackets": [
        "see (this, |that\n|and, |more",
        "a) first, |b) second, |c (x, y), |d",
        "half [0, 1) and (x, y], |but {open, |so",
        "\\(a, b\\) then \\(c, |d",
        "closed) too early, |(x, y), |(z, |w",
    ],
    "quotes": [
        'she said: |"Yes!" |and left, |ok',
        'he said "no." |Then, |"maybe, |yes" he, |ok',
        "it's a dogs' life, |'a' or 'b', |ok",
        'end.\n|"Start, |again." |Then',
        'he ("x, y") said ‘no,’ |then “yes,” |and »ja,« nein',
        '他说：|"好。"|他走了',
    ],
    "full stops before what closes": [
        "so \\[x = 5.\\] |Then",
        "so $x = 5.$ |Then $$y, z.$$ |And $5!$ ways",
        "so \\(x = 5 .\\) |Then (as said.) |And [so?] |we (5!) go",
        "\\[ \\begin{aligned} x, y. \\end{aligned} \\] |Then",
        "is $\\{a, b.\\}$ |and $f(x.y)$ then",
        "the set \\[(a, b)\\] is, |and $a, b$ is",
    ],
    "rows": [
        "\\[\\begin{aligned} a, b &= c \\\\| d &= e \\\\| f \\end{aligned}\\] so",
        "\\begin{tabular}{cc} 1 & 2 \\\\| \\hline 3 & 4 \\\\|\\hline 5 & 6 \\end{tabular} x",
        "the \\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}, |\\begin{array}{c} 1 \\\\| 2 \\end{array} x",
        "\\begin{bmatrix*} 1 \\end{bmatrix*} written \\\\(x, y\\\\) and \\\\frac",
    ],
    "other languages": [
        "قال الرجل، |ثم ذهب؛ |لماذا؟ |لا أعرف (أ، ب)، |نعم",
        "یہ ہے۔ |وہ ہے۔|کیا",
        "यह सही है। |वह भी॥ |अंत",
        "ｱｲｳ､|ｴｵ｡|ｶ",
        "首先,|我们设x为正数,|那么x=3.14,|所以1,000个.|答案是f(a,b)!|对吗?|好",
        "먼저,|우리는 x=5.|그래서",
        "Сначала,|потом все.|Затем",
    ],
    "no spaces": [
        "Therefore,|the answer is 5.|Then,|we check;|so is it?|Yes,|x is",
        "3.14 and 1,000 at 12:30 and f(x,y) and x,y and a.b",
        "numpy.Array(3) of os.path and readme.md",
        "f(x),|then $y$,|so",
        "see https://a.org/b,cd?e=Fg:hi!jk and, |then http://x.y. |Go",
        "e.g.,this and i.e.that",
    ],
    "dashes": [
        "he left —| then came—|gone ——| so",
        "one –| two --| three ---| four",
        "pages 3–5, |3--5, |1—2, |a - b, |--option and x--y",
        "— a list (this — that) and $a — b$",
    ],
}


@pytest.mark.parametrize("marked", [text for texts in KINDS.values() for text in texts])
def test_kinds(tokenizer, segmenters, marked):
    """On the text, and on the device; pieces are compared up to the white space between them."""
    segmenter = segmenters(min_tokens=1, max_tokens=None)
    text = marked.replace("|", "")
    pieces = segmenter.split(text)
    assert "".join(pieces) == text
    assert [piece.strip() for piece in pieces] == [piece.strip() for piece in marked.split("|")]
    tokens = tokenizer.encode(text).ids
    assert len(set(on_device(segmenter, [tokens], 256)[0])) == len(pieces)


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
    with pytest.raises(ValueError, match="rule is 'clause', expected punctuation, sentence"):
        parse_rule("clause")


def test_merge_keeps_every_piece_long_enough():
    random = np.random.default_rng(0)
    for _ in range(200):
        starts = random.random(random.integers(1, 40)) < 0.4
        lengths = np.bincount(merge(starts.tolist(), min_tokens=4, min_tail=4))
        assert lengths.min() >= min(4, len(starts))


FRAGMENTS = [*MERGES, *"abc 01 \n.,;:!?$\\(){}[]\"'", *"。，（）”　é😀あ々\xa0", "<|end|>", "$$"]
FRAGMENTS += [
    "\\\\",
    "\\begin{",
    "\\end{",
    "matrix}",
    "matri",
    "x}",
    "end{",
    "https://a.b/",
    "://",
    "：",
    "Then,",
    "the",
]
FRAGMENTS += ["$5", "5$", "<<", ".", ", ", "$x$", *"،؟।۔॥｡､—–“»我한Эя", " -- ", "---", "-", " – ", "3.14", "\u2028"]
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=2)), max_size=30).map("".join)


@pytest.mark.parametrize(
    "options",
    [
        {"min_tokens": 1, "max_tokens": None},
        {"min_tokens": 3, "max_tokens": 7},
        {"math_aware": False, "min_tokens": 2},
        {"rule": "sentence"},
        {"rule": "fixed(7)"},
    ],
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
            if "<|end|>" not in text and options.get("rule") != "fixed(7)" and options.get("max_tokens", 60) != 7:
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


@settings(deadline=None, max_examples=25, derandomize=True)
@given(batch=st.lists(texts, min_size=8, max_size=8), seed=st.integers(0, 1000))
def test_any_cut_into_tokens(segmenters, batch, seed):
    """The same characters in random tokens, parts of characters among them: a whole id list, not only its length."""
    segmenter = segmenters(min_tokens=1, max_tokens=None)
    random = np.random.default_rng(seed)
    index: dict[bytes, int] = {}
    for token, piece in enumerate(segmenter.host.pieces):
        index.setdefault(piece, token)
    token_lists = []
    for text in batch:
        data, tokens = text.replace("<|end|>", "").encode()[:TIME], []
        while data:
            width = next(n for n in (random.integers(1, 5), 1) if data[:n] in index)
            tokens.append(index[data[:width]])
            data = data[width:]
        token_lists.append(tokens)
    for tokens, ids in zip(token_lists, on_device(segmenter, token_lists), strict=True):
        pieces = [segmenter.host.pieces[token] for token in tokens]
        assert ids == segment_tokens(pieces, parse_rule("punctuation"), min_tokens=1, max_tokens=None)


def test_long_subsentences_are_cut_into_equal_parts(segmenters):
    segmenter = segmenters(min_tokens=2, max_tokens=4)
    words = "ababababab, cd. xyzxyzxyz"  # 11, 5 and 9 tokens of this vocabulary: ", " and ". " are one
    pieces = segmenter.split(words)
    assert pieces == ["abab", "abab", "ab, ", "cd. ", "xyz", "xyz", "xyz"]
    assert segmenters(min_tokens=2, max_tokens=None).split(words) == ["ababababab, ", "cd. ", "xyzxyzxyz"]
    assert len(segmenters().split("ab" * 60)) == 2  # of 120 tokens: the default is 60
    for length in range(1, 40):
        for most in range(1, 12):
            lengths = np.bincount(cut_long([0] * length, most))
            assert lengths.max() <= most
            assert lengths.max() - lengths.min() <= 1
            assert len(lengths) == -(-length // most)
    for rule, count in (("response", 1), ("fixed(50)", 2), ("newline", 2)):
        assert len(segmenters(rule=rule).split("ab" * 40)) == count


def test_bounds_that_cannot_hold_are_refused(tokenizer):
    with pytest.raises(ValueError, match="max_tokens is 4, expected at least min_tokens, 5, or None for no bound"):
        Segmenter.from_tokenizer(tokenizer, max_tokens=4)
    with pytest.raises(ValueError, match="min_tokens is 0, expected 1 or more"):
        Segmenter.from_tokenizer(tokenizer, min_tokens=0)


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
    np.testing.assert_array_equal(made.table["left"], again.table["left"])
    path.write_bytes(b"not a table")
    repaired = Segmenter.from_tokenizer(tokenizer, cache_dir=tmp_path)
    np.testing.assert_array_equal(made.table["shape_of"], repaired.table["shape_of"])
    assert len(list(tmp_path.iterdir())) == 1


def test_boundaries_need_no_tokens():
    rule = parse_rule("punctuation")
    assert [c for c, ends in zip("a, b.c", is_boundary("a, b.c", rule), strict=True) if ends] == [","]
    assert is_boundary("1 \\\\[2pt] 2 \\\\[x]", rule).index(True) == 3
    assert sum(is_boundary("1 \\\\[2pt] 2 \\\\[x]", rule)) == 1


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
    for options in ({}, {"math_aware": False, "min_tokens": 1, "max_tokens": None}, {"rule": "sentence"}):
        segmenter = Segmenter.from_tokenizer(tokenizer, **options)
        rule = parse_rule(segmenter.rule, math_aware=segmenter.math_aware)
        padded = [*token_lists, *[[]] * (-len(token_lists) % 512)]
        found = [ids for i in range(0, len(padded), 512) for ids in on_device(segmenter, padded[i : i + 512], longest)]
        for tokens, ids in zip(token_lists, found, strict=False):
            pieces = [segmenter.host.pieces[token] for token in tokens]
            bounds = {"min_tokens": segmenter.min_tokens, "max_tokens": segmenter.max_tokens}
            assert ids == segment_tokens(pieces, rule, **bounds)
