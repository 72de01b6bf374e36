"""The truth that all scores guess at: take something out, and measure the loss.

One channel (or one weight) is removed, everything else stays, and the loss over all batches is compared with that of the
whole network. It costs a forward pass over the data for each removal, which is why there are scores. How good a score is
says its rank correlation with these losses, over all layers or within each; what it costs is counted in ``passes.py``.

Each removal alone, so what several do together is still a guess.

    Molchanov, Mallya, Tyree, Frosio and Kautz, "Importance estimation for neural network pruning", 2019,
    https://arxiv.org/abs/1906.10771, section 4.1 (the oracle, and the correlation with it)
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.importance.channels import Channels, find_channels
from compresslab.importance.gates import gated
from compresslab.importance.ranks import spearman
from compresslab.importance.scored import Batches, Loss, Scores, checked_loss, read, scored_weights, scoring

__all__ = ["Oracle", "channel_oracle", "split_half", "weight_oracle"]

Sweep = Callable[[Callable, Iterable], Iterable]
Place = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Oracle:
    """What each removal did to the loss."""

    places: tuple[Place, ...]  # (weight name, index of the channel, or of the weight in the flattened tensor)
    increase: Tensor  # (n,) float64: loss without it, less the loss of the whole network
    loss: float  # of the whole network

    def pick(self, scores: Mapping[str, Tensor]) -> Tensor:
        """(n,) float64: the scores of the things that were removed.

        Args:
            scores: (O,) by weight name for channels, or of the weight's shape for weights.

        Raises:
            ValueError: a layer is missing, or has fewer scores than channels or weights.

        Example:
            >>> Oracle((("w", 1), ("w", 0)), torch.zeros(2), 0.0).pick({"w": torch.tensor([5.0, 7.0])}).tolist()
            [7.0, 5.0]
        """
        for name, index in self.places:
            if name not in scores or index >= scores[name].numel():
                found = f"{scores[name].numel()} scores" if name in scores else "none"
                raise ValueError(f"scores must hold {name!r} with at least {index + 1} numbers, got {found}")
        flat = {name: tensor.flatten() for name, tensor in scores.items()}
        return torch.tensor([float(flat[name][index]) for name, index in self.places], dtype=torch.float64)

    def spearman(self, scores: Mapping[str, Tensor], *, absolute: bool = False) -> float:
        """The rank correlation of scores with the increase of the loss, over all layers together, in -1..1.

        Args:
            scores: as in ``pick``.
            absolute: with the size of the change, as the paper has it (equation 2): what lowers the loss counts too.

        Raises:
            ValueError: as in ``pick``, or fewer than 2 removals.

        Example:
            >>> Oracle((("w", 1), ("w", 0)), torch.tensor([0.3, 0.1]), 0.0).spearman({"w": torch.tensor([5.0, 7.0])})
            1.0
        """
        return spearman(self.pick(scores), self.increase.abs() if absolute else self.increase)

    def spearman_within(self, scores: Mapping[str, Tensor]) -> float:
        """The mean of the layers' own rank correlations, each counted by its removals; those with fewer than 3 are not.

        A layer whose scores are all equal counts as 0. It leaves aside whether a score can be compared between layers.

        Raises:
            ValueError: as in ``pick``, or no layer has 3 removals.

        Example:
            >>> places = tuple((name, index) for name in "ab" for index in range(3))
            >>> oracle = Oracle(places, torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0, 30.0]), 0.0)
            >>> oracle.spearman_within({"a": torch.tensor([7.0, 8.0, 9.0]), "b": torch.tensor([1.0, 2.0, 3.0])})
            1.0
        """
        picked, layers = self.pick(scores), [name for name, _ in self.places]
        rows = [torch.tensor([n == name for n in layers]) for name in dict.fromkeys(layers)]
        rows = [row for row in rows if row.sum() >= 3]
        if not rows:
            raise ValueError(f"{len(layers)} removals give no layer 3 of them, to rank within; remove more")
        own = [spearman(picked[row], self.increase[row]) for row in rows]
        counts = [int(row.sum()) for row in rows]
        return sum(n * rho for n, rho in zip(counts, own, strict=True) if rho == rho) / sum(counts)  # NaN: no order


def channel_oracle(
    model: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    *,
    names: Collection[str] | None = None,
    samples: int | None = None,
    sweep: Sweep = map,
    generator: torch.Generator | None = None,
) -> Oracle:
    """The increase of the loss when one output channel is 0, behind its batch norm and activation.

    Args:
        model: any module.
        batches: of (inputs, targets); they are kept, and gone through for each removal.
        loss_fn: (outputs, targets) -> mean over the samples.
        names: of weights of Linear and convolution layers; None for all but output layers.
        samples: how many channels, drawn from all; None for all.
        sweep: called as ``sweep(function, jobs)``, one job for each layer; a parallel map uses all cores. What it is
            given can be pickled, if ``loss_fn`` can.
        generator: draws the channels; one seeded with 0 if None.

    Raises:
        ValueError: more samples than channels, no batch, weights, data or loss not finite, or no channel to remove.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> model[0].weight.data, model[1].weight.data = torch.tensor([[2.0], [1.0]]), torch.tensor([[3.0, 5.0]])
        >>> found = channel_oracle(model, [(torch.ones(1, 1), None)], lambda y, t: -y.mean())  # 2 * 3 + 1 * 5
        >>> found.loss, found.places, found.increase.tolist()
        (-11.0, (('0.weight', 0), ('0.weight', 1)), [6.0, 5.0])
    """
    batches = list(read(batches))
    channels = find_channels(model, batches[0][0], names)
    sizes = {name: c.count for name, c in channels.items()}
    return _oracle(
        functools.partial(_without_channels, model, batches, loss_fn, channels), sizes, samples, sweep, generator
    )


def weight_oracle(
    model: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    *,
    names: Collection[str] | None = None,
    samples: int | None = None,
    sweep: Sweep = map,
    generator: torch.Generator | None = None,
) -> Oracle:
    """The increase of the loss when one weight is 0.

    Args:
        model, batches, loss_fn, sweep: as in ``channel_oracle``.
        names: as in ``scored_weights``.
        samples: how many weights, drawn from all; None for all.
        generator: draws the weights; one seeded with 0 if None.

    Raises:
        ValueError: more samples than weights, no batch, weights, data or loss not finite, or no weight to remove.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[2.0, -1.0]])
        >>> weight_oracle(layer, [(torch.ones(1, 2), None)], lambda y, t: y.mean()).increase.tolist()
        [-2.0, 1.0]
    """
    batches = list(read(batches))
    sizes = {name: weight.numel() for name, weight in scored_weights(model, names).items()}
    return _oracle(functools.partial(_without_weights, model, batches, loss_fn), sizes, samples, sweep, generator)


def split_half(score: Callable[[list], Mapping[str, Tensor]], batches: Batches) -> float:
    """How stable scores are: the rank correlation between those of every second batch and those of the others.

    Args:
        score: from batches to scores.
        batches: at least 2.

    Raises:
        ValueError: fewer than 2 batches.

    Example:
        >>> batches = [(torch.tensor([[1.0, 2.0]]), None), (torch.tensor([[3.0, 5.0]]), None)]
        >>> split_half(lambda part: {"w": part[0][0]}, batches)
        1.0
    """
    batches = list(batches)
    if len(batches) < 2:
        raise ValueError(f"{len(batches)} batches cannot be split in two halves; pass at least 2")
    halves = [torch.cat([s.flatten().double() for s in score(batches[place::2]).values()]) for place in (0, 1)]
    return spearman(*halves)


def _oracle(function: Callable, sizes: dict[str, int], samples: int | None, sweep: Sweep, generator) -> Oracle:
    """Draw places, one job for each layer, and the job of nothing for the whole network."""
    places = [(name, index) for name, size in sizes.items() for index in range(size)]
    if samples is not None and not 1 <= samples <= len(places):
        raise ValueError(f"samples={samples!r} must be in 1..{len(places)}, or None for all")
    if samples is not None:
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        places = [places[index] for index in torch.randperm(len(places), generator=generator)[:samples].sort().values]
    jobs = [[None], *([p for p in places if p[0] == name] for name in sizes)]
    whole, *losses = [loss for part in sweep(function, [job for job in jobs if job]) for loss in part]
    return Oracle(tuple(places), torch.tensor(losses, dtype=torch.float64) - whole, whole)


def _without_channels(
    model: nn.Module, batches: list, loss_fn: Loss, channels: dict[str, Channels], job: Sequence[Place | None]
) -> list[float]:
    """Losses without each of some channels; a job must not share the model with others that run beside it."""
    model, losses = copy.deepcopy(model), []
    for place in job:
        gates: Scores = {}
        if place is not None:
            gates[place[0]] = torch.ones(channels[place[0]].count, device=next(model.parameters()).device)
            gates[place[0]][place[1]] = 0
        with gated(model, channels, gates):
            losses.append(_mean_loss(model, batches, loss_fn))
    return losses


def _without_weights(model: nn.Module, batches: list, loss_fn: Loss, job: Sequence[Place | None]) -> list[float]:
    model, losses = copy.deepcopy(model), []
    for place in job:
        if place is None:
            losses.append(_mean_loss(model, batches, loss_fn))
            continue
        weight = model.get_parameter(place[0])
        index = torch.unravel_index(torch.tensor(place[1]), weight.shape)
        with torch.no_grad():
            kept = weight[index].clone()
            weight[index] = 0
            losses.append(_mean_loss(model, batches, loss_fn))
            weight[index] = kept
    return losses


def _mean_loss(model: nn.Module, batches: list, loss_fn: Loss) -> float:
    """Over all samples, however they are batched."""
    with scoring(model):
        losses = [len(inputs) * float(checked_loss(loss_fn(model(inputs), targets))) for inputs, targets in batches]
    return sum(losses) / sum(len(inputs) for inputs, _ in batches)
