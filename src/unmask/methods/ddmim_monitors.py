"""Figures that show whether DDMIM's two networks still tell images apart."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unmask.methods.ddmim_terms import Encoded


@torch.no_grad()
def agreement_and_spread(student: Encoded, teacher: Encoded) -> dict[str, Float[Tensor, ""]]:
    """Measures how alike the two networks' features are and how far the images' features spread; low means collapse.

    Returns:
        `cosine_stage_<i>`: mean cosine similarity at each stage. For each network `<name>_std`: mean deviation of the
        pooled features over the batch; `<name>_effective_rank` and `<name>_rank_fraction`: the directions they spread
        over, and these as a fraction of those they could.
    """
    monitors = {
        f"cosine_stage_{stage}": F.cosine_similarity(ours.float(), theirs.float(), dim=-1).mean()
        for stage, (ours, theirs) in enumerate(zip(student.feature_points, teacher.feature_points, strict=True))
    }
    for name, encoded in (("student", student), ("teacher", teacher)):
        pooled = encoded.pooled.float()
        rank = effective_rank(pooled)
        monitors[f"{name}_std"] = pooled.std(dim=0, correction=0).mean()
        monitors[f"{name}_effective_rank"] = rank
        monitors[f"{name}_rank_fraction"] = rank / max(1, min(len(pooled) - 1, pooled.shape[1]))
    return monitors


def effective_rank(features: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Counts the directions features spread over, their mean removed; 1 where all are equal, NaN where not finite.

    It is exp of the entropy of the singular values, divided by their sum (Roy and Vetterli, 2007).
    """
    if not torch.isfinite(features).all():
        return features.new_full((), math.nan, dtype=torch.float32)
    values = torch.linalg.svdvals(features.float() - features.float().mean(dim=0))
    fractions = values / values.sum().clamp(min=1e-12)
    rank: Tensor = torch.special.entr(fractions).sum().exp()
    return rank
