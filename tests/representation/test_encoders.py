"""Encoders: numbers where they are known, determinism, and clear errors."""

import collections
import logging
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxrec.representation import Encoder, HashedTfidf, Precomputed, WordLlama
from jaxrec.representation.encoder import constant_vector
from jaxrec.representation.svd import truncated_svd
from jaxrec.representation.tfidf import count_features, tfidf

TEXTS = [
    "title: red nail polish",
    "title: red nail lacquer",
    "title: hair dryer 2000 W",
    "",
    "title: red nail polish",
    "title: travel hair dryer",
]


def encode(encoder, texts=TEXTS, mask=None, seed=0, table=None):
    mask = np.ones(len(texts), bool) if mask is None else mask
    return encoder.encode(texts, table=table or {}, fit_mask=mask, seed=seed)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("encoder", [WordLlama(), HashedTfidf(dimension=8)])
def test_text_encoders_place_like_near_like_and_repeat_themselves(encoder):
    vectors = encode(encoder)
    assert isinstance(encoder, Encoder)
    assert vectors.dtype == np.float32
    assert vectors.shape == (6, encoder.dimension)
    np.testing.assert_array_equal(vectors, encode(encoder))
    np.testing.assert_array_equal(vectors[0], vectors[4])
    np.testing.assert_array_equal(vectors[3], constant_vector(encoder.dimension))
    assert cosine(vectors[0], vectors[1]) > cosine(vectors[0], vectors[2]) + 0.1
    assert cosine(vectors[2], vectors[5]) > cosine(vectors[1], vectors[5]) + 0.1


def test_wordllama_does_not_depend_on_the_texts_around():
    # Padding is masked, so alone and beside a long text are the same vector.
    alone = encode(WordLlama(), ["red nail polish"])
    beside = encode(WordLlama(), ["a much longer text " * 20, "red nail polish"])
    np.testing.assert_array_equal(alone[0], beside[1])


