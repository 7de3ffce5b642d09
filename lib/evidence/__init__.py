"""What a run measured for each published claim: tables of the stages in, one row a claim out.

Each function reads one stage's tables and returns rows with the columns of ``lib.claims.EVIDENCE``. A claim that a stage
cannot speak to simply gets no row, or a row with a ``reason``.
"""

from lib.evidence.flames import CLAIMS_OF_A_JUDGE, FLAMES_SHA256, of_judging, of_prompts
from lib.evidence.models import of_alignment, of_comparison, of_diagnosis, of_features
from lib.evidence.rows import frame, with_ceiling
from lib.evidence.vectors import CLAIMS_OF_THE_FILE, of_vectors

__all__ = [
    "CLAIMS_OF_A_JUDGE", "CLAIMS_OF_THE_FILE", "FLAMES_SHA256", "frame", "of_alignment", "of_comparison", "of_diagnosis",
    "of_features", "of_judging", "of_prompts", "of_vectors", "with_ceiling",
]  # fmt: skip
