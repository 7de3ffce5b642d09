"""What the words of an action say without any model: the baseline that a representation has to exceed.

The kernel adds up words and pairs of words, groups of two to five characters, length, and the topics where they are given.
Nothing in it depends on the model under study. Inverse document frequencies come from all rows: they read no label.
"""

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import rbf_kernel

from lib.diagnosis import kernels

LENGTH_WEIGHT = 0.1
"""Of the kernels of length: small beside words, and large beside every penalty that so few features could need."""

VECTORISERS = (
    TfidfVectorizer(token_pattern=r"\w+", ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32),
    TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, dtype=np.float32),
)
"""Words and pairs of words; groups of characters within a word. Rows have length 1, or are 0 without words."""


def tfidf(texts: list[str]) -> list[csr_matrix]:
    """Return the sparse features of texts, one matrix [texts, terms] for each of ``VECTORISERS``."""
    return [vectoriser.fit_transform(texts) for vectoriser in VECTORISERS]


def lengths(texts: list[str], tokens: np.ndarray) -> np.ndarray:
    """Return numbers of tokens, words and characters, and their inverses, [texts, 6]."""
    counts = np.column_stack([tokens, [len(text.split()) for text in texts], [len(text) for text in texts]])
    return np.hstack([counts, 1 / np.maximum(counts, 1)])


def kernel(features: list[csr_matrix], length: np.ndarray, topics: np.ndarray) -> np.ndarray:
    """Return the kernel of the lexical baseline, [rows, rows] in float32.

    Args:
        features: as :func:`tfidf` returns them, of the rows.
        length: as :func:`lengths` returns them, of the rows.
        topics: further covariates, [rows, k]; k may be 0.

    Returns:
        The sum of a constant (the intercept), half the cosine of each of the features, and, with ``LENGTH_WEIGHT``, a linear
        kernel and a Gaussian one of length, so that no smooth function of length counts as more than words; with topics
        also their products.
    """
    standard = (length - length.mean(axis=0)) / np.maximum(length.std(axis=0), 1e-9)
    smooth = rbf_kernel(standard[:, : standard.shape[1] // 2])
    words = sum((block @ block.T).toarray() for block in features) / len(features)
    of_length = LENGTH_WEIGHT * (kernels.linear(length) + smooth)
    return (1 + words + of_length + topics @ topics.T).astype(np.float32)
