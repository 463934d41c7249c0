"""mindformers' PyNative GPTModel as far as the CPU runs it; imported where mindformers and its stand-ins are."""

from __future__ import annotations

from mindformers.parallel_core.transformer_config import TransformerConfig
from mindformers.pynative.base_models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from mindformers.pynative.base_models.gpt.gpt_model import GPTModel
from mindspore import nn, ops


class Decoder(nn.Cell):
    """In place of the transformer's layers, of which FlashAttentionScore has no CPU kernel."""

    def __init__(self, width: int):
        super().__init__()
        self.mix = nn.Dense(width, width, has_bias=False)

    def construct(self, hidden, *arguments, **keywords):
        return hidden + ops.tanh(self.mix(hidden))


def tiny_gpt(vocabulary: int, length: int, width: int, **options) -> GPTModel:
    floats = ("compute", "params", "layernorm_compute", "softmax_compute", "rotary")
    config = TransformerConfig(
        num_layers=1,
        hidden_size=width,
        num_attention_heads=4,
        ffn_hidden_size=width,
        seq_length=length,
        max_position_embeddings=length,
        position_embedding_type="none",
        use_flash_attention=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        **{f"{name}_dtype": "float32" for name in floats},
        **options,
    )
    model = GPTModel(config, get_gpt_layer_local_spec(), vocabulary, length)
    model.decoder = Decoder(width)
    return model