def test_wordllama_is_the_mean_of_its_token_vectors():
    import wordllama
    from safetensors import safe_open
    from tokenizers import Tokenizer

    folder = wordllama.__path__[0]
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizers/l2_supercat_tokenizer_config.json")
    tokens = tokenizer.encode("hair dryer for travel", add_special_tokens=False).ids
    with safe_open(f"{folder}/weights/l2_supercat_256.safetensors", "np") as file:
        table = file.get_tensor("embedding.weight").astype(np.float64)
    expected = table[tokens].mean(0)
    found = encode(WordLlama(), ["hair dryer for travel"])[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    small = encode(WordLlama(dimension=64), ["hair dryer for travel"])[0]
    np.testing.assert_allclose(small, expected[:64], atol=1e-6)


def test_wordllama_leaves_the_root_logger_alone():
    """Its own import calls `logging.basicConfig`."""
    code = (
        "import logging, numpy as np; from jaxrec.representation import WordLlama; "
        "root = logging.getLogger(); before = root.level, root.handlers[:]; "
        "WordLlama().encode(['a'], table={}, fit_mask=np.ones(1, bool), seed=0); "
        "print(root.level, (root.level, root.handlers) == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(logging.WARNING), "True"]


def test_wordllama_is_imported_only_when_it_encodes():
    code = (
        "import sys, jaxrec.representation, jaxrec.tokenization; "
        "print(*{'wordllama', 'matplotlib', 'safetensors', 'polars'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_wordllama_refuses_a_dimension_that_its_wheel_lacks():
    with pytest.raises(ValueError, match=r"64, 128, 256.*got 512"):
        WordLlama(dimension=512)


def test_labels_of_surrogates():
    assert HashedTfidf().surrogate
    assert not WordLlama().surrogate
    assert not Precomputed("x.npy").surrogate
    assert Precomputed("x.npy", surrogate=True).surrogate


def slow_tfidf(texts, ngram=3):
    """The formula, feature by feature, without hashing."""
    documents = []
    for text in texts:
        counts = collections.Counter()
        for word in text.lower().split():
            counts["w" + word] += 1
            padded = f" {word} "
            for start in range(max(1, len(padded) - ngram + 1)):
                counts["c" + padded[start : start + ngram]] += 1
        documents.append(counts)
    names = sorted(set().union(*documents))
    matrix = np.zeros((len(texts), len(names)))
    for row, counts in enumerate(documents):
        for column, name in enumerate(names):
            if counts[name]:
                frequency = sum(name in other for other in documents)
                idf = np.log((1 + len(texts)) / (1 + frequency)) + 1
                matrix[row, column] = (1 + np.log(counts[name])) * idf
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.where(norms > 0, norms, 1)


def test_tfidf_equals_the_formula_without_hashing():
    fast = tfidf(count_features(TEXTS, buckets=2**18), np.ones(6, bool)).toarray()
    slow = slow_tfidf(TEXTS)
    np.testing.assert_allclose(fast @ fast.T, slow @ slow.T, atol=1e-12)


def test_randomised_svd_finds_the_exact_one():
    generator = np.random.default_rng(0)
    left = np.linalg.qr(generator.normal(size=(80, 60)))[0]
    right = np.linalg.qr(generator.normal(size=(60, 60)))[0]
    matrix = left * 0.8 ** np.arange(60) @ right.T
    found = truncated_svd(matrix, 5, seed=1)
    np.testing.assert_allclose(np.abs(found.T @ right[:, :5]), np.eye(5), atol=1e-6)
    largest = np.argmax(np.abs(found), 0)
    assert (found[largest, np.arange(5)] > 0).all()
    # Signs and directions do not depend on the random start.
    np.testing.assert_allclose(found, truncated_svd(matrix, 5, seed=2), atol=1e-6)


def test_svd_beyond_the_rank_is_zero():
    matrix = np.outer([1.0, 2.0, 3.0], [1.0, 1.0])
    found = truncated_svd(matrix, 4, seed=0)
    assert found.shape == (2, 4)
    np.testing.assert_allclose(found[:, 0], [0.5**0.5] * 2, atol=1e-12)
    np.testing.assert_array_equal(found[:, 1:], 0)


def test_tfidf_vectors_have_unit_length_and_keep_all_cosines_at_full_rank():
    vectors = encode(HashedTfidf(dimension=8)).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    live = [0, 1, 2, 4, 5]
    slow = slow_tfidf(TEXTS)[live]
    np.testing.assert_allclose(vectors[live] @ vectors[live].T, slow @ slow.T, atol=1e-6)


def test_tfidf_learns_from_fitted_items_only():
    mask = np.array([True, True, True, True, False, False])
    changed = [*TEXTS[:4], "something else entirely", "and more"]
    before = encode(HashedTfidf(dimension=4), TEXTS, mask)
    after = encode(HashedTfidf(dimension=4), changed, mask)
    np.testing.assert_array_equal(before[:4], after[:4])
    # A text that shares nothing with the fitted ones has no direction: the constant vector.
    stranger = encode(HashedTfidf(dimension=4), [*TEXTS[:5], "zzzqqq"], mask)
    np.testing.assert_array_equal(stranger[5], constant_vector(4))


@pytest.mark.parametrize("field", ["dimension", "buckets", "ngram"])
def test_tfidf_refuses_zeros(field):
    with pytest.raises(ValueError, match="positive numbers"):
        HashedTfidf(**{field: 0})


MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_precomputed_reads_both_formats(tmp_path):
    np.save(tmp_path / "v.npy", MATRIX.astype(np.float64))
    save_file({"v": MATRIX, "other": MATRIX[:2]}, tmp_path / "two.safetensors")
    save_file({"v": MATRIX.astype(np.float16)}, tmp_path / "one.safetensors")
    for encoder in (
        Precomputed(str(tmp_path / "v.npy")),
        Precomputed(str(tmp_path / "one.safetensors")),
        Precomputed(str(tmp_path / "two.safetensors"), tensor="v"),
    ):
        vectors = encode(encoder, ["?"] * 4)
        assert vectors.dtype == np.float32
        np.testing.assert_array_equal(vectors, MATRIX)
    with pytest.raises(ValueError, match="name one by tensor="):
        encode(Precomputed(str(tmp_path / "two.safetensors")), ["?"] * 4)


def test_precomputed_matches_rows_by_id(tmp_path):
    np.save(tmp_path / "v.npy", MATRIX)
    (tmp_path / "ids.txt").write_text("d\nc\nb\na\n")
    (tmp_path / "ids.json").write_text('["d", "c", "b", "a"]')
    table = {"item": ["a", "c"]}
    for ids in (("d", "c", "b", "a"), str(tmp_path / "ids.txt"), str(tmp_path / "ids.json")):
        vectors = encode(
            Precomputed(str(tmp_path / "v.npy"), ids=ids), [], np.ones(2, bool), 0, table
        )
        np.testing.assert_array_equal(vectors, MATRIX[[3, 1]])
    with pytest.raises(ValueError, match=r"no row for 1 of 2 items, among them x"):
        encode(
            Precomputed(str(tmp_path / "v.npy"), ids=("d", "c", "b", "a")),
            [],
            np.ones(2, bool),
            0,
            {"item": ["a", "x"]},
        )


def test_precomputed_skips_leading_rows(tmp_path):
    np.save(tmp_path / "v.npy", MATRIX)
    vectors = encode(Precomputed(str(tmp_path / "v.npy"), skip_rows=1), ["?"] * 3)
    np.testing.assert_array_equal(vectors, MATRIX[1:])


def test_precomputed_refuses_bad_files(tmp_path):
    path = tmp_path / "v.npy"
    encoder = Precomputed(str(path))
    with pytest.raises(ValueError, match="there is no file"):
        encode(encoder)
    bad = MATRIX.copy()
    bad[2, 1] = np.inf
    np.save(path, bad)
    with pytest.raises(ValueError, match=r"non-finite numbers in 1 row\(s\), first in row 2"):
        encode(encoder, ["?"] * 4)
    np.save(path, MATRIX)
    with pytest.raises(ValueError, match=r"has 4 rows .* the catalogue has 6 items"):
        encode(encoder)
    np.save(path, MATRIX[0])
    with pytest.raises(ValueError, match="must be a matrix"):
        encode(encoder)
    np.save(path, np.array([["a"]]))
    with pytest.raises(ValueError, match="cannot be read as a matrix"):
        encode(encoder)
    path.write_bytes(b"not numpy")
    with pytest.raises(ValueError, match="cannot be read as a matrix"):
        encode(encoder)
    with pytest.raises(ValueError, match=r"\.npy and \.safetensors"):
        Precomputed("v.pkl")
    np.save(path, MATRIX)
    with pytest.raises(ValueError, match="once, got 4 ids, 3 of them different"):
        encode(Precomputed(str(path), ids=("a", "b", "b", "c")), table={"item": ["a"]})


def test_precomputed_gives_missing_items_the_mean_of_fitted_ones(tmp_path):
    values = MATRIX.copy()
    values[1] = np.nan  # flagged: may hold anything
    np.save(tmp_path / "v.npy", values)
    np.save(tmp_path / "mask.npy", np.array([False, True, False, False]))
    encoder = Precomputed(
        str(tmp_path / "v.npy"),
        ids=("a", "b", "c", "d"),
        missing="mean",
        mask=str(tmp_path / "mask.npy"),
    )
    table = {"item": ["d", "x", "a", "b", "c"]}
    fitted = np.array([True, True, True, True, False])
    found = encoder.encode_with_facts([], table=table, fit_mask=fitted, seed=0)
    mean = (MATRIX[3] + MATRIX[0]) / 2
    np.testing.assert_array_equal(found.vectors, [MATRIX[3], mean, MATRIX[0], mean, MATRIX[2]])
    np.testing.assert_array_equal(found.unknown, [False, True, False, True, False])
    assert found.facts == {"n_missing": 2}
    # Leading rows are counted by the mask, too.
    skipping = Precomputed(
        str(tmp_path / "v.npy"), skip_rows=2, missing="mean", mask=str(tmp_path / "mask.npy")
    )
    np.testing.assert_array_equal(encode(skipping, ["?"] * 2), MATRIX[2:])


def test_precomputed_refuses_bad_masks(tmp_path):
    path, mask = str(tmp_path / "v.npy"), str(tmp_path / "mask.npy")
    np.save(path, MATRIX)
    with pytest.raises(ValueError, match="set missing='mean', or leave the mask out"):
        Precomputed(path, mask=mask)
    with pytest.raises((ValueError, TypeError), match=r"(?s)missing.*refuse"):
        Precomputed(path, missing="drop")
    encoder = Precomputed(path, missing="mean", mask=mask)
    with pytest.raises(ValueError, match=r"no file .*correct Precomputed\(mask="):
        encode(encoder, ["?"] * 4)
    with pytest.raises(ValueError, match=r"no file .*correct Precomputed\(mask="):
        encoder.fingerprint()
    for bad in (np.zeros(3, bool), np.zeros(4, np.int8)):
        np.save(mask, bad)
        with pytest.raises(ValueError, match="one bool for each of the 4 rows"):
            encode(encoder, ["?"] * 4)
    np.save(mask, np.ones(4, bool))
    with pytest.raises(ValueError, match="none of the items that may be fitted"):
        encode(encoder, ["?"] * 4)
    np.save(path, MATRIX[:0])
    with pytest.raises(ValueError, match="has no rows"):
        encode(Precomputed(path, ids=str(tmp_path / "none.json"), missing="mean"), ["?"] * 4)


def test_precomputed_fingerprint_follows_ids_and_mask(tmp_path):
    np.save(tmp_path / "v.npy", MATRIX)
    np.save(tmp_path / "mask.npy", np.zeros(4, bool))
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\n")
    path, ids, mask = (str(tmp_path / name) for name in ("v.npy", "ids.txt", "mask.npy"))
    encoder = Precomputed(path, ids=ids, missing="mean", mask=mask)
    seen = {encoder.fingerprint(), Precomputed(path).fingerprint()}
    (tmp_path / "ids.txt").write_text("b\na\nc\nd\n")
    seen.add(encoder.fingerprint())
    np.save(tmp_path / "mask.npy", np.ones(4, bool))
    seen.add(encoder.fingerprint())
    assert len(seen) == 4


def test_precomputed_fingerprint_follows_the_content(tmp_path):
    np.save(tmp_path / "v.npy", MATRIX)
    encoder = Precomputed(str(tmp_path / "v.npy"))
    before = encoder.fingerprint()
    np.save(tmp_path / "v.npy", MATRIX + 1)
    assert encoder.fingerprint() != before
