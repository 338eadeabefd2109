"""Megatron-LM's flags that are no options here, and what to do instead."""

from __future__ import annotations

from .megatron_families import FAMILIES

_ALWAYS = "this is always on; remove it"
_ATTENTION = "attention always uses PyTorch's scaled_dot_product_attention, which selects the kernel; remove it"
_BFLOAT16 = "use --bf16 instead"
_DATASET = "datasets are always memory-mapped, with their index caches in --data-cache-path; remove it"
_EVALUATION = "evaluation uses the batch sizes of training and runs every --eval-interval iterations; remove it"
_FUSION = "Megatron's fused kernels are not used; remove it"
_FOLDER = "use --tokenizer-type HuggingFaceTokenizer with --tokenizer-model FOLDER instead"
_INIT = "weights are always drawn from a normal distribution, see --init-method-std; remove it"
_ITERATIONS = "schedules count iterations, not samples"
_NOT_LOADED = "use --load with --finetune instead, which loads only the weights"
_PATTERN = "use --layer-pattern instead, which names the token mixers of the layers, as in swa*3,fa"
_SAVED = "a checkpoint always contains everything that a run needs to continue; remove it"
_SIGNAL = "SIGTERM and SIGINT always save a checkpoint and end the run; remove it"
_TOKENIZER = "tokenizer settings are read from the tokenizer's files; remove it"
_VOCABULARY = "the vocabulary is padded to a multiple of --make-vocab-size-divisible-by; remove it"
_WITHOUT_TOKENIZER_FILE = "NullTokenizer has the ids below --vocab-size, and the next id ends a document; remove it"

