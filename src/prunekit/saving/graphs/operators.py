"""The operators that a saved graph may hold, by name."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

# What computes on tensors and numbers alone. Not among them is whatever touches files, storages or memory
# directly: from_file, set_, as_strided, resize_ and the like.
_TEXT = """
    adaptive_avg_pool1d _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d addbmm addmm addmv adjoint alias all alpha_dropout amax amin
    __and__ any arange argmax argmin argsort atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d
    avg_pool3d baddbmm batch_norm bernoulli bitwise_and bitwise_not bitwise_or bmm broadcast_tensors
    broadcast_to bucketize cat cdist celu channel_shuffle chunk clip clone col2im concat concatenate
    constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    convolution copy cosine_similarity cummax cummin cumprod cumsum detach diag diag_embed diagonal diff
    dot dropout dstack einsum embedding embedding_bag empty empty_like empty_permuted expand expand_as
    eye feature_alpha_dropout feature_dropout fill flatten flip full full_like _fused_rms_norm gather ger glu
    grid_sampler group_norm gru hardsigmoid hardswish hsplit hstack im2col index index_add index_copy
    index_fill index_put index_select instance_norm layer_norm lift_fresh lift_fresh_copy linalg_cross
    linalg_norm linalg_vector_norm linear linspace log_sigmoid log_softmax _log_softmax logcumsumexp
    logsumexp lstm mH mT masked_scatter masked_select matmul matrix_H max max_pool1d max_pool2d
    max_pool2d_with_indices max_pool3d mean median meshgrid min mish mm moveaxis movedim multinomial mv
    narrow native_batch_norm _native_batch_norm_legit_no_training native_channel_shuffle native_dropout
    native_group_norm native_layer_norm new_empty new_full new_ones new_zeros nonzero norm numpy_T
    one_hot ones ones_like __or__ outer pad pairwise_distance permute pixel_shuffle pixel_unshuffle
    prelu prod rand rand_like randint randint_like randn randn_like randperm reflection_pad1d
    reflection_pad2d reflection_pad3d relu6 repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d reshape _reshape_alias reshape_as _reshape_copy result_type rms_norm rnn_relu
    rnn_tanh roll rot90 rrelu _safe_softmax scalar_tensor scaled_dot_product_attention scatter
    scatter_add scatter_reduce select select_scatter slice slice_scatter _softmax softmax sort split
    split_with_sizes squeeze stack std std_mean sum swapaxes swapdims t take take_along_dim tensor_split
    tile to _to_copy topk trace transpose tril tril_indices triu triu_indices type_as unbind unflatten
    unfold unsafe_chunk unsafe_split _unsafe_view unsqueeze upsample_bicubic2d upsample_bilinear2d
    upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d var
    var_mean view view_as vsplit vstack where __xor__ zero zeros zeros_like
"""
_NAMED = frozenset(_TEXT.split())
_HIGHER = ("wrap_with_set_grad_enabled", "wrap_with_autocast")


def operator_name(target: Any) -> str | None:
    """The name under which an operator is saved; None for one that must not be."""
    if target is operator.getitem:
        return "getitem"
    if isinstance(target, torch._ops.HigherOrderOperator):
        name = str(target)
        return name if name in _HIGHER else None
    if isinstance(target, torch._ops.OpOverload) and _harmless(target):
        return f"{target.overloadpacket.__name__}.{target._overloadname}"
    return None


def named_operator(name: str) -> Callable[..., Any]:
    """The operator of that name.

    Raises:
        ValueError: for one that is not among those allowed, or that this PyTorch does not have.
    """
    if name == "getitem":
        return operator.getitem
    if name in _HIGHER:
        return getattr(torch.ops.higher_order, name)
    packet, _, overload = name.partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None) if packet and overload else None
    if not isinstance(found, torch._ops.OpOverload) or not _harmless(found):
        raise ValueError(f"{name[:60]!r} is no operator that a saved graph may hold")
    return found


def keyword_names(target: Callable[..., Any]) -> set[str]:
    """The names of the arguments that an operator takes."""
    return {each.name for each in target._schema.arguments} if hasattr(target, "_schema") else set()


def _harmless(target: torch._ops.OpOverload) -> bool:
    """PyTorch's own, and named here or said to be elementwise by PyTorch; in place or not."""
    if target.namespace != "aten" or target._schema.name != f"aten::{target.overloadpacket.__name__}":
        return False
    name = target.overloadpacket.__name__
    plain = name.removesuffix("_") if target._schema.is_mutable and not name.endswith("__") else name
    if name in _NAMED or plain in _NAMED:
        return True
    packet = getattr(torch.ops.aten, plain, None)
    overloads = [getattr(packet, each) for each in packet.overloads()] if packet is not None else []
    return any(torch.Tag.pointwise in each.tags for each in [target, *overloads])
