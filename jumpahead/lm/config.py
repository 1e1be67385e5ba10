"""The configuration table `lm` of a study. No torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class LMConfig(BaseModel):
    """The language model, and how text is divided into contexts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    model: str = "tiny"
    """`tiny` (comes with jumpahead), a folder in Hugging Face format, or a name on the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["float32", "bfloat16", "float16", "auto", "fast"] = "float32"
    """Dtype of the model's computation; `auto` is the dtype of the stored weights. `fast` reads activations in bfloat16
    if that is faster on this machine and moves the model's loss by less than 1e-3 nats, and evaluates in float32."""
    context: int | None = Field(default=None, ge=4, le=10_000_000)
    """Tokens per context, BOS included; by default the model's maximum, at most 1024."""
    batch: int = Field(default=16, ge=1, le=1_000_000)
    """Contexts per forward pass. Another number is another order of the training data, and may change the last bit."""
    bos: Literal["auto", "none"] = "auto"
    """`auto`: every context begins with the tokenizer's BOS if it has one. `none`: contexts begin with text."""
    device: str = "auto"
    """`auto` (a GPU if there is one, else the CPU), `cpu`, `cuda`, `cuda:1` or `mps`."""
    device_map: str | None = None
    """Distribution of the model over several devices by transformers: `auto`, `balanced`, … Needs `accelerate`."""
    attn_implementation: str | None = None
    """Attention implementation of transformers: `eager`, `sdpa`, `flash_attention_2`, …; by default its own choice."""
    quantization: dict[str, Any] = {}
    """Options of transformers for quantised loading: `{quant_method = "bitsandbytes", load_in_8bit = true}`. A model
    whose weights are stored quantised needs none."""
    packing: Literal["none", "isolated", "plain"] = "none"
    """Rule by which documents share a context. `none`: a context is a chunk of one document. `isolated`: a context
    holds several short documents and none sees another (checked for each model). `plain`: each sees those before it."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""
