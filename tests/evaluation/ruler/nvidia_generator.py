"""NVIDIA's generator of a checkout, run on the texts of `ruler_data` with the same count of tokens. A script:

python -m tests.evaluation.ruler.nvidia_generator CHECKOUT TASK LENGTH SEED SAMPLES FOLDER
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import types
from pathlib import Path

import yaml

from megatron_fwpkm.evaluation.ruler.word_lists import key_words
from tests.evaluation.ruler.ruler_data import quarter_bytes, ruler_data

_ALL_PAIRS = (
    'words = [f"{adj}-{noun}" for adj in adjs for noun in nouns]\nwords = sorted(list(set(words)))',
    "words = KEY_WORDS",
)
"""Of its needle script: six million strings, which take seconds and half a gigabyte; their list is compared once."""


def prepare(checkout: Path, folder: Path) -> Path:
    """A copy of the scripts with the data that they expect beside them."""
    scripts = Path(shutil.copytree(checkout / "scripts", folder / "scripts"))
    data, place = ruler_data(), scripts / "data/synthetic/json"
    (place / "PaulGrahamEssays.json").write_text(json.dumps({"text": data["essay"]}))
    (place / "squad.json").write_text(json.dumps(data["squad"]))
    (place / "hotpotqa.json").write_text(json.dumps(data["hotpotqa"]))
    (place / "english_words.json").write_text(json.dumps(dict(enumerate(data["words"]))))
    return scripts


def generate(scripts: Path, name: str, length: int, seed: int, samples: int, folder: Path) -> Path:
    """Run the script of a task in this process, which must be a new one. Returns the file that it wrote."""
    sys.path[:0] = [str(scripts / "data"), str(scripts / "data/synthetic")]
    counter = types.SimpleNamespace(text_to_tokens=lambda text: range(quarter_bytes(text)))
    sys.modules["tokenizer"] = types.ModuleType("tokenizer")
    sys.modules["tokenizer"].select_tokenizer = lambda *_: counter  # type: ignore[attr-defined]
    constants = importlib.import_module("constants")  # of the checkout
    task = yaml.safe_load((scripts / "synthetic.yaml").read_text())[name]
    base, path = constants.TASKS[task["task"]], scripts / f"data/synthetic/{task['task']}.py"
    flags = {
        "save_dir": folder, "save_name": name, "tokenizer_path": "none", "max_seq_length": length,
        "tokens_to_generate": base["tokens_to_generate"], "num_samples": samples, "random_seed": seed,
        **task["args"], "template": base["template"] + base["answer_prefix"],
    }  # fmt: skip
    sys.argv = [str(path), *(word for flag, value in flags.items() for word in (f"--{flag}", str(value)))]
    text = path.read_text()
    if task["task"] == "niah":
        assert _ALL_PAIRS[0] in text, "another version of the generator"
        text = text.replace(*_ALL_PAIRS)
    exec(compile(text, path, "exec"), {"__name__": "__main__", "__file__": str(path), "KEY_WORDS": key_words()})
    return folder / name / "validation.jsonl"


if __name__ == "__main__":
    checkout, name, length, seed, samples, folder = sys.argv[1:]
    generate(prepare(Path(checkout), Path(folder)), name, int(length), int(seed), int(samples), Path(folder))
