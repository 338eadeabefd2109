"""Megatron-LM's flags that are no options here, and what to do instead."""

from __future__ import annotations

from .megatron_families import FAMILIES

_ALWAYS = "remove it, it is always so here"
_ATTENTION = "remove it: attention is torch's scaled dot-product attention, which chooses its own kernel"
_BFLOAT16 = "write --bf16"
_DATASET = "remove it: datasets are mapped into memory and their index caches lie in --data-cache-path"
_EVALUATION = "remove it: evaluation has the batch sizes of training, and runs at every --eval-interval"
_FUSION = "remove it: fused kernels of Megatron are not used here"
_FOLDER = "give --tokenizer-type HuggingFaceTokenizer and its folder as --tokenizer-model"
_INIT = "remove it: weights are drawn on the device from a normal distribution, see --init-method-std"
_ITERATIONS = "a run is counted in iterations here, not in samples"
_NOT_LOADED = "give --load with --finetune, which takes the weights only"
_SAVED = "remove it: checkpoints hold all that a run needs to continue"
_SIGNAL = "remove it: SIGTERM and SIGINT always save and end the run here"
_TOKENIZER = "remove it: a tokenizer is used as its file says"
_VOCABULARY = "remove it: the vocabulary is padded to a multiple of --make-vocab-size-divisible-by"
_WITHOUT_TOKENIZER_FILE = "remove it: NullTokenizer takes --vocab-size numbers, and the next one ends documents"

