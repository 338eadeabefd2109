"""The training loop, checkpoints and logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .field_metadata import MAY_CHANGE, NOT_COMPARED, SAME_RUN, Above, AtLeast, AtMost, Between


@dataclass(frozen=True)
class TrainingConfig:
    """Batch size, duration, precision and checks of a training run."""

    micro_batch_size: Annotated[int, AtLeast(1), AtMost(2**31 - 1), MAY_CHANGE] = 1
    """Number of sequences per forward pass and rank; they share one memory, as in the paper."""
    global_batch_size: Annotated[int | None, AtLeast(1), AtMost(2**31 - 1), MAY_CHANGE] = None
    """Number of sequences per step over all ranks (default: --micro-batch-size times the data-parallel size)."""
    rampup_batch_size: Annotated[tuple[int, ...], SAME_RUN] = ()
    """Batch size ramp-up as START INCREMENT SAMPLES: the first steps have START sequences, and INCREMENT is added at
    regular intervals over SAMPLES sequences until --global-batch-size is reached. Iterations are counted as usual
    (default: none)."""
    train_iters: Annotated[int, AtLeast(1), MAY_CHANGE] = 1000
    """Number of optimizer steps of the whole run."""
    skip_train: Annotated[bool, NOT_COMPARED] = False
    """Evaluate the model of --load or --resume once on the validation and test data, then exit; nothing is saved."""
    exit_interval: Annotated[int | None, AtLeast(1), NOT_COMPARED] = None
    """Save a checkpoint and exit when the iteration is a multiple of this number."""
    exit_duration_in_mins: Annotated[float | None, Above(0), NOT_COMPARED] = None
    """Save a checkpoint and exit after this many minutes."""
    eval_interval: Annotated[int, AtLeast(1), NOT_COMPARED] = 1000
    """Number of iterations between two evaluations on the validation data."""
    eval_iters: Annotated[int, AtLeast(0), NOT_COMPARED] = 100
    """Number of batches in one evaluation; 0 disables evaluation."""
    seed: Annotated[int, AtLeast(0), Between(0, 2**32 - 1), SAME_RUN] = 1234
    """Random seed of the initialisation, the data order and the memory."""
    bf16: Annotated[bool, SAME_RUN] = False
    """Compute in bfloat16, with float32 master weights; --fwpkm-table-dtype sets the data type of the memory's
    values."""
    calculate_per_token_loss: Annotated[bool, MAY_CHANGE] = False
    """Give every token of a step the same weight in the loss. By default every micro-batch has the same weight,
    regardless of how many of its tokens --eod-mask-loss excludes."""
    gradient_accumulation_fusion: Annotated[Literal["auto", "on", "off"], NOT_COMPARED] = "auto"
    """Add the weight gradients of linear layers to the gradient buffer within their matrix product, with a kernel of
    NVIDIA's Apex; auto does so where that kernel is installed and CUDA is available."""
    recompute_granularity: Annotated[Literal["full", "selective"] | None, MAY_CHANGE] = None
    """Recompute activations in the backward pass instead of storing them: those of whole layers (full) or of parts of
    every layer (selective). The memories are never recomputed."""
    recompute_method: Annotated[Literal["uniform", "block"] | None, MAY_CHANGE] = None
    """With --recompute-granularity full: recompute every layer of the stage in units (uniform), or only its first
    layers (block)."""
    recompute_num_layers: Annotated[int | None, AtLeast(1), MAY_CHANGE] = None
    """With --recompute-granularity full: number of layers per unit (uniform), or number of recomputed layers
    (block)."""
    recompute_modules: Annotated[tuple[Literal["core_attn", "mlp"], ...], MAY_CHANGE] = ("core_attn",)
    """With --recompute-granularity selective: parts of a layer that are recomputed."""
    cpu_offloading_num_layers: Annotated[int, AtLeast(0), MAY_CHANGE] = 0
    """Number of layers, from the first of every model chunk, whose activations are kept in host memory until the
    backward pass; those of the memories stay on the device."""
    check_weight_hash_across_dp_replicas_interval: Annotated[int | None, AtLeast(1), NOT_COMPARED] = None
    """Iterations between two checks that all data-parallel replicas have identical slow weights (default: none)."""
    manual_gc: Annotated[bool, NOT_COMPARED] = False
    """Disable Python's automatic garbage collection. Instead, all ranks collect together: at the start, before and
    after evaluations, and every --manual-gc-interval iterations."""
    manual_gc_interval: Annotated[int, AtLeast(0), NOT_COMPARED] = 0
    """With --manual-gc: number of iterations between two collections; 0 disables these collections."""
    manual_gc_eval: Annotated[bool, NOT_COMPARED] = True
    """With --manual-gc: collect before and after every evaluation."""
    num_threads: Annotated[int | None, AtLeast(1), AtMost(2**16), NOT_COMPARED] = None
    """Number of CPU threads per process (default: all cores divided by the number of local processes)."""
    deterministic: Annotated[bool, MAY_CHANGE] = True
    """Use deterministic algorithms where torch has them."""
    divergence_factor: Annotated[float, Above(1), MAY_CHANGE] = 10.0
    """Stop when the memorization loss exceeds its early median by this factor, or when the loss or the gradients are
    not finite."""
    dry_run: Annotated[bool, NOT_COMPARED] = False
    """Print the resolved configuration, the layer plan, and the parameters and memory per rank; then exit."""
    dry_run_all: Annotated[bool, NOT_COMPARED] = False
    """With --dry-run: also print the options that have their default value."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving and loading checkpoints."""

    save: Annotated[str | None, NOT_COMPARED] = None
    """Folder for this run's checkpoints."""
    save_interval: Annotated[int | None, AtLeast(1), NOT_COMPARED] = None
    """Number of iterations between two checkpoints; the last iteration is always saved."""
    async_save: Annotated[bool, NOT_COMPARED] = False
    """Write checkpoints in a forked process while training continues; each one is finished before the next one
    starts."""
    keep_last: Annotated[int, AtLeast(0), NOT_COMPARED] = 3
    """Number of newest checkpoints to keep in --save; 0 keeps all."""
    save_retain_interval: Annotated[int | None, AtLeast(1), NOT_COMPARED] = None
    """Also keep the checkpoints whose iteration is a multiple of this number (default: none)."""
    resume: Annotated[bool, NOT_COMPARED] = False
    """Resume from the latest checkpoint in --save; if there is none, print a message and start from scratch."""
    load: Annotated[str | None, NOT_COMPARED] = None
    """Folder with the checkpoints of another run; training starts from the latest one."""
    finetune: Annotated[bool, NOT_COMPARED] = False
    """With --load: load only the slow and fast weights; iteration, optimizer state and data start from scratch."""
    ckpt_step: Annotated[int | None, AtLeast(0), NOT_COMPARED] = None
    """Iteration of the checkpoint to start from, in the folder of --load or, without it, of --resume (default: the
    latest)."""
    exit_on_missing_checkpoint: Annotated[bool, NOT_COMPARED] = False
    """With --resume: end with an error if there is no checkpoint, instead of starting from scratch."""
    use_checkpoint_args: Annotated[bool, NOT_COMPARED] = False
    """Take the model architecture from the checkpoint of --resume or --load. Sizes and tokenizer options given on the
    command line or in a file take precedence."""
    override_opt_param_scheduler: Annotated[bool | None, NOT_COMPARED] = None
    """If a resumed run is given a different schedule from the checkpoint's, use the given one; the --no- form raises an
    error instead (default: use the given one)."""
    use_checkpoint_opt_param_scheduler: Annotated[bool, NOT_COMPARED] = False
    """Take the schedule (learning rates, weight decay, warm-up, decay) from the checkpoint and ignore the given one."""


