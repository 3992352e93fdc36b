"""The claims ledger: what is said of guidance on mixtures, and what was measured."""

from toy_experiments.claims import field, s2_paper
from toy_experiments.claims.ledger import Claim, Judgement, judge_all, write_ledger

CLAIMS: tuple[Claim, ...] = (*s2_paper.CLAIMS, *field.CLAIMS)

__all__ = ["CLAIMS", "Claim", "Judgement", "judge_all", "write_ledger"]
