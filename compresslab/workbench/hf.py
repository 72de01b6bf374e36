"""Small transformers of Hugging Face's library with random weights, built from configurations: nothing is downloaded.

They are what the ``[hf]`` extra is for: to see that what works on the course's GPT works on the models people bring.
transformers imports torchvision and torchao by itself, so both are imported first, quietly (``vision.py``, ``ao.py``).
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["NAMES", "random_transformer"]

NAMES = ("llama", "mistral", "qwen2", "gpt2", "opt", "bert")


def random_transformer(
    name: str, *, width: int = 32, depth: int = 2, vocab: int = 64, generator: torch.Generator | None = None
) -> nn.Module:
    """A transformer of the family ``name`` in eval mode; it takes tokens (B, L) and gives an output with ``[0]``.

    Args:
        name: one of ``NAMES``. llama, mistral and qwen2 have grouped-query attention, qwen2 and gpt2 a tied head,
            gpt2 layers that store their weights transposed.
        width: size of the stream, a multiple of 8.
        depth: number of blocks.
        vocab: number of tokens.
        generator: of the weights; None starts from seed 0.

    Raises:
        ValueError: ``name`` is unknown. ModuleNotFoundError: transformers is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"name={name!r} must be one of {', '.join(NAMES)}")
    from compresslab.workbench import ao  # noqa: F401
    from compresslab.workbench.vision import torchvision

    torchvision()
    import transformers

    usual = {
        "vocab_size": vocab, "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": 4,
        "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
    }  # fmt: skip
    grouped = usual | {"intermediate_size": 2 * width, "num_key_value_heads": 2}
    if name == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**grouped))
    elif name == "mistral":
        model = transformers.MistralForCausalLM(transformers.MistralConfig(**grouped, sliding_window=16))
    elif name == "qwen2":
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**grouped, tie_word_embeddings=True))
    elif name == "gpt2":
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=vocab, n_embd=width, n_layer=depth, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=1
            )
        )
    elif name == "opt":
        model = transformers.OPTForCausalLM(
            transformers.OPTConfig(**usual, ffn_dim=2 * width, word_embed_proj_dim=width)
        )
    else:
        model = transformers.BertModel(transformers.BertConfig(**usual, intermediate_size=2 * width))
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    with torch.no_grad():
        for parameter in model.parameters():  # the library draws from the global generator; draw again from ours
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.1, generator=generator)
    return model.eval()
