"""Are keystreams reproducible, apart by purpose, and of the law that they promise?"""

from __future__ import annotations

import numpy as np
import pytest

from common.privacy.secure_masks import normals, subkey, words

KEY = bytes(range(32))


def test_words_are_the_published_test_vector_of_chacha20() -> None:
    # RFC 8439, A.1, test vector 1: key, nonce and counter all zero
    expected = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    assert words(bytes(32), 4).astype("<u8").tobytes() == expected


def test_a_shorter_stream_is_the_beginning_of_a_longer_one() -> None:
    assert np.array_equal(words(KEY, 9), words(KEY, 1000)[:9])


def test_purposes_have_streams_of_their_own() -> None:
    keys = {subkey(KEY, "a", "b"), subkey(KEY, "ab"), subkey(KEY, "a", "c"), subkey(bytes(32), "a", "b")}
    assert len(keys) == 4
    assert subkey(KEY, "a", "b") in keys


def test_normals_have_the_moments_and_tails_of_the_normal_law() -> None:
    from scipy.stats import kstest

    drawn = normals(KEY, 200_000)
    assert np.isfinite(drawn).all()
    assert kstest(drawn, "norm").pvalue > 1e-3
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.std() - 1) < 0.01


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 32 bytes"):
        words(b"short", 3)
