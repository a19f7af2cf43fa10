"""The operators that a saved graph may hold, each overload by its exact name."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Each computes new values, or a view that stays inside of its argument, from tensors and numbers alone. None
# makes a view by strides, writes into an argument, takes `out=`, leaves memory uninitialised, or has results
# whose shapes depend on values. Left out besides is what trusts its arguments without a check, such as
# native_group_norm and embedding_bag, and what a single number makes run for ever, such as polynomials of a
# given order. `batch_norm` writes running statistics in training: `calls` allows it without them only.
_OVERLOADS = """
    abs.default acos.default acosh.default adaptive_avg_pool1d.default _adaptive_avg_pool2d.default
    adaptive_avg_pool2d.default adaptive_avg_pool3d.default adaptive_max_pool1d.default
    adaptive_max_pool2d.default adaptive_max_pool3d.default add.Tensor add.Scalar addbmm.default
    addcdiv.default addcmul.default addmm.default addmv.default adjoint.default alias.default all.default
    all.dim all.dims alpha_dropout.default amax.default amin.default __and__.Scalar __and__.Tensor any.default
    any.dim any.dims arange.default arange.start arange.start_step argmax.default argmin.default
    argsort.default argsort.stable asin.default asinh.default atan.default atan2.default atanh.default
    atleast_1d.default atleast_2d.default atleast_3d.default avg_pool1d.default avg_pool2d.default
    avg_pool3d.default baddbmm.default batch_norm.default bernoulli.default bitwise_and.Scalar
    bitwise_and.Tensor bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_not.default
    bitwise_or.Scalar bitwise_or.Tensor bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar
    bitwise_xor.Scalar bitwise_xor.Tensor bmm.default broadcast_tensors.default broadcast_to.default
    bucketize.Tensor cat.default ceil.default celu.default channel_shuffle.default
    chunk.default clamp.default clamp.Tensor clamp_max.default clamp_max.Tensor clamp_min.default
    clamp_min.Tensor clip.default clip.Tensor clone.default col2im.default concat.default concatenate.default
    constant_pad_nd.default contiguous.default conv1d.default conv1d.padding conv2d.default conv2d.padding
    conv3d.default conv3d.padding conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input
    convolution.default copy.default copysign.Scalar copysign.Tensor cos.default cosh.default
    cosine_similarity.default cummax.default cummin.default cumprod.default cumsum.default deg2rad.default
    detach.default diag.default diag_embed.default diagonal.default diagonal_scatter.default diff.default
    div.Scalar div.Scalar_mode div.Tensor div.Tensor_mode dot.default dropout.default dstack.default
    einsum.default elu.default embedding.default eq.Scalar eq.Tensor erf.default erfc.default erfinv.default
    exp.default exp2.default expand.default expand_as.default expm1.default exponential.default eye.default
    eye.m feature_alpha_dropout.default feature_dropout.default fill.Scalar fill.Tensor flatten.using_ints
    flip.default float_power.Scalar float_power.Tensor_Scalar float_power.Tensor_Tensor floor.default
    floor_divide.default floor_divide.Scalar fmax.default fmin.default fmod.Scalar fmod.Tensor frac.default
    full.default full_like.default gather.default ge.Scalar ge.Tensor gelu.default ger.default glu.default
    grid_sampler.default group_norm.default gru.input gt.Scalar gt.Tensor hardshrink.default
    hardsigmoid.default hardswish.default hardtanh.default heaviside.default hsplit.array hsplit.int
    hstack.default hypot.default im2col.default index.Tensor index_add.default index_copy.default
    index_fill.int_Scalar index_fill.int_Tensor index_put.default index_select.default instance_norm.default
    isfinite.default isinf.default isnan.default layer_norm.default le.Scalar le.Tensor leaky_relu.default
    lerp.Scalar lerp.Tensor lift_fresh_copy.default linalg_cross.default linalg_norm.default
    linalg_norm.ord_str linalg_vector_norm.default linear.default linspace.default log.default log10.default
    log1p.default log2.default log_sigmoid.default log_softmax.int _log_softmax.default logaddexp.default
    logaddexp2.default logcumsumexp.default logical_and.default logical_not.default logical_or.default
    logical_xor.default logit.default logsumexp.default lstm.input lt.Scalar lt.Tensor mH.default mT.default
    masked_fill.Scalar masked_fill.Tensor masked_scatter.default matmul.default matrix_H.default max.default
    max.dim max.other max_pool1d.default max_pool2d.default max_pool2d_with_indices.default
    max_pool3d.default maximum.default mean.default mean.dim median.default median.dim meshgrid.default
    meshgrid.indexing min.default min.dim min.other minimum.default mish.default mm.default
    moveaxis.int moveaxis.intlist movedim.int movedim.intlist mul.Scalar mul.Tensor mv.default
    nan_to_num.default narrow.default ne.Scalar ne.Tensor neg.default native_channel_shuffle.default
    native_dropout.default new_full.default new_ones.default new_zeros.default norm.Scalar
    norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype norm.ScalarOpt_dtype normal_functional.default
    numpy_T.default one_hot.default ones.default ones_like.default __or__.Scalar __or__.Tensor outer.default
    pad.default pairwise_distance.default permute.default pixel_shuffle.default pixel_unshuffle.default
    positive.default pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prelu.default prod.default prod.dim_int
    rad2deg.default rand_like.default randn_like.default reciprocal.default reflection_pad1d.default
    reflection_pad2d.default reflection_pad3d.default relu.default relu6.default remainder.Scalar
    remainder.Scalar_Tensor remainder.Tensor repeat.default repeat_interleave.self_int
    replication_pad1d.default replication_pad2d.default replication_pad3d.default reshape.default
    reshape_as.default rms_norm.default rnn_relu.input rnn_tanh.input roll.default rot90.default
    round.decimals round.default rrelu.default rsqrt.default rsub.Scalar rsub.Tensor _safe_softmax.default
    scalar_tensor.default scaled_dot_product_attention.default scatter.reduce scatter.src scatter.value
    scatter.value_reduce scatter_add.default scatter_reduce.two select.int select_scatter.default
    selu.default sgn.default sigmoid.default sign.default signbit.default silu.default sin.default
    sinc.default sinh.default slice.Tensor slice_scatter.default softmax.int _softmax.default
    softplus.default softshrink.default sort.default sort.stable split.Tensor split.sizes
    split_with_sizes.default sqrt.default square.default squeeze.default squeeze.dim squeeze.dims
    stack.default std.correction std.default std.dim std_mean.correction std_mean.default std_mean.dim
    sub.Scalar sub.Tensor sum.default sum.dim_IntList swapaxes.default swapdims.default t.default take.default
    take_along_dim.default tan.default tanh.default tensor_split.indices tensor_split.sections
    threshold.default tile.default to.device to.dtype to.dtype_layout to.other _to_copy.default topk.default
    trace.default transpose.int tril.default tril_indices.default triu.default triu_indices.default
    true_divide.Scalar true_divide.Tensor trunc.default type_as.default unbind.int unflatten.int
    unfold.default uniform.default unsafe_chunk.default unsafe_split.Tensor
    unsqueeze.default upsample_bicubic2d.default upsample_bicubic2d.vec upsample_bilinear2d.default
    upsample_bilinear2d.vec upsample_linear1d.default upsample_linear1d.vec upsample_nearest1d.default
    upsample_nearest1d.vec upsample_nearest2d.default upsample_nearest2d.vec upsample_nearest3d.default
    upsample_nearest3d.vec upsample_trilinear3d.default upsample_trilinear3d.vec var.correction var.default
    var.dim var_mean.correction var_mean.default var_mean.dim vdot.default
    vsplit.array vsplit.int vstack.default _weight_norm.default where.ScalarOther where.ScalarSelf where.self
    xlogy.Scalar_Other xlogy.Scalar_Self xlogy.Tensor __xor__.Scalar __xor__.Tensor zero.default
    zeros.default zeros_like.default
