"""Each law finds what breaks it in a small bad example, and leaves a good one alone."""

from __future__ import annotations

import pytest

from tests.architecture import laws
from tests.architecture.sources import Source

BODY = "    x = 1\n"
NO_DOCSTRING = '"""M."""\nclass A:\n  """A."""\n  def f(self): pass'
TOOL = '"""T."""\ndef main(argv=None):\n    return 0\nif __name__ == "__main__":\n    main()\n'


@pytest.mark.parametrize(
    ("law", "path", "bad", "good"),
    [
        (laws.long_files, "a.py", "x = 1\n" * 401, "x = 1\n" * 400),
        (laws.long_functions, "a.py", "def f():\n" + BODY * 80, "def f():\n" + BODY * 79),
        (laws.long_functions, "a.py", "@triton.jit\ndef f():\n" + BODY * 150, "@triton.jit\ndef f():\n" + BODY * 149),
        (laws.undocumented, "a.py", '"""M."""\ndef f(): pass', '"""M."""\ndef _f(): pass'),
        (laws.undocumented, "a.py", NO_DOCSTRING, NO_DOCSTRING.replace("f(self)", "_f(self)")),
        (laws.undocumented, "a.py", "x = 1", '"""M."""\nx = 1'),
        (laws.empty_docstrings, "a.py", "def f():\n  'Both.'", "def f():\n  'Both of them.'"),
        (laws.empty_docstrings, "a.py", "def f():\n  'See `g`.'", "def f():\n  'See that all is well.'"),
        (laws.foreign_markup, "a.py", "x = 1  # see :func:`f`", "x = 1  # see `f`"),
        (laws.absolute_imports, "megatron_fwpkm/ops/a.py", "from megatron_fwpkm.ops import b", "from . import b"),
        (laws.megatron_groups, "megatron_fwpkm/data/a.py", "from megatron.core import parallel_state", "import math"),
        (
            laws.megatron_releases,
            "megatron_fwpkm/engines/a.py",
            "try:\n  from megatron.core import new\nexcept ImportError:\n  new = None",
            "try:\n  import apex\nexcept ImportError:\n  apex = None",
        ),
        (laws.megatron_releases, "tools/a.py", "if megatron.core.__version__: x = 1", "x = torch.__version__"),
        (laws.megatron_releases, "a.py", "x = metadata.version('megatron-core')", "x = metadata.version('torch')"),
        (laws.megatron_releases, "a.py", "new = release >= '0.19.2'", "new = 'since 0.19.2'"),
        (laws.hidden_globals, "a.py", "def f():\n  global x\n  x = 1", "def f(x):\n  x = 1"),
        (laws.hidden_globals, "a.py", "a = get_args()", "a = typing.get_args(kind)"),
        (laws.communication, "a.py", "import torch.distributed as dist", "import torch"),
        (laws.communication, "a.py", "from torch import distributed", "from torch import nn"),
        (laws.communication, "a.py", "torch.distributed.barrier()", "torch.abs(x)"),
        (laws.hf_strangers, "a.py", "import numpy", "import torch, math"),
        (laws.hf_strangers, "a.py", "from ..ops import x", "from .memory import x\nfrom ..ops.state import x"),
        (laws.fat_entry_points, "tools/t.py", TOOL + "x = 1\n" * 80, TOOL),
        (laws.fat_entry_points, "tools/t.py", TOOL.replace("if __name__", "main()\nif __name__"), TOOL),
        (laws.fat_entry_points, "pretrain.py", TOOL.replace("argv=None", ""), TOOL),
        (laws.tests_that_cannot_fail, "tests/t.py", "def test_a():\n  run()", "def test_a():\n  assert run()"),
        (
            laws.tests_that_cannot_fail,
            "tests/t.py",
            "def same(x):\n  return x\ndef test_a():\n  same(1)",
            "def same(x):\n  assert x\ndef test_a():\n  same(1)",
        ),
        (
            laws.tests_that_cannot_fail,
            "tests/t.py",
            "def test_a():\n  with pytest.raises(ValueError):\n    f()",
            "def test_a():\n  with pytest.raises(ValueError, match='x'):\n    f()",
        ),
        (
            laws.tests_that_cannot_fail,
            "tests/t.py",
            "def test_a():\n  with pytest.raises(Killed):\n    f()",
            "class Killed(Exception): pass\ndef test_a():\n  with pytest.raises(Killed):\n    f()",
        ),
    ],
)
def test_law_over_sources(law, path, bad, good):
    assert law([Source(path, bad)])
    assert law([Source(path, good)]) == []


@pytest.mark.parametrize(
    ("law", "bad", "good"),
    [
        (laws.unfinished, "# TO" + "DO: later", "# to do something"),
        (laws.unfinished, "raise NotImplemented" + "Error", "return NotImplemented"),
        (laws.machine_paths, "open('/tm" + "p/x')", "open(tmp_path / 'x')"),
        (laws.machine_paths, "see /ro" + "ot/data", "see data/root/x"),
    ],
)
def test_law_over_text(law, bad, good):
    assert law([("a.py", bad)])
    assert law([("a.py", good)]) == []


def test_a_name_that_two_rooms_share_is_found():
    sources = [Source("a/x.py", "class C: pass"), Source("b/x.py", "class C: pass"), Source("b/y.py", "class D: pass")]
    assert laws.shared_names(sources, ()) == ["x.py: a/x.py, b/x.py", "C: a/x.py, b/x.py"]
    assert laws.shared_names(sources, ("x.py", "C")) == []
