"""Which operators cannot carry the content of a removed position into a kept one."""

import torch

__all__ = ["is_transparent", "spatial_axes"]

# Elementwise, though torch does not tag them so.
_ELEMENTWISE = frozenset(
    """
    dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout batch_norm instance_norm
    _native_batch_norm_legit_no_training multiply multiply_ divide divide_ true_divide true_divide_
    subtract subtract_ floor_divide floor_divide_ negative negative_ absolute absolute_ clip clip_
    square_ prelu log_sigmoid special_expit hardswish_ hardsigmoid_ masked_fill masked_fill_ type_as to
    _to_copy zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full
    new_empty __or__ __and__ __xor__ rrelu rrelu_ softshrink celu_ selu_ elu_ mish_ relu6_ fill_ zero_
    copy_ float_power float_power_ where arctan2 special_log1p special_expm1
    """.split()
)

# Movement: every element of the result is one of the operands (or a constant).
_MOVEMENT = frozenset(
    """
    cat concat concatenate stack hstack vstack dstack column_stack roll flip fliplr flipud rot90 repeat
    repeat_interleave tile index index_select gather take take_along_dim embedding pad
    constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d _pad_circular pixel_shuffle pixel_unshuffle channel_shuffle
    native_channel_shuffle im2col tril triu tril_ triu_ diag_embed block_diag index_put index_put_
    index_copy index_copy_ index_fill index_fill_ scatter scatter_ slice_scatter select_scatter
    diagonal_scatter as_strided_scatter clone lift_fresh_copy meshgrid broadcast_tensors expand_copy
    permute_copy view_copy
    """.split()
)

# Pooling and resizing over trailing axes.
_SPATIAL = ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "upsample_", "_upsample_")


def is_transparent(target: torch._ops.OpOverload) -> bool:
    """Elementwise or movement: removed positions of an operand reach only positions that are removed too."""
    if torch.Tag.pointwise in target.tags:
        return True
    schema = target._schema
    name = schema.name.removeprefix("aten::")
    if name in _ELEMENTWISE or name in _MOVEMENT:
        return True
    aliases = [result.alias_info for result in schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def spatial_axes(name: str) -> int:
    """Number of trailing axes that a pooling or resizing operator works on; 0 for any other operator."""
    if not name.startswith(_SPATIAL):
        return 0
    return next((number for number in (1, 2, 3) if f"{number}d" in name), 0)
