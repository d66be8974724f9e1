"""Centred logits: what a law says of a model's logits, whatever constant was added to them.

    z_o = log p_o - mean over all tokens o' of log p_o'

Laws whose logits differ by a constant have one z. The mean is over the whole alphabet, so
columns are chosen after centring, never before.
"""

from jaxtyping import Float
from torch import Tensor

from myna.errors import InputError


def centred(laws: Float[Tensor, "*batch token"]) -> Float[Tensor, "*batch token"]:
    """Each law (nats) less its mean over the alphabet.

    Raises:
        InputError: for a law with a token of probability zero, which has no logit.
    """
    zero = laws.isneginf()
    if bool(zero.any()):
        row, token = zero.flatten(0, -2).nonzero()[0].tolist()
        raise InputError(
            f"law {row} gives token {token} probability zero, and its logit is minus infinity; "
            "centred logits need laws without zeros, as models that end in a softmax have them"
        )
    return laws - laws.mean(-1, keepdim=True)
