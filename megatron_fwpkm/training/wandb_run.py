"""Records of training on Weights & Biases: one run there for a run here, however often it is resumed."""

from __future__ import annotations

import importlib.util
import json
import logging
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import LoggingConfig, PretrainConfig
from ..distributed.ranks import on_rank_zero
from .metrics import JsonRecord, scalars

RUN_FILE = "wandb_run.json"
"""In the folder of logs: the id of the run, and the last iteration that was sent."""
_WITHOUT_LOGIN = ("offline", "disabled", "dryrun")

logger = logging.getLogger("megatron_fwpkm")


def check_wandb(config: LoggingConfig) -> None:
    """Raise ValueError where --wandb-project is given and the wandb package or, unless offline, a login is missing.

    Called by every rank; the first one looks for the login.
    """
    project = config.wandb_project
    if project is None:
        return
    if importlib.util.find_spec("wandb") is None:
        raise ValueError(f"--wandb-project {project} needs the wandb package: pip install wandb, or remove the flag")
    problem = on_rank_zero(_login_problem)
    if problem is not None:
        raise ValueError(
            f"--wandb-project {project}: {problem}. Log in with `wandb login`, set WANDB_API_KEY or "
            "WANDB_MODE=offline, or remove --wandb-project"
        )


def _login_problem() -> str | None:
    """What is wrong with the login, in a line; None where there is one, or none is needed."""
    import wandb

    try:
        if wandb.setup().settings.mode in _WITHOUT_LOGIN or wandb.login(prompt=False, verify=False):
            return None
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        return " ".join(str(error).split()).rstrip(".")
    return "no API key is configured"


class WandbRun:
    """Sends the scalars of every record, over the iteration. What fails is said once and never stops training."""

    def __init__(self, config: PretrainConfig, log_dir: Path, iteration: int) -> None:
        """Begin a run, or with `iteration` above 0 continue the one whose id is in `log_dir`.

        Raises ValueError where Weights & Biases refuses how it is used, such as without a login.
        """
        self._file = log_dir / RUN_FILE
        kept = _read(self._file) if iteration else {}
        self._id: str = kept.get("id") or uuid.uuid4().hex[:8]
        self._sent: int = kept.get("last_iteration", 0)
        self._warned = False
        self._run = _begin(config, log_dir, self._id)
        self._run.define_metric("*", step_metric="iteration")
        self._remember()

    def write(self, record: JsonRecord) -> None:
        """Send the scalars of one record, unless a run that was resumed since has sent them."""
        iteration = record.get("iteration", 0)
        if record["kind"] == "train" and iteration <= self._sent:
            return
        try:
            self._run.log({"iteration": iteration, **scalars(record)})
        except Exception as error:  # of any kind: nothing about a log is worth a training run
            self._warn(error)
            return
        self._sent = max(self._sent, iteration)
        self._remember()

    def go_back(self, iteration: int) -> None:
        """Send the iterations after this one once more; what was sent of them cannot be taken back."""
        self._sent = min(self._sent, iteration)
        self._remember()

    def close(self) -> None:
        """Send what waits and finish."""
        try:
            self._run.finish()
        except Exception as error:
            self._warn(error)

    def _remember(self) -> None:
        try:
            self._file.write_text(json.dumps({"id": self._id, "last_iteration": self._sent}), encoding="utf-8")
        except OSError as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            logger.warning("Weights & Biases: %s; training continues, and metrics.jsonl has every record", error)
            self._warned = True


def _begin(config: PretrainConfig, log_dir: Path, run_id: str) -> Any:
    """The run of the library; offline where the server does not answer."""
    import wandb

    chosen = config.logging
    folder = Path(chosen.wandb_save_dir or log_dir)
    options: dict[str, Any] = {
        "project": chosen.wandb_project,
        "entity": chosen.wandb_entity,
        "name": chosen.wandb_exp_name or log_dir.resolve().name,
        "dir": str(folder),
        "id": run_id,
        "resume": "allow",
        "config": asdict(config),
        "settings": wandb.Settings(console="off"),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return wandb.init(**options)
    except OSError as error:
        raise ValueError(f"--wandb-save-dir {folder} cannot be written: {error.strerror}") from error
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        raise ValueError(
            f"Weights & Biases: {error}. Log in with `wandb login`, set WANDB_MODE=offline, or remove --wandb-project"
        ) from error
    except wandb.errors.Error as error:
        logger.warning("Weights & Biases: %s; the records stay in %s for `wandb sync`", error, folder)
        return wandb.init(**options, mode="offline")


def _read(path: Path) -> dict[str, Any]:
    """What a run left; nothing where the file is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
