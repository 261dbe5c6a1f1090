"""Which operators a graph from a file may call: those that only compute."""

from __future__ import annotations

import re

import torch

__all__ = ["operator_problem"]

# wrappers of bodies that are in the file themselves; others call functions, kernels or libraries by name
_REGIONS = frozenset(
    "associative_scan checkpoint cond flex_attention hints_wrapper invoke_subgraph map map_impl out_dtype scan "
    "strict_mode switch tag_activation_checkpoint while_loop wrap wrap_activation_checkpoint wrap_with_autocast "
    "wrap_with_set_grad_enabled".split()
)
_ARITHMETIC = frozenset(
    [
        *(f"torch.sym_{name}" for name in "float int ite max min not sqrt sum".split()),
        "torch.sym_fresh_size",
        *(f"torch._sym_{name}" for name in ("sqrt",)),
        *(f"math.{name}" for name in "ceil floor trunc sqrt fabs isinf isnan".split()),
        *(
            f"_operator.{name}"
            for name in "add sub mul truediv floordiv mod pow neg pos abs eq ne lt le gt ge and_ or_ xor not_ "
            "getitem lshift rshift".split()
        ),
    ]
)
# how something is computed, in words; any other text could name a file, a kernel or a group of processes
_WORDS = frozenset(
    "approximate assert_msg driver equation indexing interpolation mode norm ord p pad_mode padding padding_side "
    "reduce rounding_mode side UPLO".split()
)
_FACTORIES = frozenset(
    "arange bartlett_window blackman_window empty empty_permuted empty_strided eye fft_fftfreq fft_rfftfreq full "
    "hamming_window hann_window kaiser_window linspace logspace normal ones rand randint randn randperm range "
    "scalar_tensor tril_indices triu_indices zeros".split()
)
_CHECK = re.compile(r"_?(functional_)?(assert|sym_constrain)_\w+")
# torch's own machinery: processes, memory, devices, kernels of its compiler
_INTERNAL = re.compile(
    r"_.*|c10d.*|coor|cuda|debug.*|export|flex_.*|fsdp|inductor.*|mempool|mkl.*|onednn|onnx.*|prim|profiler|"
    r"quantization|rngprims|rpc|sparse|static_runtime|streams|symm_mem"
)
_NOT_COMPUTING = re.compile(
    r"backward|confirmed_by_owner|data|from_file|is_pinned|manual_seed|pin_memory|record_stream|rename_?|"
    r"resize\w*|retain_grad|save|seed|set_?|set_data|share_memory_|swap_?|to_mkldnn|warn"
)
# what begins with an underscore is internal; these are seen in graphs of models all the same
_PRIVATE = re.compile(
    r"_(adaptive_avg_pool\dd|addmm_activation|aminmax|batch_norm_(impl_index|no_update)|cast_\w+|cdist_forward|"
    r"chunk_cat|conj\w*|convolution(_mode)?|dim_arange|efficient_attention_forward|embedding_bag(_forward_only)?|"
    r"euclidean_dist|fake_quantize\w*|fft_\w+|flash_attention_forward|fused_moving_avg_obs_fq_helper\w*|fused_rms_norm|"
    r"grouped_mm|index_put_impl_|int_mm|is_(all|any)_true|linalg_(det|eigh|slogdet|solve_ex|svd)|local_scalar_dense|log_softmax|"
    r"logcumsumexp|masked_softmax|native_batch_norm_legit\w*|native_multi_head_attention|neg_view|pack_padded_sequence|"
    r"pad_circular|pad_enum|pad_packed_sequence|pdist_forward|prelu_kernel|reshape_alias|reshape_copy|safe_softmax|"
    r"scaled_dot_product_\w+|scaled_(grouped_)?mm\w*|shape_as_tensor|softmax|stack|thnn_\w+|to_copy|to_cpu|"
    r"transformer_encoder_layer_fwd|trilinear|unique2?|unsafe_(index|index_put|masked_index|view)|upsample_\w+|weight_norm\w*|"
    r"weight_int\dpack_mm\w*|_i?(and|or|xor|lshift|rshift)__)"
)
_PLAIN = frozenset("Tensor int bool float number complex Device Generator str".split())


def operator_problem(target: str) -> str | None:
    """What speaks against calling an operator that a file names; None if it only computes.

    Decided from its schema, so that it holds for operators of any library that is imported: it takes tensors, or is one of
    torch's factories, returns what it computes, and takes no text that could name a file. Nothing is imported or run.

    Args:
        target: as in the file, such as ``"torch.ops.aten.relu.default"``.
    """
    if target in _ARITHMETIC:
        return None
    parts = target.split(".")
    if parts[:3] == ["torch", "ops", "higher_order"] and len(parts) == 4:
        return None if parts[3] in _REGIONS else "which runs more than the body that it is given"
    if parts[:2] != ["torch", "ops"] or len(parts) != 5 or not all(part.isidentifier() for part in parts):
        return "which is no operator"
    library, name, overload = parts[2:]
    if library != "aten" and _INTERNAL.fullmatch(library):
        return "which is a part of torch's own machinery"
    try:
        schema = torch._C._get_schema(f"{library}::{name}", "" if overload == "default" else overload)
    except RuntimeError:
        known = (
            "of another version of torch"
            if library == "aten"
            else f"of {library!r}: import that library first"
        )
        return f"which is not registered here; it may be {known}"
    return _schema_problem(library, name, schema)


def _schema_problem(library: str, name: str, schema: torch.FunctionSchema) -> str | None:
    taken = [(argument.name, _bare(argument.type)) for argument in schema.arguments]
    given = [_bare(each.type) for each in schema.returns]
    if any(kind not in _PLAIN for _, kind in taken):
        return "which takes other things than tensors and numbers"
    if any(kind == "str" and (library != "aten" or word not in _WORDS) for word, kind in taken):
        return "which takes a text that could name a file"
    if library == "aten" and _CHECK.fullmatch(name):
        return None
    if library == "aten" and (
        _NOT_COMPUTING.fullmatch(name) or (name[0] == "_" and not _PRIVATE.fullmatch(name))
    ):
        return "which does more than compute"
    if not given or not set(given) <= _PLAIN:
        return "which returns nothing that is computed"
    if not any(kind == "Tensor" for _, kind in taken) and not (library == "aten" and name in _FACTORIES):
        return "which takes no tensor"
    return None


def _bare(kind: object) -> str:
    """The type without ``Optional`` and ``List`` around it."""
    return re.sub(r"\b(Optional|List)\[|\]", "", str(kind))
