"""Losses for multi-label tagging, on logits.

- `fatai.losses.base`: `TagLoss` and `PerTagLoss`, the checks, weights and reductions that all losses share.
- `fatai.losses.losses`: one class for each formula: cross-entropies, focal, LSEP, Lovasz, and the noise-robust GCE,
  SCE, Lsoft, Lq.
- `fatai.losses.composite`: losses made of other losses: label smoothing, sums, one loss for curated and another for
  noisy clips, auxiliary outputs.

Importing this package fills the registry `LOSSES`; it needs torch alone.
"""

from fatai.losses.base import PerTagLoss, TagLoss
from fatai.losses.composite import AuxLoss, CombinedLoss, LabelSmoothing, SplitLoss, smooth_labels, weighted_loss
from fatai.losses.losses import BCE, GCE, LSEP, SCE, ClassBCE, Focal, Lovasz, Lq, Lsoft, MassBCE, class_weights

__all__ = [
    "AuxLoss",
    "BCE",
    "ClassBCE",
    "CombinedLoss",
    "Focal",
    "GCE",
    "LSEP",
    "LabelSmoothing",
    "Lovasz",
    "Lq",
    "Lsoft",
    "MassBCE",
    "PerTagLoss",
    "SCE",
    "SplitLoss",
    "TagLoss",
    "class_weights",
    "smooth_labels",
    "weighted_loss",
]
