"""Lesson 09: layers as products of smaller ones, weights that share values, layers that share weights.

words           replacing (which layers give way to others, and what is said about the rest)
matrices        low_rank (SVD, plain and by the inputs), covariance (of the inputs), ranks (by energy, by error, under a budget), embeddings
convolutions    conv_svd (channel and spatial), tucker, separable (depthwise and pointwise), convolutions (a whole model)
shared values   codebook (k-means), trainable_codebook, product_quantization
files           huffman, coding (one tensor), deep_compression (one file), files (whole or absent)
shared layers   sharing

A function that has the name of its file is imported from there.
"""

from compresslab.factorization.codebook import Codebook, SharedWeights, kmeans, share_weights
from compresslab.factorization.coding import encode_tensor
from compresslab.factorization.conv_svd import channel_svd, spatial_svd
from compresslab.factorization.convolutions import factor_parameters, factorize_convs
from compresslab.factorization.covariance import input_covariances
from compresslab.factorization.deep_compression import Compressed, load_compressed, save_compressed
from compresslab.factorization.embeddings import FactorizedEmbedding, FactorizedHead, factorize_embeddings
from compresslab.factorization.huffman import (
    Encoded,
    code_lengths,
    code_words,
    entropy_bits,
    huffman_decode,
    huffman_encode,
)
from compresslab.factorization.low_rank import (
    Decomposed,
    LowRankLinear,
    decompose,
    factorize_linears,
)
from compresslab.factorization.product_quantization import ProductQuantized, product_quantize
from compresslab.factorization.ranks import (
    RankAllocation,
    allocate_ranks,
    break_even_rank,
    energy_rank,
    error_rank,
    largest_rank,
)
from compresslab.factorization.replacing import Factorized, parameters_of
from compresslab.factorization.separable import (
    Cost,
    Scaling,
    compound_scaling,
    conv_cost,
    inverted_residual_cost,
    separable_conv,
    separable_cost,
    separate_convs,
)
from compresslab.factorization.sharing import SharedLayers, share_layers, unique_state
from compresslab.factorization.trainable_codebook import LookUp, finish_codebooks, train_codebooks
from compresslab.factorization.tucker import Tucker2, tucker2, tucker_conv

__all__ = [
    "Codebook", "Compressed", "Cost", "Decomposed", "Encoded", "Factorized", "FactorizedEmbedding", "FactorizedHead",
    "LookUp", "LowRankLinear", "ProductQuantized", "RankAllocation", "Scaling", "SharedLayers", "SharedWeights",
    "Tucker2", "allocate_ranks", "break_even_rank", "channel_svd", "code_lengths", "code_words", "compound_scaling",
    "conv_cost", "decompose", "encode_tensor", "energy_rank", "entropy_bits", "error_rank", "factor_parameters",
    "factorize_convs", "factorize_embeddings", "factorize_linears", "finish_codebooks", "huffman_decode",
    "huffman_encode", "input_covariances", "inverted_residual_cost", "kmeans", "largest_rank", "load_compressed",
    "parameters_of", "product_quantize", "save_compressed", "separable_conv", "separable_cost", "separate_convs",
    "share_layers", "share_weights", "spatial_svd", "train_codebooks", "tucker2", "tucker_conv", "unique_state",
]  # fmt: skip