MEGATRON_FLAGS = {
    "accumulate-allreduce-grads-in-fp32": "this is the default; remove it (--grad-reduce-in-bf16 turns it off)",
    "add-qkv-bias": "use --add-bias-linear instead, which adds biases to all linear layers",
    "allow-ambiguous-pad-tokens": "training batches are never padded; remove it",
    "apply-query-key-layer-scaling": _ATTENTION,
    "apply-wd-to-qk-layernorm": "norms never have weight decay; remove it",
    "attention-softmax-in-fp32": _ATTENTION,
    "batch-size": "use --micro-batch-size instead (sequences per forward pass and rank)",
    "bf16-reduced-precision-matmul": "the precision of matrix products is PyTorch's own setting; remove it",
    "bfloat16": _BFLOAT16,
    "bias-dropout-fusion": _FUSION,
    "bias-gelu-fusion": _FUSION,
    "bias-swiglu-fusion": _FUSION,
    "checkpoint-activations": "use --recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    "ckpt-format": "checkpoints have a single format, which can be loaded with any parallel layout; remove it",
    "clone-scatter-output-in-embedding": "it has no effect; remove it",
    "create-attention-mask-in-dataloader": "attention masks are never materialised; remove it",
    "cross-entropy-fusion-impl": _FUSION,
    "cross-entropy-loss-fusion": _FUSION,
    "data-parallel-random-init": "data-parallel replicas always start with the same weights; remove it",
    "dataloader-defer-npy-index-mmap": _DATASET,
    "dataloader-fast-cache-load": _DATASET,
    "dataloader-inter-document-masking": "use --reset-attention-mask instead",
    "dataloader-type": "the data order is fixed by --seed, and a resumed run continues it; remove it",
    "decoder-num-layers": "use --num-layers instead",
    "decrease-batch-size-if-needed": "use a --global-batch-size that is divisible by the number of replicas",
    "deterministic-mode": "runs are deterministic by default (--no-deterministic turns it off); remove it",
    "disable-bias-linear": "linear layers have no biases by default (--add-bias-linear adds them); remove it",
    "disable-manual-gc-eval": "use --no-manual-gc-eval instead",
    "disable-jit-fuser": "the JIT fuser is never used; remove it",
    "distribute-saved-activations": "use --sequence-parallel instead, which shards the saved activations",
    "empty-unused-memory-level": "set PYTORCH_CUDA_ALLOC_CONF instead, which configures PyTorch's allocator",
    "enable-experimental": "there are no experimental features to enable; remove it",
    "encoder-seq-length": "use --seq-length instead",
    "eod-mask": "use --eod-mask-loss instead",
    "eval-global-batch-size": _EVALUATION,
    "eval-micro-batch-size": _EVALUATION,
    "exit-signal": _SIGNAL,
    "exit-signal-handler": _SIGNAL,
    "exit-signal-handler-for-dataloader": _SIGNAL,
    "exit-signal-handler-for-training": _SIGNAL,
    "expert-model-parallel-size": "mixture-of-experts layers are not supported; remove it",
    "fp16": "fp16 is not supported; use --bf16 instead, or neither for float32",
    "freeze-all-layers": "all slow weights are trained; remove it (--fwpkm-inner-lr 0 freezes the memory)",
    "full-validation": "use --eval-iters instead (number of batches in one evaluation)",
    "group-query-attention": "--num-query-groups alone selects grouped-query attention; remove it",
    "hybrid-layer-pattern": _PATTERN,
    "hybrid-override-pattern": _PATTERN,
    "init-method-xavier-uniform": _INIT,
    "init-model-with-meta-device": _INIT,
    "initialization": _INIT,
    "is-hybrid-model": _PATTERN,
    "linear-attention-freq": _PATTERN,
    "lr-decay-samples": f"{_ITERATIONS}; use --lr-decay-iters instead",
    "lr-warmup-fraction": f"{_ITERATIONS}; use --lr-warmup-iters instead",
    "lr-warmup-init": "the warm-up (--lr-warmup-iters) always starts from 0; remove it",
    "lr-warmup-samples": f"{_ITERATIONS}; use --lr-warmup-iters instead",
    "lr-wsd-decay-samples": f"{_ITERATIONS}; use --lr-wsd-decay-iters instead",
    "masked-softmax-fusion": _FUSION,
    "merge-file": _FOLDER,
    "mid-level-dataset-surplus": _DATASET,
    "mmap-bin-files": _DATASET,
    "mock-data": "there is no mock data; make a dataset from any text with tools/preprocess_data.py",
    "model-parallel-size": "use --tensor-model-parallel-size instead",
    "multiple-validation-sets": "use a blend as --valid-data-path instead, which is evaluated as one dataset",
    "no-gradient-accumulation-fusion": "use --gradient-accumulation-fusion off instead",
    "no-load-optim": _NOT_LOADED,
    "no-load-rng": _NOT_LOADED,
    "no-save-optim": _SAVED,
    "no-save-rng": _SAVED,
    "no-weight-decay-cond-type": "--weight-decay applies to everything but biases and norms; remove it",
    "null-tokenizer-eod-id": _WITHOUT_TOKENIZER_FILE,
    "null-tokenizer-pad-id": _WITHOUT_TOKENIZER_FILE,
    "num-dataset-builder-threads": _DATASET,
    "num-experts": "mixture-of-experts layers are not supported; remove it",
    "num-layers-per-virtual-pipeline-stage": "use --num-virtual-stages-per-pipeline-rank instead (chunks per stage)",
    "onnx-safe": "ONNX export is not supported; remove it (tools/convert_checkpoint.py exports to Hugging Face format)",
    "optimizer": "AdamW is the only optimizer; remove it",
    "output-logit-dtype": "the loss is always computed in float32; remove it",
    "override-ckpt-iteration": "use --ckpt-step instead (iteration to start from)",
    "pad-vocab-size": _VOCABULARY,
    "padded-vocab-size": _VOCABULARY,
    "per-dataset-sequences-path": _DATASET,
    "phase-transition-iterations": "a run has one data blend; remove it, and start the next phase with --load",
    "pretrained-checkpoint": "use --load with --finetune instead, which loads only the weights",
    "recompute-activations": "use --recompute-granularity selective instead",
    "save-tokenizer-assets": "an exported model always contains its tokenizer; remove it",
    "sequence-length": "use --seq-length instead",
    "start-eval-at-iter": _EVALUATION,
    "step-batch-size-schedule": "remove it, and use --global-batch-size or --rampup-batch-size",
    "swiglu": _ALWAYS,
    "test-mode": "remove it, and use a small --train-iters, or --dry-run to train nothing",
    "tiktoken-special-tokens-file": _TOKENIZER,
    "tokenizer-hf-no-include-special-tokens": _TOKENIZER,
    "tokenizer-hf-no-use-fast": _TOKENIZER,
    "tokenizer-metadata": _TOKENIZER,
    "tokenizer-sentencepiece-ignore-extra-whitespaces": _TOKENIZER,
    "tokenizer-sentencepiece-legacy": _TOKENIZER,
    "tokenizer-special-tokens": "use --tiktoken-special-tokens with TikTokenizer; other tokenizers define their own",
    "train-samples": f"{_ITERATIONS}; use --train-iters instead",
    "train-sync-interval": "--distributed-timeout-minutes already ends a collective that hangs; remove it",
    "trust-remote-code": "code from a tokenizer's folder is never executed; remove it",
    "use-bf16": _BFLOAT16,
    "use-cpu-initialization": _INIT,
    "use-dist-ckpt": _ALWAYS,
    "use-flash-attn": _ATTENTION,
    "use-gigatoken": "the corpus is tokenized beforehand, by tools/preprocess_data.py (with gigatoken); remove it",
    "use-mcore-models": _ALWAYS,
    "use-mp-args-from-checkpoint-args": "a checkpoint can be loaded with any parallel layout; remove it",
    "use-rotary-position-embeddings": _ALWAYS,
    "use-tokenizer-model-from-checkpoint-args": "use --tokenizer-model or --use-checkpoint-args instead",
    "validation-set-names": "use a blend as --valid-data-path instead, which is evaluated as one dataset",
    "verify-integrity": "a checkpoint is always verified before it is loaded; remove it",
    "vocab-file": _FOLDER,
    "warmup": "use --lr-warmup-iters instead (number of warm-up iterations)",
    "window-attn-skip-freq": _PATTERN,
    "yaml-cfg": "use --config FILE instead (a YAML file with a line `name: value` per flag)",
}
"""Name without dashes -> what to do, a sentence without its full stop. A switch's --no- form has the same answer."""

_EXACT = {name: text for text, names in FAMILIES.items() for name in names.split() if not name.endswith("*")}
_EXACT |= MEGATRON_FLAGS
_BEGINNINGS = {
    name.rstrip("*"): text for text, names in FAMILIES.items() for name in names.split() if name.endswith("*")
}


def megatron_advice(name: str) -> str | None:
    """What to do about a flag of Megatron-LM that is no option here; None for any other name.

    `--no-x` and `--disable-x` have the answer of `--x` where they have none of their own.
    """
    forms = [name, name.removeprefix("no-"), name.removeprefix("disable-")]
    for form in forms:
        if form in _EXACT:
            return _EXACT[form]
    for form in forms:
        for beginning, text in _BEGINNINGS.items():
            if form.startswith(beginning):
                return text
    return None


def known_megatron_flags() -> list[str]:
    """All names with an answer of their own."""
    return list(_EXACT)
