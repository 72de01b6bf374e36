"""The weight of a layer with the least squared error of its output, from sums over tokens alone.

With X (N, I) the inputs, Y (N, O) the outputs wanted, W_0 a weight to stay near to:

    min_W  |Y - X W^T|^2 + ridge * mean(diag(X^T X)) * |W - W_0|^2
    W = W_0 + (Y^T X - W_0 X^T X) (X^T X + ridge * mean(diag(X^T X)) * 1)^-1
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments", "ridge_fit"]


class Moments:
    """Sums of products of inputs and outputs over tokens, with a one among the inputs where the layer has a bias."""

    def __init__(self) -> None:
        self.xx: Tensor | float = 0.0  # (I, I)
        self.yx: Tensor | float = 0.0  # (O, I)
        self.yy: Tensor | float = 0.0  # (): of all outputs
        self.tokens = 0

    def update(self, x: Tensor, y: Tensor) -> None:
        """Count in inputs (n, I) and the outputs wanted for them (n, O)."""
        x, y = x.double(), y.double()
        self.xx, self.yx, self.yy = self.xx + x.T @ x, self.yx + y.T @ x, self.yy + y.square().sum()
        self.tokens += len(x)

    def error(self, weight: Tensor) -> float:
        """|Y - X W^T|^2 / |Y|^2."""
        w = weight.double()
        square = self.yy - 2 * (w * self.yx).sum() + ((w @ self.xx) * w).sum()
        return float((square / max(float(self.yy), torch.finfo(torch.float64).tiny)).clamp(min=0))


def ridge_fit(xx: Tensor, yx: Tensor, weight: Tensor, *, ridge: float = 1e-3) -> Tensor:
    """The weight with the least squared error of the output, held near to the one given.

    Args:
        xx: (I, I), the sum over tokens of x x^T.
        yx: (O, I), the sum over tokens of y x^T.
        weight: (O, I), where the ridge pulls to.
        ridge: relative to the mean of the diagonal, above 0.

    Returns:
        (O, I) in float64.

    Raises:
        ValueError: ``ridge`` is not above 0.

    Example:
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [6.0]])  # y = 3 x
        >>> ridge_fit(x.T @ x, y.T @ x, torch.zeros(1, 1), ridge=1e-12).round(decimals=6)
        tensor([[3.]], dtype=torch.float64)
    """
    if not ridge > 0:
        raise ValueError(f"ridge={ridge} must be above 0, for inputs may repeat one another; try 0.001")
    xx, start = xx.double(), weight.double()
    damping = ridge * xx.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    left = xx + damping * torch.eye(len(xx), dtype=torch.float64, device=xx.device)
    return start + torch.linalg.solve(left, (yx.double() - start @ xx).T).T
