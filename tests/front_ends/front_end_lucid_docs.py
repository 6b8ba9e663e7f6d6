"""Lucid's front end with the formula on Lucid's page instead of its engine's, in the shared table."""

from __future__ import annotations

from collections.abc import Sequence

import reference as ref
from front_end import Array, FrontEnd, Settings, Whose
from front_end_lucid import LucidTrainer


def make(whose: Whose, params: Sequence[Array], groups: Sequence[tuple[Sequence[int], Settings]]) -> LucidTrainer:
    return LucidTrainer("ours", params, groups, convention="lucid_docs")


def make_like_torch(params: Sequence[Array], settings: Settings) -> LucidTrainer:
    return LucidTrainer("ours", params, [(range(len(params)), settings)], convention="torch")


FRONT_END = FrontEnd(
    "lucid_docs",
    "lucid_docs",
    make,
    formula=ref.lucid_docs_radam,
    has_theirs=False,
    group_settings=frozenset({"lr", "beta1", "beta2", "eps", "weight_decay"}),
    make_like_torch=make_like_torch,
)
