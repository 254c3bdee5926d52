"""Names of the tensors by which a scaled float8 file keeps its weights in range. Imports no torch.

ComfyUI writes them: `LAYER.weight` in 8 bits, the factor that it is multiplied with, and beside them what
a computation in 8 bits alone needs.
"""

FACTORS = ("scale_weight", "weight_scale")  # of a layer's weight, under older and newer names
OF_INPUTS = ("scale_input", "input_scale", "comfy_quant")  # for computing in 8 bits alone
_MARK = "scaled_fp8"  # a tensor without a meaning of its own that marks such a file


def is_scale(key: str) -> bool:
    """Whether a tensor of that name is none of a model's weights, but says how they are scaled."""
    return key.rpartition(".")[2] in (*FACTORS, *OF_INPUTS, _MARK)


def is_mark(key: str) -> bool:
    """Whether a tensor of that name marks a file whose weights are scaled."""
    return key.rpartition(".")[2] == _MARK
