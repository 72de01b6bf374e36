"""Codebooks: k-means against the exact optimum by dynamic programming, tables that learn, models and what they skip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn

from compresslab.factorization import finish_codebooks, kmeans, share_weights, train_codebooks
from compresslab.testing import check_compressor, hostile
from compresslab.workbench import models


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def optimum(values, clusters):
    """The least sum of squares over all ways to cut the sorted values into intervals, in float64."""
    x = values.double().sort().values
    sums, squares = (torch.cat([torch.zeros(1), p.cumsum(0)]).double() for p in (x, x.square()))
    n = len(x)

    def cost(i, j):
        return float(squares[j] - squares[i] - (sums[j] - sums[i]) ** 2 / (j - i))

    best = [0.0] + [cost(0, j) for j in range(1, n + 1)]
    for _ in range(clusters - 1):
        best = [0.0] + [min(best[i] + cost(i, j) for i in range(j)) for j in range(1, n + 1)]
    return best[n]


def test_by_hand():
    # linear start: 0, 4, 8. Sides {0, 1}, {3, 4}, {8}: means 0.5, 3.5, 8, and nobody changes sides
    found = kmeans(torch.tensor([[0.0, 1.0, 3.0], [4.0, 8.0, 8.0]]), 3)
    assert found.centroids.tolist() == [0.5, 3.5, 8.0]
    assert found.indices.tolist() == [[0, 0, 1], [1, 2, 2]] and found.indices.dtype == torch.uint8
    assert found.weight().tolist() == [[0.5, 0.5, 3.5], [3.5, 8.0, 8.0]]
    assert found.nbytes == 2 + 12  # six indices of 2 bits, three values
    middle = kmeans(torch.tensor([0.0, 1.0, 2.0]), 2)  # 1 lies between 0 and 2, and belongs to the lower
    assert middle.centroids.tolist() == [0.5, 2.0] and middle.indices.tolist() == [0, 0, 1]
    empty = kmeans(torch.tensor([0.0, 1.0, 10.0]), 4)  # 3.3 and 6.7 have nobody, stay where they are, and are left out
    assert empty.centroids.tolist() == [0.5, 10.0]
    masked = kmeans(torch.tensor([5.0, 1.0, -1.0]), 2, mask=torch.tensor([False, True, True]))
    assert masked.centroids.tolist() == [-1.0, 1.0] and masked.weight().tolist() == [0.0, 1.0, -1.0]
    assert masked.nbytes == 1 + 8


def test_the_three_starts_by_hand():
    values = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.2, 1.0])
    assert kmeans(values, 2, init="linear", iterations=0).centroids.tolist() == [0.0, 1.0]
    # the places (0.5, 1.5) / 2 * 8 = 2 and 6 of the sorted values
    assert kmeans(values, 2, init="density", iterations=0).centroids.tolist() == pytest.approx([0.0, 0.2])
    drawn = [
        kmeans(values, 2, init="random", iterations=0, generator=torch.Generator().manual_seed(s)) for s in range(8)
    ]
    assert all({*found.centroids.tolist()} <= {*values.tolist()} for found in drawn)
    assert len({tuple(found.centroids.tolist()) for found in drawn}) > 1
    assert torch.equal(kmeans(values, 2, init="random").centroids, kmeans(values, 2, init="random").centroids)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 6), st.sampled_from(["linear", "density", "random"]), st.integers(0, 10**6))
def test_it_is_a_fixed_point_and_no_better_than_the_optimum(count, clusters, init, seed):
    values = draw(count, seed=seed)
    found = kmeans(values, clusters, init=init, generator=torch.Generator().manual_seed(seed))
    nearest = (values.unsqueeze(1) - found.centroids).abs().min(1)
    assert torch.allclose((values - found.weight()).abs(), nearest.values, atol=1e-6)
    for index, centroid in enumerate(found.centroids):
        assert torch.allclose(centroid, values[found.indices == index].mean(), atol=1e-5)
    error = (values.double() - found.weight().double()).square().sum()
    assert float(error) >= optimum(values, clusters) - 1e-5
    if len(found.centroids) >= len(values.unique()):
        assert float(error) < 1e-9


def test_near_the_optimum_and_as_good_as_sklearn():
    values = draw(120, seed=5)
    best = min(
        float((values - kmeans(values, 5, init="random", generator=torch.Generator().manual_seed(seed)).weight()).square().sum())
        for seed in range(20)
    )  # fmt: skip
    assert best <= optimum(values, 5) * 1.001
    values = draw(3000, seed=6)
    start = torch.linspace(float(values.min()), float(values.max()), 16).unsqueeze(1).numpy()
    theirs = KMeans(16, init=start, n_init=1, max_iter=300, tol=0).fit(values.unsqueeze(1).numpy())
    ours = (values - kmeans(values, 16, iterations=300).weight()).square().sum()
    assert float(ours) == pytest.approx(theirs.inertia_, rel=1e-3)


def test_more_clusters_are_better_and_masks_take_no_part():
    values, mask = draw(50, 40), draw(50, 40, seed=1) > 0.5
    errors = [(values - kmeans(values, k, init="density").weight()).square().sum().item() for k in (2, 4, 16, 64, 256)]
    assert errors == sorted(errors, reverse=True)
    found = kmeans(torch.where(mask, values, 1e6), 16, mask=mask)
    assert torch.equal(found.centroids, kmeans(values[mask], 16).centroids)
    assert not found.weight()[~mask].any()
    many = kmeans(values, 300, init="density")
    assert many.indices.dtype == torch.int16 and int(many.indices.max()) == len(many.centroids) - 1 > 255


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_layout(dtype):
    values = draw(6, 8).to(dtype).t()
    found = kmeans(values, 4)
    assert found.centroids.dtype == dtype and found.weight().shape == (8, 6)
    assert torch.equal(found.weight(), kmeans(values.contiguous(), 4).weight())


def test_errors_of_kmeans():
    values = torch.ones(3)
    for options, message in (
        ({"clusters": 0}, r"clusters=0 must be a whole number in 1\.\.4096; try 16"),
        ({"clusters": True}, "clusters=True must be"),
        ({"clusters": 2, "init": "best"}, "init='best' must be one of linear, density, random"),
        ({"clusters": 2, "iterations": -1}, "iterations=-1 must be a whole number, at least 0"),
        ({"clusters": 2, "mask": torch.ones(2, dtype=torch.bool)}, r"mask must be bool of shape \(3,\), got torch.bool \(2,\)"),
        ({"clusters": 2, "mask": torch.ones(3)}, "mask must be bool of shape"),
        ({"clusters": 2, "mask": torch.zeros(3, dtype=torch.bool)}, "values must be finite and at least one kept, got 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            kmeans(values, **options)
    with pytest.raises(ValueError, match="values must be finite"):
        kmeans(values * float("nan"), 2)


def test_a_model_its_masks_and_its_bytes():
    model = models.build("mlp", width=16)
    masks = {"layers.0.weight": draw(16, 1024) > 0}
    result = share_weights(model, clusters=4, masks=masks)
    weight = result.model.layers[0].weight
    assert len(weight[masks["layers.0.weight"]].unique()) == 4 and not weight[~masks["layers.0.weight"]].any()
    assert list(result.codebooks) == ["layers.0.weight", "layers.2.weight", "head.weight"]
    assert result.skipped["head.bias"] == "only matrices and kernels are coded"
    assert torch.equal(result.codebooks["head.weight"].weight(), result.model.head.weight)
    assert result.codebooks["head.weight"].nbytes == 62 * 16 * 2 // 8 + 16
    some = share_weights(model, clusters={"head.weight": 4, "layers.0.weight": 2}, skip=["layers.0.weight"])
    assert some.skipped["layers.2.weight"] == some.skipped["layers.0.weight"] == "left out by the caller"


def test_a_codebook_larger_than_what_it_codes():
    result = share_weights(nn.Sequential(nn.Linear(4, 8), nn.Linear(64, 64)), clusters=256)
    assert "saves nothing" in result.skipped["0.weight"] and list(result.codebooks) == ["1.weight"]
    masks = {"0.weight": torch.zeros(8, 4, dtype=torch.bool)}
    empty = share_weights(nn.Sequential(nn.Linear(4, 8), nn.Linear(64, 64)), masks=masks)
    assert empty.skipped["0.weight"] == "the mask keeps nothing"


def test_tables_learn_the_sum_of_the_gradients():
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 1.1, 5.0], [0.0, 4.9, 5.1]])
    mask = torch.tensor([[True, True, True], [False, True, True]])
    result = share_weights(model, clusters=2, masks={"0.weight": mask})
    new = train_codebooks(result.model, result.codebooks)
    table = new[0].parametrizations.weight.original
    assert table.tolist() == pytest.approx([1.05, 5.0])
    new(torch.tensor([[1.0, 2.0, 4.0]])).sum().backward()  # 1 + 2 of the first; 4, and 2 + 4 of the second row
    assert table.grad.tolist() == [3.0, 10.0]
    torch.optim.SGD(new.parameters(), lr=0.1).step()
    plain = finish_codebooks(new)
    assert type(plain[0]) is nn.Linear and list(plain.state_dict()) == ["0.weight"]
    assert torch.allclose(plain[0].weight, torch.tensor([[0.75, 0.75, 4.0], [0.0, 4.0, 4.0]]))
    assert isinstance(plain[0].weight, nn.Parameter) and plain[0].weight.requires_grad
    assert torch.equal(new[0].weight, plain[0].weight)  # the one with tables is as it was
    assert not hasattr(nn.Sequential(nn.ReLU()), "parametrizations")
    assert torch.equal(finish_codebooks(model)[0].weight, model[0].weight)


def test_tied_and_frozen_weights_and_saving():
    case = hostile("tied").model
    case.mix.weight.requires_grad_(False)
    result = share_weights(case, clusters=4)
    new = train_codebooks(result.model, result.codebooks)
    parts = [module.parametrizations.weight.original for module in (new.embedding, new.head, new.mix)]
    assert parts[0] is parts[1] and not parts[2].requires_grad
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    assert torch.equal(new(tokens), result.model(tokens))
    fresh = train_codebooks(result.model, result.codebooks)
    with torch.no_grad():
        parts[0].add_(1.0)
    fresh.load_state_dict(new.state_dict())
    assert torch.equal(fresh(tokens), new(tokens))
    plain = finish_codebooks(new)
    assert plain.head.weight is plain.embedding.weight and not plain.mix.weight.requires_grad
    assert torch.equal(plain(tokens), new(tokens))


def test_what_is_parametrized_already():
    model = nn.Sequential(nn.Linear(16, 16), nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)))
    result = share_weights(model, clusters=4)
    assert list(result.codebooks) == ["0.weight"]
    assert result.skipped["1.parametrizations.weight.original1"] == "it belongs to a parametrization"
    with pytest.raises(ValueError, match="1 has a parametrization; finish_codebooks or remove_parametrizations"):
        train_codebooks(result.model, result.codebooks)
    kept = finish_codebooks(model)  # not ours: left as it is
    assert torch.equal(kept(torch.ones(1, 16)), model(torch.ones(1, 16)))


def test_errors_of_models():
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"\['1.weight'\] must be parameters of the model; choose from \['0.weight'"):
        share_weights(model, clusters={"1.weight": 2})
    with pytest.raises(ValueError, match=r"\['conv'\] must be parameters"):
        share_weights(model, skip=["conv"])
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(8, 8\)"):
        share_weights(model, masks={"0.weight": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"LayerNorm has no weight to code: \{'weight': 'only matrices"):
        share_weights(nn.LayerNorm(4))
    with pytest.raises(ValueError, match="codebooks holds no table"):
        train_codebooks(model, {})
    tables = share_weights(model, clusters=2).codebooks
    with pytest.raises(ValueError, match=r"0.weight must be a parameter of shape \(8, 8\); have \['weight'"):
        train_codebooks(nn.Linear(8, 8), tables)
    lstm = share_weights(models.build("lstm", width=8), clusters=2)
    assert "rnn.weight_hh_l0" in lstm.codebooks and len(lstm.model.rnn.weight_hh_l0.unique()) == 2
    with pytest.raises(ValueError, match=r"rnn.weight_ih_l0 belongs to a recurrent layer"):
        train_codebooks(lstm.model, lstm.codebooks)


@pytest.mark.parametrize("how", ["values", "tables", "finished"])
def test_the_common_checks(how):
    def compress(model, batches):
        result = share_weights(model, clusters=4)
        if how == "values":
            return result.model
        new = train_codebooks(result.model, result.codebooks)
        return new if how == "tables" else finish_codebooks(new)

    refused = {verdict.model for verdict in check_compressor(compress) if verdict.outcome == "refused"}
    assert refused == {"no_layers", "nan", "infinity", "meta"} | ({"recurrent"} if how != "values" else set())
