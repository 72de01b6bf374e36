"""Lesson 09: answers that solve its exercises, and typical wrong ones with the words they must be told."""

from __future__ import annotations

import torch


def energy(values, part, *, power=2, more=1, divide=True):
    kept = values.pow(power).cumsum(0)
    kept = kept / values.pow(power).sum() if divide else kept / 15
    return min(int((kept < part).sum()) + more, len(values))


def outputs(weight, x, rank, *, inputs=True, inverse=False, root=True):
    w, c = weight.double(), (x.T @ x / len(x)).double()
    if inverse:
        root_of = torch.linalg.cholesky(c)
        u, s, vh = torch.linalg.svd(w @ root_of, full_matrices=False)
        return u[:, :rank] * s[:rank] @ vh[:rank] @ torch.linalg.inv(root_of)
    values, vectors = torch.linalg.eigh(c)
    s = vectors * (values.clamp_min(0).sqrt() if root else values.clamp_min(0).square().square())
    u = torch.linalg.svd(w @ s if inputs else w, full_matrices=False).U[:, :rank]
    return u @ u.T @ w


def kmeans(weights, centroids, *, how="mean", empty="stay"):
    flat = weights.flatten()
    nearest = (flat.unsqueeze(1) - centroids).abs().argmin(1)
    if how == "numbers":
        return nearest.view_as(weights)
    new = centroids.clone()
    for k in range(len(centroids)):
        own = flat[nearest == k]
        if len(own) or empty == "nan":
            new[k] = own.sum() if how == "sum" else own.mean()
        elif empty == "zero":
            new[k] = 0
    return new


def gradient(grad, numbers, clusters, *, how="sum"):
    new = torch.zeros(clusters)
    if how == "last":
        for place, g in zip(numbers.flatten().tolist(), grad.flatten(), strict=True):
            new[place] = g
        return new
    new.index_add_(0, numbers.flatten(), grad.flatten())
    return new / torch.bincount(numbers.flatten(), minlength=clusters).clamp_min(1) if how == "mean" else new


SOLUTIONS = {
    "09.1": lambda out, into: (out * into - 1) // (out + into),
    "09.2": energy,
    "09.3": outputs,
    "09.4": kmeans,
    "09.5": gradient,
}
WRONG = {
    "09.1": [
        (min, "the largest rank there is"),
        (lambda out, into: out * into / (out + into), "a whole number"),
        (lambda out, into: -(-out * into // (out + into)), "round down"),
        (lambda out, into: out * into // (out + into), "fewer, not as many"),
        (lambda out, into: min(out, into) // 2, "right for a square"),
        (lambda out, into: max((out * into - 1) // (out + into), 1), "which no rank makes smaller"),
    ],
    "09.2": [
        (lambda v, e: energy(v, e, power=1), "sum of the squares"),
        (lambda v, e: energy(v, e, more=0), "count one more"),
        (lambda v, e: energy(v, e, divide=False), "divide by all of it"),
        (lambda v, e: energy(v, e, more=2) if e < 0.6 else energy(v, e), "the first alone keeps"),
    ],
    "09.3": [
        (lambda w, x, r: outputs(w, x, r, inputs=False), "the inputs were not looked at"),
        (lambda w, x, r: w, "its rank should be"),
        (lambda w, x, r: outputs(w, x, r).T, "should have the shape"),
        (lambda w, x, r: outputs(w, x, r, inverse=True), "stopped with|holds NaN|with 3 inputs|its rank"),
        (lambda w, x, r: outputs(w, x, r) * 0.5, "with 50 inputs"),
    ],
    "09.4": [
        (lambda w, c: kmeans(w, c, how="numbers"), "the numbers of the weights"),
        (lambda w, c: kmeans(w, c, how="sum"), "this is their sum"),
        (lambda w, c: kmeans(w, c, empty="nan"), "the mean of nobody"),
        (lambda w, c: kmeans(w, c, empty="zero"), "which stays"),
        (lambda w, c: c, "did not move"),
        (lambda w, c: kmeans(w, c).tolist(), "should be a tensor"),
    ],
    "09.5": [
        (lambda *a: gradient(*a, how="mean"), "no mean"),
        (lambda *a: gradient(*a, how="last"), "does not add repeated"),
        (lambda g, n, k: gradient(g, n, k)[[0, 1, 3]], "should have the shape"),
        (lambda g, n, k: -gradient(g, n, k), "it should be"),
    ],
}
