"""The training loop, checkpoints and logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainingConfig:
    """Batch, length, precision and checks of a training run."""

    micro_batch_size: int = 1
    """Sequences per forward pass and rank; they share one memory, as in the paper."""
    global_batch_size: int | None = None
    """Sequences per step over all ranks; default micro-batch size times data-parallel size."""
    rampup_batch_size: tuple[int, ...] = ()
    """START INCREMENT SAMPLES: begin with steps of START sequences and add INCREMENT at a time, spread evenly over
    SAMPLES sequences, up to --global-batch-size; iterations are counted as ever; default none."""
    train_iters: int = 1000
    """Optimizer steps of the whole run."""
    skip_train: bool = False
    """Evaluate the validation and test data once, with the model of --load or --resume, and end; nothing is saved."""
    exit_interval: int | None = None
    """Save and stop when the iteration is a multiple of this."""
    exit_duration_in_mins: float | None = None
    """Save and stop after this many minutes."""
    eval_interval: int = 1000
    """Iterations between two evaluations on the validation split."""
    eval_iters: int = 100
    """Batches of one evaluation; 0 turns evaluation off."""
    seed: int = 1234
    """Seed of initialisation, data order and memory."""
    bf16: bool = False
    """Compute in bfloat16 with float32 master weights; the memory's tables follow --fwpkm-table-dtype."""
    calculate_per_token_loss: bool = False
    """Weigh every token of a step the same; by default every micro-batch weighs the same, however many of its tokens
    --eod-mask-loss leaves out."""
    recompute_granularity: Literal["full", "selective"] | None = None
    """Compute whole layers, or parts of them, again in the backward pass instead of keeping their activations; memories
    are never recomputed."""
    recompute_method: Literal["uniform", "block"] | None = None
    """With --recompute-granularity full: units of layers along the whole stage, or only its first layers."""
    recompute_num_layers: int | None = None
    """With --recompute-granularity full: layers of a unit (uniform), or number of recomputed layers (block)."""
    recompute_modules: tuple[Literal["core_attn", "mlp"], ...] = ("core_attn",)
    """With --recompute-granularity selective: the parts of a layer that are recomputed."""
    cpu_offloading_num_layers: int = 0
    """Layers of every model chunk, from its first, whose activations wait in host memory for the backward pass; what a
    memory keeps stays on the device."""
    check_weight_hash_across_dp_replicas_interval: int | None = None
    """Iterations between two checks that all data-parallel replicas have equal slow weights; default none."""
    manual_gc: bool = False
    """Switch Python's own garbage collection off, and collect at the start, before and after evaluations, and at
    --manual-gc-interval, on all ranks at once."""
    manual_gc_interval: int = 0
    """With --manual-gc: iterations between two collections; 0 makes none between iterations."""
    manual_gc_eval: bool = True
    """With --manual-gc: collect before and after every evaluation."""
    num_threads: int | None = None
    """CPU threads per process; default all cores divided by the local processes."""
    deterministic: bool = True
    """Refuse nondeterministic kernels where torch offers the choice."""
    divergence_factor: float = 10.0
    """Stop when the memorization loss exceeds this times its early median, or when loss or gradients are not finite."""
    dry_run: bool = False
    """Print the resolved configuration, the layer plan, parameters and memory per rank, and stop."""
    dry_run_all: bool = False
    """With --dry-run: print the options that have their default, too."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving and resuming."""

    save: str | None = None
    """Folder of this run's checkpoints."""
    save_interval: int | None = None
    """Iterations between two checkpoints; the last iteration is always saved."""
    async_save: bool = False
    """Write checkpoints in a forked process while training goes on; each is finished before the next one begins."""
    keep_last: int = 3
    """Checkpoints kept in --save; 0 keeps all."""
    save_retain_interval: int | None = None
    """Checkpoints whose iteration is a multiple of this are kept beside the --keep-last newest; default none are."""
    resume: bool = False
    """Continue from the latest checkpoint in --save; start anew, and say so, where there is none."""
    load: str | None = None
    """Folder of another run to start from (its latest checkpoint)."""
    finetune: bool = False
    """With --load: take the weights and fast weights only, and start iteration, optimizer and data anew."""
    ckpt_step: int | None = None
    """Iteration of the checkpoint to start from: of --load's run or, without it, of --resume's; default the latest."""
    exit_on_missing_checkpoint: bool = False
    """End with an error, instead of starting anew, where --resume finds nothing to continue."""
    use_checkpoint_args: bool = False
    """Take the model's shape from the checkpoint that --resume or --load names; of the command line and files stay
    sizes and tokenizer where they are given."""
    override_opt_param_scheduler: bool | None = None
    """Where a resumed run is given another schedule than its checkpoint has, take what is given; with the --no- form
    end with an error; default take what is given."""
    use_checkpoint_opt_param_scheduler: bool = False
    """Take the schedule (learning rates, weight decay, warm-up, decay) from the checkpoint, whatever is given."""


@dataclass(frozen=True)
class LoggingConfig:
    """What a run writes while it trains."""

    log_interval: int = 10
    """Iterations between two progress lines."""
    log_dir: str | None = None
    """Folder of metrics.jsonl and the resolved configuration; default --save, else runs/<date>."""
    tensorboard_dir: str | None = None
    """Folder of TensorBoard events; default none are written."""