MEGATRON_FLAGS = {
    "accumulate-allreduce-grads-in-fp32": "remove it: so they are here, unless --grad-reduce-in-bf16 is given",
    "add-qkv-bias": "there are no biases on queries, keys and values alone: give --add-bias-linear for all linears",
    "allow-ambiguous-pad-tokens": "remove it: nothing is padded in training",
    "apply-query-key-layer-scaling": _ATTENTION,
    "apply-wd-to-qk-layernorm": "remove it: norms have no weight decay here",
    "attention-backend": _ATTENTION,
    "attention-softmax-in-fp32": _ATTENTION,
    "batch-size": "write --micro-batch-size, sequences per forward pass and rank",
    "bf16-reduced-precision-matmul": "remove it: matrix products are torch's, with its own settings",
    "bfloat16": _BFLOAT16,
    "bias-dropout-fusion": _FUSION,
    "bias-gelu-fusion": _FUSION,
    "bias-swiglu-fusion": _FUSION,
    "checkpoint-activations": "write --recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    "ckpt-format": "remove it: checkpoints have one format here, which loads at any layout",
    "clone-scatter-output-in-embedding": "remove it, it makes no difference here",
    "create-attention-mask-in-dataloader": "remove it: no attention mask is ever made",
    "cross-entropy-fusion-impl": _FUSION,
    "cross-entropy-loss-fusion": _FUSION,
    "data-parallel-random-init": "remove it: replicas begin with equal weights here",
    "dataloader-defer-npy-index-mmap": _DATASET,
    "dataloader-fast-cache-load": _DATASET,
    "dataloader-inter-document-masking": "write --reset-attention-mask, which keeps attention within a document",
    "dataloader-type": "remove it: windows are dealt in one order, which a resumed run goes on with",
    "decoder-num-layers": "write --num-layers",
    "decrease-batch-size-if-needed": "remove it: give a --global-batch-size that the replicas divide",
    "deterministic-mode": "remove it: runs are deterministic unless --no-deterministic is given",
    "disable-bias-linear": "remove it: linears have no biases here unless --add-bias-linear is given",
    "disable-manual-gc-eval": "write --no-manual-gc-eval",
    "disable-jit-fuser": "remove it: nothing is compiled here",
    "distribute-saved-activations": "write --sequence-parallel, which shards saved activations",
    "empty-unused-memory-level": "remove it: PYTORCH_CUDA_ALLOC_CONF says how torch holds memory",
    "enable-experimental": "remove it: nothing here is hidden behind a switch",
    "encoder-seq-length": "write --seq-length",
    "eod-mask": "write --eod-mask-loss",
    "eval-global-batch-size": _EVALUATION,
    "eval-micro-batch-size": _EVALUATION,
    "exit-signal": _SIGNAL,
    "exit-signal-handler": _SIGNAL,
    "exit-signal-handler-for-dataloader": _SIGNAL,
    "exit-signal-handler-for-training": _SIGNAL,
    "expert-model-parallel-size": "there are no experts here: remove it",
    "fp16": "give --bf16, or nothing for float32",
    "freeze-all-layers": "remove it: all slow weights are trained; --fwpkm-inner-lr 0 freezes a memory",
    "full-validation": "give --eval-iters, the batches of one evaluation",
    "gradient-accumulation-fusion": _FUSION,
    "group-query-attention": "remove it: --num-query-groups alone says it",
    "init-method-xavier-uniform": _INIT,
    "init-model-with-meta-device": _INIT,
    "initialization": _INIT,
    "log-throughput": "remove it: tokens per second stand in every progress line",
    "lr-decay-samples": f"give --lr-decay-iters: {_ITERATIONS}",
    "lr-warmup-fraction": "give --lr-warmup-iters: a warm-up is counted in iterations here",
    "lr-warmup-init": "remove it: a warm-up begins at 0 here, see --lr-warmup-iters",
    "lr-warmup-samples": f"give --lr-warmup-iters: {_ITERATIONS}",
    "lr-wsd-decay-samples": f"give --lr-wsd-decay-iters: {_ITERATIONS}",
    "masked-softmax-fusion": _FUSION,
    "merge-file": _FOLDER,
    "mid-level-dataset-surplus": _DATASET,
    "mmap-bin-files": _DATASET,
    "mock-data": "there is no invented data here: make a dataset of any text with tools/preprocess_data.py",
    "model-parallel-size": "write --tensor-model-parallel-size",
    "multiple-validation-sets": "give --valid-data-path a blend, which is measured as one",
    "no-load-optim": _NOT_LOADED,
    "no-load-rng": _NOT_LOADED,
    "no-save-optim": _SAVED,
    "no-save-rng": _SAVED,
    "no-weight-decay-cond-type": "remove it: biases and norms have no weight decay here, all else --weight-decay",
    "null-tokenizer-eod-id": _WITHOUT_TOKENIZER_FILE,
    "null-tokenizer-pad-id": _WITHOUT_TOKENIZER_FILE,
    "num-dataset-builder-threads": _DATASET,
    "num-experts": "there are no experts here: remove it",
    "num-layers-per-virtual-pipeline-stage": "give --num-virtual-stages-per-pipeline-rank, a stage's parts",
    "onnx-safe": "remove it: models are exported to Hugging Face format, by tools/convert_checkpoint.py",
    "optimizer": "remove it: the optimizer is AdamW here",
    "output-logit-dtype": "remove it: losses are computed in float32",
    "override-ckpt-iteration": "give --ckpt-step, the iteration to start from",
    "pad-vocab-size": _VOCABULARY,
    "padded-vocab-size": _VOCABULARY,
    "per-dataset-sequences-path": _DATASET,
    "phase-transition-iterations": "remove it: the data of a run is one blend; begin the next phase with --load",
    "pretrained-checkpoint": "give --load with --finetune, which takes the weights only",
    "recompute-activations": "write --recompute-granularity selective",
    "rope-fusion": _FUSION,
    "save-tokenizer-assets": "remove it: an export always holds its tokenizer",
    "sequence-length": "write --seq-length",
    "start-eval-at-iter": _EVALUATION,
    "step-batch-size-schedule": "remove it: give one --global-batch-size",
    "swiglu": _ALWAYS,
    "test-mode": "remove it: --train-iters makes a run as short as you like, and --dry-run trains nothing",
    "tiktoken-special-tokens-file": _TOKENIZER,
    "tokenizer-hf-no-include-special-tokens": _TOKENIZER,
    "tokenizer-hf-no-use-fast": _TOKENIZER,
    "tokenizer-metadata": _TOKENIZER,
    "tokenizer-sentencepiece-ignore-extra-whitespaces": _TOKENIZER,
    "tokenizer-sentencepiece-legacy": _TOKENIZER,
    "tokenizer-special-tokens": "give --tiktoken-special-tokens for TikTokenizer; other tokenizers name their own",
    "train-samples": f"give --train-iters: {_ITERATIONS}",
    "train-sync-interval": "remove it: a collective that waits is ended by --distributed-timeout-minutes",
    "transformer-impl": "remove it: layers are Megatron-Core's local ones, without Transformer Engine",
    "trust-remote-code": "remove it: code in a tokenizer's folder is never run",
    "use-bf16": _BFLOAT16,
    "use-cpu-initialization": _INIT,
    "use-dist-ckpt": _ALWAYS,
    "use-flash-attn": _ATTENTION,
    "use-gigatoken": "remove it: corpora are tokenized beforehand, by tools/preprocess_data.py with any accelerator",
    "use-mcore-models": _ALWAYS,
    "use-mp-args-from-checkpoint-args": "remove it: a checkpoint loads at any layout, so give the sizes you want",
    "use-rotary-position-embeddings": _ALWAYS,
    "use-tokenizer-model-from-checkpoint-args": "give --tokenizer-model; --use-checkpoint-args takes it, too",
    "validation-set-names": "give --valid-data-path a blend, which is measured as one",
    "verify-integrity": "remove it: a checkpoint is always looked through before it is loaded",
    "vocab-file": _FOLDER,
    "warmup": "give --lr-warmup-iters, iterations of warm-up",
    "yaml-cfg": "write --config FILE, a file with a line `name: value` for every flag",
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
