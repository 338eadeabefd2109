"""Names of options in other programs, mostly Transformers and Lightning, and what the options are called here."""

from __future__ import annotations

from collections.abc import Collection

FAMILIAR_NAMES = {
    "lr": "learning-rate base-lr peak-lr max-lr",
    "min-lr": "end-learning-rate lr-end final-lr",
    "lr-decay-style": "lr-scheduler lr-scheduler-type scheduler lr-schedule",
    "lr-warmup-iters": "warmup-steps warmup-iters num-warmup-steps warmup-ratio",
    "lr-decay-iters": "decay-steps lr-decay-steps",
    "clip-grad": "max-grad-norm grad-clip gradient-clip-val max-norm",
    "adam-beta1": "beta1",
    "adam-beta2": "beta2",
    "adam-eps": "adam-epsilon",
    "weight-decay": "wd",
    "train-iters": "max-steps num-train-epochs epochs num-epochs max-iters num-steps total-steps iterations",
    "micro-batch-size": "per-device-train-batch-size train-batch-size device-batch-size",
    "global-batch-size": "gradient-accumulation-steps grad-accum-steps total-batch-size",
    "seq-length": "max-seq-length max-length block-size context-length sequence-len n-ctx",
    "save": "output-dir save-dir checkpoint-dir out-dir",
    "save-interval": "save-steps checkpoint-interval save-every",
    "keep-last": "save-total-limit max-checkpoints",
    "resume": "resume-from-checkpoint auto-resume",
    "load": "model-name-or-path load-dir init-from",
    "log-interval": "logging-steps log-every log-steps",
    "log-dir": "logging-dir",
    "eval-interval": "eval-steps eval-every val-check-interval",
    "eval-iters": "max-eval-samples limit-val-batches",
    "data-path": "train-file train-data dataset dataset-name dataset-path data-dir",
    "valid-data-path": "validation-file eval-data",
    "tokenizer-model": "tokenizer tokenizer-name tokenizer-path",
    "num-workers": "dataloader-num-workers",
    "num-layers": "num-hidden-layers n-layer n-layers",
    "hidden-size": "d-model n-embd embed-dim",
    "ffn-hidden-size": "intermediate-size d-ff",
    "num-attention-heads": "num-heads n-head n-heads",
    "num-query-groups": "num-key-value-heads num-kv-heads n-kv-heads",
    "kv-channels": "head-dim",
    "layer-pattern": "token-mixer token-mixers layer-types layers-block-type block-types attn-layer-pattern",
    "max-position-embeddings": "max-positions",
    "window-size": "sliding-window attention-window",
    "rotary-base": "rope-theta rope-base",
    "rotary-percent": "partial-rotary-factor",
    "norm-epsilon": "rms-norm-eps layer-norm-eps layernorm-epsilon norm-eps",
    "init-method-std": "initializer-range init-std",
    "attention-dropout": "attention-probs-dropout-prob attn-dropout",
    "hidden-dropout": "hidden-dropout-prob resid-pdrop dropout",
    "untie-embeddings-and-output-weights": "tie-word-embeddings tie-embeddings",
    "recompute-granularity": "gradient-checkpointing activation-checkpointing",
    "tensor-model-parallel-size": "tp tp-size tensor-parallel-size",
    "pipeline-model-parallel-size": "pp pp-size pipeline-parallel-size",
    "context-parallel-size": "cp cp-size",
    "checkpoint": "load save model model-path load-dir ckpt checkpoint-dir checkpoint-path resume-from-checkpoint",
    "export": "hf model-dir hf-model hf-path",
    "max-new-tokens": "max-tokens max-length num-tokens length",
    "model": "model-name-or-path model-path checkpoint",
    "prompt": "text input-text",
    "input": "input-file input-files files train-file dataset",
    "output": "output-file output-dir output-folder save-dir",
    "output-prefix": "output output-dir out-dir",
    "workers": "num-workers num-proc num-processes",
    "json-keys": "json-key text-column text-key",
}
"""Name of an option here -> its names elsewhere, all without dashes. A program offers those that it has itself."""


def familiar_name(name: str, known: Collection[str]) -> str | None:
    """The option among `known` that other programs call `name`; all names are without dashes in front."""
    return next((ours for ours, theirs in FAMILIAR_NAMES.items() if ours in known and name in theirs.split()), None)