"""
OVERLOADS = frozenset(_OVERLOADS.split())
"""The names of the overloads, as `packet.overload`."""


def batch_norm_training(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm over the batch's own statistics: (output, new running mean, new running variance).

    `aten.batch_norm` writes the running statistics into its arguments; here they are results.

    Args:
        x: (N, C, ...) inputs.
        weight: (C,) scale.
        bias: (C,) shift.
        mean: (C,) running mean.
        variance: (C,) running variance.
        momentum: the share of the batch's statistics in the new running ones.
        eps: added to the variance.
    """
    new_mean, new_variance = mean.detach().clone(), variance.detach().clone()
    out = torch.ops.aten.batch_norm.default(
        x, weight, bias, new_mean, new_variance, True, momentum, eps, False
    )
    return out, new_mean, new_variance


def bernoulli_like(x: Tensor, p: float = 0.5) -> Tensor:
    """Zeros and ones of the shape and dtype of `x`, ones with probability `p` in [0, 1].

    `aten.bernoulli.p` draws the same, but cannot be run without data.
    """
    return torch.zeros_like(x).bernoulli_(p)


_OWN: dict[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    "bernoulli_like": bernoulli_like,
    "batch_norm_training": batch_norm_training,
}
_NAMES = {function: name for name, function in _OWN.items()}


def operator_name(target: Any) -> str | None:
    """The name under which an operator is saved; None for one that must not be."""
    if isinstance(target, torch._ops.OpOverload):
        name = f"{target.overloadpacket.__name__}.{target._overloadname}"
        return name if target.namespace == "aten" and name in OVERLOADS else None
    return _NAMES.get(target) if callable(target) else None


def named_operator(name: Any) -> Callable[..., Any]:
    """The operator of that name.

    Raises:
        ValueError: for one that is not among those allowed, or that this PyTorch does not have.
    """
    if isinstance(name, str) and name in _OWN:
        return _OWN[name]
    if not isinstance(name, str) or name not in OVERLOADS:
        raise ValueError(f"{str(name)[:60]!r} is no operator that a saved graph may hold")
    packet, _, overload = name.partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"this PyTorch has no operator {name!r}")
    return found


def argument_types(target: Callable[..., Any]) -> dict[str, str]:
    """The names of the arguments that an operator takes, with their types in its schema."""
    schema = getattr(target, "_schema", None)
    return {} if schema is None else {each.name: str(each.real_type) for each in schema.arguments}
