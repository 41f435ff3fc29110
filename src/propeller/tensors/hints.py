"""What has another name here than in NumPy or PyTorch, for the errors that say so."""

from collections.abc import Iterable

_FUNCTIONS = (
    "exp expm1 log log1p sqrt square sign sin cos tanh erf isnan relu leaky_relu elu sigmoid softplus silu gelu "
    "softmax log_softmax logsumexp norm maximum minimum matmul where one_hot cumsum sort argsort nonzero flip"
)

_FUNCTIONS_OF_MORE = (
    "top_k split expand_dims swapaxes moveaxis roll repeat tile pad take_along_axis broadcast_to"
)

EQUIVALENTS = {
    **{name: f"{name}(x)" for name in _FUNCTIONS.split()},
    **{name: f"{name}(x, …)" for name in _FUNCTIONS_OF_MORE.split()},
    "dot": "x @ y",
    "mm": "x @ y",
    "outer": "x[:, None] * y",
    "power": "x ** y",
    "pow": "x ** y",
    "linalg": "norm(x)",
    "swish": "silu(x)",
    "nll_loss": "cross_entropy(logits, labels), of what softmax takes",
    "binary_cross_entropy_with_logits": "binary_cross_entropy(logits, labels)",
    "smooth_l1_loss": "huber_loss(x, target)",
    "ravel": "x.flatten()",
    "view": "x.reshape(…)",
    "topk": "top_k(x, k)",
    "unbind": "list(x)",
    "movedim": "moveaxis(x, source, destination)",
    "flatten": "x.flatten()",
    "permute": "x.transpose(…)",
    "unsqueeze": "x[:, None]",
    "newaxis": "None: x[:, None]",
    "expand": "broadcast_to(x, shape)",
    "asarray": "array(…)",
    "tensor": "array(…)",
    "empty": "zeros(…)",
    "cat": "concatenate([…])",
    "concat": "concatenate([…])",
    "vstack": "concatenate([…])",
    "hstack": "concatenate([…], axis=1)",
    "take": "x[rows]",
    "index_select": "x[rows]",
    "masked_select": "x[mask]",
    "masked_fill": "where(mask, value, x)",
    "gather": "take_along_axis(x, indices, axis)",
    "scatter_add": "add_rows(values, rows, count)",
    "index_add": "add_rows(values, rows, count)",
    "segment_sum": "add_rows(values, rows, count)",
    "bincount": "add_rows(ones_like(x), x, count)",
    "fill": "x[...] = value",
    "clamp": "x.clip(low, high)",
    "numpy": "x.tolist()",
    "detach": "x as it is: gradients belong to grad(f)",
    "cpu": "x as it is",
    "to": "x.astype(dtype)",
    "float": "x.astype('float32')",
    "int32": "int64",
    "half": "x.astype('float16')",
    "double": "float64",
    "while_loop": "scan(f, carry, length=n)",
    "fori_loop": "scan(f, carry, length=n)",
    "backward": "grad(f)",
    "randn": "random(seed).normal(shape)",
    "rand": "random(seed).uniform(shape)",
    "PRNGKey": "random(seed).key()",
    "bernoulli": "uniform(key, shape) < p",
    "default_rng": "random(seed)",
}


def hint(name: str, known: Iterable[str] = ()) -> str:
    """What to write here for that name, or which of those that are ``known`` was meant, to end an error with; empty if neither is."""
    if name in EQUIVALENTS:
        return f"; here it is {EQUIVALENTS[name]}"
    if name.startswith("_"):  # what is asked for by machinery
        return ""
    try:
        from difflib import get_close_matches  # only now: programs start without it
    except ImportError:  # a runtime that leaves it out
        return ""
    near = get_close_matches(name, [one for one in known if not one.startswith("_")], 1)
    return f"; did you mean {near[0]!r}?" if near else ""
