"""Resample the patch and position embeddings of a vision transformer to other patches and other numbers of them."""

import math
from collections.abc import Mapping

from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

PATCH_WEIGHT = "patch_embed.proj.weight"
POSITIONS = "pos_embed"


def resample_patches(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file with patch and position embeddings in the sizes of the network.

    Args:
        state: tensors of a file by timm's names; other networks than vision transformers have none that change.
        wanted: tensors of the network.

    Source: Beyer et al. 2023, FlexiViT, for patches: the new weights give the resized image what the old ones gave the
    image. Positions are interpolated as in DINOv2.
    """
    state = dict(state)
    old, new = state.get(PATCH_WEIGHT), wanted.get(PATCH_WEIGHT)
    if old is not None and new is not None and old.ndim == new.ndim == 4 and old.shape[2:] != new.shape[2:]:
        state[PATCH_WEIGHT] = resample_patch_embed(old.float(), list(new.shape[2:]))
    old, new = state.get(POSITIONS), wanted.get(POSITIONS)
    if old is not None and new is not None and old.ndim == new.ndim == 3 and old.shape[1] != new.shape[1]:
        # of both, the tokens beside the patches: those that leave a square
        prefix = next((n for n in range(8) if _is_square(old.shape[1] - n) and _is_square(new.shape[1] - n)), None)
        if prefix is not None:
            side = math.isqrt(new.shape[1] - prefix)
            state[POSITIONS] = resample_abs_pos_embed(old.float(), [side, side], num_prefix_tokens=prefix)
    return state


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count