@dataclass(frozen=True)
class LoggingConfig:
    """Logs of a training run."""

    log_interval: Annotated[int, AtLeast(1), NOT_COMPARED] = 10
    """Number of iterations between two progress lines."""
    log_dir: Annotated[str | None, NOT_COMPARED] = None
    """Folder for metrics.jsonl and the resolved configuration (default: --save if given, else runs/<date>)."""
    log_throughput: Annotated[bool, NOT_COMPARED] = False
    """Record the achieved TFLOP/s of each device, their share of the device's peak (MFU), and the bytes per second that
    the memories move."""
    peak_tflops: Annotated[float | None, Above(0), NOT_COMPARED] = None
    """With --log-throughput: the peak of a device in TFLOP/s, against which MFU is measured (default: the published
    dense bfloat16 peak of an A100, H100, H200 or B200 with --bf16; none on other devices and in float32)."""
    tensorboard_dir: Annotated[str | None, NOT_COMPARED] = None
    """Folder for TensorBoard events (default: none are written)."""
    tensorboard_queue_size: Annotated[int, AtLeast(1), NOT_COMPARED] = 1000
    """With --tensorboard-dir: number of scalars that wait in memory before they are written to disk."""
    tensorboard_log_interval: Annotated[int | None, AtLeast(1), NOT_COMPARED] = None
    """Number of iterations between two training records in TensorBoard and Weights & Biases, a multiple of
    --log-interval (default: --log-interval)."""
    wandb_project: Annotated[str | None, NOT_COMPARED] = None
    """Project of Weights & Biases to which rank 0 sends the records (default: none are sent). It needs the wandb
    package; with WANDB_MODE=offline the records stay on disk for `wandb sync`."""
    wandb_exp_name: Annotated[str | None, NOT_COMPARED] = None
    """With --wandb-project: name of the run (default: the name of the folder of --log-dir)."""
    wandb_entity: Annotated[str | None, NOT_COMPARED] = None
    """With --wandb-project: user or team that owns the project (default: that of your login)."""
    wandb_save_dir: Annotated[str | None, NOT_COMPARED] = None
    """With --wandb-project: folder for the local files of Weights & Biases (default: --log-dir)."""
