from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.measure.running import batch_size_of, call, evaluating, require_module, tensors_in, use_threads


def test_threads_are_set_and_restored_also_after_an_error():
    before, seen = torch.get_num_threads(), []

    def fail():
        with use_threads(before + 1):
            seen.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_bad_thread_counts_are_refused(count):
    with pytest.raises(ValueError, match=f"threads={count} must be an integer of at least 1"), use_threads(count):
        pass


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model must be an nn.Module, got int"):
        require_module(3)


def test_modes_go_back_through_train_which_may_be_overridden():
    """An adapter that merges its weights in eval() and takes them out in train() must get both calls."""

    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True):
            self.merged = not mode
            return super().train(mode)

    model = nn.Sequential(Merging(2, 2), nn.Dropout())
    with evaluating(model):
        assert model[0].merged
    assert not model[0].merged


def test_gradients_are_off_inside_only():
    with evaluating(nn.Linear(2, 2)):
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_inputs_fill_arguments_keywords_or_one_argument():
    def function(*args, **kwargs):
        return args, kwargs

    assert call(function, (1, 2)) == ((1, 2), {})
    assert call(function, {"a": 1}) == ((), {"a": 1})
    assert call(function, [1, 2]) == (([1, 2],), {})
    assert call(function, ()) == ((), {})


def test_tensors_are_found_in_nested_inputs():
    one, two = torch.zeros(3), torch.zeros(5, 2)
    assert [id(tensor) for tensor in tensors_in({"a": [one, None], "b": ({"c": two},)})] == [id(one), id(two)]
    assert batch_size_of((None, two, one)) == 5
    assert batch_size_of(torch.tensor(1.0)) == batch_size_of(()) == 1
