"""Megatron-LM's flags that are no options here, and what to do instead."""

from __future__ import annotations

_ALWAYS = "remove it, it is always so here"
_ATTENTION = "remove it: attention is torch's scaled dot-product attention, which chooses its own kernel"
_FUSION = "remove it: fused kernels of Megatron are not used here"
_NOT_LOADED = "give --load with --finetune, which takes the weights only"
_ITERATIONS = "a run is counted in iterations here, not in samples"

MEGATRON_FLAGS = {
    "apply-layernorm-1p": "remove it: norms are RMSNorm with a plain weight here",
    "attention-backend": _ATTENTION,
    "bfloat16": "write --bf16",
    "bias-swiglu-fusion": _FUSION,
    "ckpt-format": "remove it: checkpoints have one format here, which loads at any layout",
    "create-attention-mask-in-dataloader": "remove it: no attention mask is ever made",
    "dataloader-type": "remove it: windows are dealt in one order, which a resumed run goes on with",
    "disable-bias-linear": "remove it: linears have no biases here unless --add-bias-linear is given",
    "dist-ckpt-format": "remove it: checkpoints have one format here, which loads at any layout",
    "eod-mask": "write --eod-mask-loss",
    "expert-model-parallel-size": "there are no experts here",
    "fp16": "give --bf16, or nothing for float32",
    "gradient-accumulation-fusion": _FUSION,
    "group-query-attention": "remove it: --num-query-groups alone says it",
    "log-throughput": "remove it: tokens per second stand in every progress line",
    "lr-decay-samples": f"give --lr-decay-iters: {_ITERATIONS}",
    "lr-warmup-fraction": "give --lr-warmup-iters: a warm-up is counted in iterations here",
    "lr-warmup-samples": f"give --lr-warmup-iters: {_ITERATIONS}",
    "masked-softmax-fusion": _FUSION,
    "merge-file": "give --tokenizer-type HuggingFaceTokenizer and its folder as --tokenizer-model",
    "mock-data": "there is no invented data here: make a dataset of any text with tools/preprocess_data.py",
    "no-load-optim": _NOT_LOADED,
    "no-load-rng": _NOT_LOADED,
    "no-save-optim": "remove it: checkpoints hold all that a run needs to go on",
    "no-save-rng": "remove it: checkpoints hold all that a run needs to go on",
    "normalization": "remove it: norms are RMSNorm here",
    "num-experts": "there are no experts here",
    "num-layers-per-virtual-pipeline-stage": "give --num-virtual-stages-per-pipeline-rank, a stage's parts",
    "optimizer": "remove it: the optimizer is AdamW here",
    "overlap-param-gather": "remove it: parameters are gathered after the step here",
    "position-embedding-type": "remove it: positions are rotary here (--rotary-percent, --rotary-base)",
    "recompute-activations": "write --recompute-granularity selective",
    "rope-fusion": _FUSION,
    "sequence-length": "write --seq-length",
    "swiglu": _ALWAYS,
    "train-samples": f"give --train-iters: {_ITERATIONS}",
    "transformer-impl": "remove it: layers are Megatron-Core's local ones, without Transformer Engine",
    "use-bf16": "write --bf16",
    "use-dist-ckpt": _ALWAYS,
    "use-flash-attn": _ATTENTION,
    "use-mcore-models": _ALWAYS,
    "use-rotary-position-embeddings": _ALWAYS,
    "vocab-file": "give --tokenizer-type HuggingFaceTokenizer and its folder as --tokenizer-model",
    "wandb-project": "figures go to metrics.jsonl, and to TensorBoard with --tensorboard-dir",
}
"""Name without dashes -> what to do, a sentence without its full stop. A switch's --no- form has the same answer."""
