"""Random transformers: the same for the same generator, and nobody else's random numbers are used up."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from compresslab.workbench.hf import NAMES, random_transformer


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_weights_and_the_global_generator_is_left_alone(name):
    state, tokens = torch.random.get_rng_state(), torch.arange(12).reshape(2, 6)
    first, again = random_transformer(name), random_transformer(name)
    other = random_transformer(name, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        outputs = [model(tokens)[0] for model in (first, again, other)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert not first.training


def test_a_name_that_is_not_known():
    with pytest.raises(ValueError, match="name='t5' must be one of llama"):
        random_transformer("t5")
