"""Small transformers of Hugging Face's library with random weights, built from configurations: nothing is downloaded.

They are what the ``[hf]`` extra is for: to see that what works on the course's GPT works on the models people bring.
transformers imports torchvision and torchao by itself, so both are imported first, quietly (``vision.py``, ``ao.py``).
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["NAMES", "random_transformer"]

WIDTH, VOCAB = 32, 64
NAMES = ("llama", "mistral", "qwen2", "gpt2", "opt", "bert")


def random_transformer(name: str, *, generator: torch.Generator | None = None) -> nn.Module:
    """A transformer of two blocks in eval mode; it takes tokens (B, L) below 64 and gives an output with ``[0]``.

    Args:
        name: one of ``NAMES``. llama, mistral and qwen2 have grouped-query attention, qwen2 and gpt2 a tied head,
            gpt2 layers that store their weights transposed.
        generator: of the weights; None starts from seed 0.

    Raises:
        ValueError: ``name`` is unknown. ModuleNotFoundError: transformers is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"name={name!r} must be one of {', '.join(NAMES)}")
    from compresslab.workbench import ao  # noqa: F401
    from compresslab.workbench.vision import torchvision

    torchvision()
    import transformers as hf

    tokens = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    usual = tokens | {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    usual["max_position_embeddings"] = 128
    wide = usual | {"intermediate_size": 2 * WIDTH}
    grouped = wide | {"num_key_value_heads": 2}
    with torch.random.fork_rng(devices=[]):  # the library draws from the global generator
        if name == "llama":
            model = hf.LlamaForCausalLM(hf.LlamaConfig(**grouped))
        elif name == "mistral":
            model = hf.MistralForCausalLM(hf.MistralConfig(**grouped, sliding_window=16))
        elif name == "qwen2":
            model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**grouped, tie_word_embeddings=True))
        elif name == "gpt2":
            model = hf.GPT2LMHeadModel(hf.GPT2Config(**tokens, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=128))
        elif name == "opt":
            model = hf.OPTForCausalLM(hf.OPTConfig(**usual, ffn_dim=2 * WIDTH, word_embed_proj_dim=WIDTH))
        else:
            model = hf.BertModel(hf.BertConfig(**wide))
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.1, generator=generator)
    return model.eval()
